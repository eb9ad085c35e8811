"""FLOPs, bytes of training state, and the `info` command; docs/model.md's tests count the parameters."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gptoss20b.config import resolve
from gptoss20b.model.size import flops_per_token, state_bytes_per_gpu

REFERENCE_COUNTS = {"experts": 24 * 32 * 3 * 2880 * 2880, "embedding": 128_256 * 2880, "other": 0}
REFERENCE_COUNTS["other"] = 20_488_418_112 - REFERENCE_COUNTS["experts"] - REFERENCE_COUNTS["embedding"]


def run_info(*options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gptoss20b", "info", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={"COLUMNS": "100"} | settings)


def test_flops_follow_the_sequence_length() -> None:
    short = resolve({"SUBMISSION_DIVISION": "open", "SEQUENCE_LENGTH": "64"})
    # Shorter than the window: full and windowed layers cost the same, 32.5 keys a query on average.
    difference = flops_per_token(resolve({})) - flops_per_token(short)
    keys = 12 * (4096.5 - 32.5) + 12 * ((128 * 129 / 2 + (8192 - 128) * 129) / 8192 - 32.5)
    assert difference == pytest.approx(3 * 4 * 64 * 64 * keys, rel=1e-9)


@pytest.mark.parametrize(("expert_parallel", "gibibytes"), [(1, 143), (2, 90), (4, 63), (8, 50)])
def test_state_per_gpu_of_eight(expert_parallel: int, gibibytes: int) -> None:
    config = resolve({"EXPERT_PARALLEL": str(expert_parallel)})
    assert state_bytes_per_gpu(config, REFERENCE_COUNTS) / 2**30 == pytest.approx(gibibytes, abs=0.5)


def test_info_as_json_takes_a_variant_and_a_vocabulary() -> None:
    size = json.loads(run_info("--json", "--variant", "openai", "--vocab-size", "128256").stdout)
    assert (size["total_parameters"], size["active_parameters"]) == (20_495_244_864, 3_398_551_104)
    assert size["peak_reserved_bytes"] > size["state_bytes_per_gpu"] and size["survivable_imbalance"] is None


def test_info_for_people_has_the_figures() -> None:
    done = run_info(DGXSYSTEM="H200_1x8", MICRO_BATCH_SIZE="2")
    # State, peak at balance and with 1.5 and 2 times the mean rows, and the rows that fit.
    memory = ("49.7", "106.9", "123.9", "141.0", "1.7 times")
    for figure in ("20,488,418,112", "3,397,530,432", "22,876,024,320", *memory):
        assert figure in done.stdout
    assert "Warning" not in done.stderr
