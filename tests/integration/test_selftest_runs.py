"""The self-test of whole runs on two ranks: all of them take the same decision, and a right one changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptoss20b.result import read_result
from gptoss20b.stopping import ExitCode
from tests.support.local_runs import records, values
from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.proof]


@pytest.fixture(scope="module")
def settings(tiny: dict[str, str]) -> dict[str, str]:
    layout = {"DGXNGPU": "2", "EXPERT_PARALLEL": "2", "GLOBAL_BATCH_SIZE": "4", "SEED": "11"}
    return (
        tiny
        | layout
        | {
            "TARGET_LOSS": "0.5",
            "MAX_STEPS": "2",
            "WARMUP_STEPS": "1",
            "WARMUP_PASSES": "1",
            "EVAL_INTERVAL_SAMPLES": "8",
        }
    )


def run(settings: dict[str, str], folder: Path, broken: list[str], **changes: str) -> list[tuple[int, str]]:
    variables = settings | {"LOGDIR": str(folder)} | changes
    return run_ranks("selftest_jobs.train", 2, variables=variables, broken=broken, rank=1)


def keys(folder: Path) -> list[str]:
    return [record["key"] for record in records(folder / "result_0.txt")]


def metadata(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def test_ranks_switch_together_and_training_is_the_same(settings: dict[str, str], tmp_path: Path) -> None:
    for name, broken, changes in (
        ("without", [], {}),
        ("right", [], {"SELF_TEST": "1"}),
        ("switch", ["auto"], {"SELF_TEST": "1"}),
    ):
        for code, output in run(settings, tmp_path / name, broken, **changes):
            assert code == ExitCode.NOT_CONVERGED, output
    without, right, switch = (tmp_path / name for name in ("without", "right", "switch"))
    assert "self_test" not in metadata(without)
    assert metadata(right)["self_test"]["warnings"] == []
    assert keys(right) == keys(without)
    # Rank 1 found the fault, and rank 0 says so.
    (warning,) = metadata(switch)["self_test"]["warnings"]
    assert "on rank 1" in warning and "ATTENTION_KERNEL=flash" in warning
    (record,) = values(switch / "result_0.txt", "self_test")
    assert record == warning
    assert keys(switch).index("self_test") < keys(switch).index("run_start")
    assert [key for key in keys(switch) if key != "self_test"] == keys(without)
    for key in ("train_loss", "eval_accuracy"):
        losses = [values(folder / "result_0.txt", key) for folder in (without, right, switch)]
        assert losses[0] == losses[1] == losses[2] != []


def test_ranks_refuse_together_before_the_clock_starts(settings: dict[str, str], tmp_path: Path) -> None:
    codes, outputs = zip(*run(settings, tmp_path, ["flex"], SELF_TEST="1", ATTENTION_KERNEL="flex"), strict=True)
    assert set(codes) == {ExitCode.BAD_CONFIGURATION}
    assert "ATTENTION_KERNEL=auto" in outputs[0].splitlines()[-1]
    assert "aborted" not in outputs[1], "rank 0 says it for all"
    assert read_result(tmp_path / "result_0.txt").exit_code is ExitCode.BAD_CONFIGURATION
    assert "run_start" not in keys(tmp_path)
