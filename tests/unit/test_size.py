"""The golden figures of the reference page, counted from Megatron-Core's modules."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gptoss20b.config import resolve
from gptoss20b.model.size import flops_per_token, state_bytes_per_gpu

REFERENCE_COUNTS = {"experts": 24 * 32 * 3 * 2880 * 2880, "embedding": 128_256 * 2880, "other": 0}
REFERENCE_COUNTS["other"] = 20_488_418_112 - REFERENCE_COUNTS["experts"] - REFERENCE_COUNTS["embedding"]


def info(*options: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "gptoss20b", "info", "--json", *options], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("options", "total", "active"),
    [
        (["--variant", "reference"], 20_488_418_112, 3_397_530_432),
        (["--variant", "openai"], 20_914_757_184, 3_608_307_264),
        (["--variant", "openai", "--vocab-size", "128256"], 20_495_244_864, 3_398_551_104),
        (["--variant", "openai_120b"], 116_829_156_672, 5_132_849_472),
    ],
)
def test_parameters(options: list[str], total: int, active: int) -> None:
    figures = info(*options)
    assert (figures["total_parameters"], figures["active_parameters"]) == (total, active)


def test_flops_per_token_of_the_reference() -> None:
    assert flops_per_token(resolve({})) == pytest.approx(22.876e9, rel=1e-4)


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


def test_info_for_people_names_the_figures() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gptoss20b", "info"], capture_output=True, text=True, check=True, env={"COLUMNS": "100"}
    )
    for text in ("20,488,418,112", "3,397,530,432", "22,876,024,320", "49.7"):
        assert text in done.stdout
    assert "Warning" not in done.stderr
