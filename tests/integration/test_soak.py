"""The soak test of `benchmarks.soak`, for two minutes. Slower leaks take a run of 20 minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.flatness import check_flatness
from benchmarks.soak import STEPS_PER_CHECKPOINT, STEPS_PER_EVALUATION, soak

# The memory allocator and the first checkpoints take a minute to settle.
SECONDS, SETTLE = 120.0, 60.0


@pytest.mark.slow
@pytest.mark.soak
def test_two_minutes_of_training_evaluating_and_saving_are_flat(data: Path, tmp_path: Path) -> None:
    samples, progress, counts = soak(tmp_path, data, SECONDS, every=0.5)
    assert {sample.process for sample in samples} == {"launcher", "rank 0", "rank 1"}
    assert counts["evaluations"] in (counts["steps"] // STEPS_PER_EVALUATION + n for n in (-1, 0, 1))
    assert 1 <= counts["checkpoints"] <= counts["steps"] // STEPS_PER_CHECKPOINT
    saved = [path.name for path in (tmp_path / "log" / "checkpoints").iterdir() if path.name.startswith("step_")]
    assert 1 <= len(saved) <= 3, "SAVE_KEEP=2, and the one that SIGTERM caught"
    verdicts = check_flatness(samples, progress, SETTLE)
    assert [verdict for verdict in verdicts if not verdict.is_flat] == []
    assert len(verdicts) == 3 * 3 + 1
