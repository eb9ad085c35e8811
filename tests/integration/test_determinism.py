"""DETERMINISTIC rejects operators that may differ between runs. A run on a CPU uses none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.local_runs import values
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow


def test_a_deterministic_run_is_the_same_run_and_rejects_other_operators(tiny: dict[str, str], tmp_path: Path) -> None:
    variables = tiny | {"DGXNGPU": "2", "EXPERT_PARALLEL": "2", "GLOBAL_BATCH_SIZE": "4", "SEED": "11"}
    variables |= {"MAX_STEPS": "4", "EVAL_INTERVAL_SAMPLES": "8", "LOG_INTERVAL": "1", "TARGET_LOSS": "0.5"}
    found = {}
    for switch in ("0", "1"):
        logdir = tmp_path / switch
        settings = variables | {"DETERMINISTIC": switch, "LOGDIR": str(logdir)}
        found[switch] = run_ranks("determinism_jobs.train", 2, variables=settings)
    assert found == {"0": [(3, False, None)] * 2, "1": [(3, True, ":4096:8")] * 2}
    for key, count in {"train_loss": 4, "eval_accuracy": 2}.items():
        without, with_it = (values(tmp_path / switch / "result_0.txt", key) for switch in "01")
        assert len(with_it) == count
        assert with_it == without
