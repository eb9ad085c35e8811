"""What `benchmarks.flatness` finds in made samples, and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.flatness import MIB, WINDOWS, Judged, Progress, Sample, drift, judge

SETTLE, END = 60.0, 1200.0


def life(seconds: float) -> float:
    """How much of what is judged has passed: 0 to 1."""
    return max(0.0, (seconds - SETTLE) / (END - SETTLE))


def same(value: float, _: float) -> float:
    return value


def judged(
    memory: Callable[[float, float], float] = same,
    descriptors: Callable[[float, float], float] = same,
    wall: Callable[[float, float], float] = same,
    processor: Callable[[float, float], float] = same,
    seed: int = 0,
) -> dict[str, Judged]:
    """The verdict on 20 minutes of two processes; each argument takes (what a flat run has, seconds)."""
    random = np.random.default_rng(seed)
    samples, spent, before = [], 0.0, 0.0
    for seconds in np.arange(1.0, END, 5):
        start = 150 * (1 - np.exp(-seconds / 10))  # memory grows in the first minute, which is not judged
        spent += processor(1.5 * random.normal(1, 0.1), seconds) * (seconds - before)
        before = seconds
        # An evaluation's tensors and a checkpoint's files come and go.
        size = MIB * (250 + start + 5 * random.random() + (40 if random.random() < 0.1 else 0))
        sample = Sample(
            seconds=seconds,
            process="rank 0",
            resident=int(memory(size, seconds)),
            anonymous=int(memory(size - 100 * MIB, seconds)),
            descriptors=int(descriptors(100 + 3 * (random.random() < 0.2), seconds)),
            threads=66,
            cpu_seconds=spent,
        )
        samples += [sample, replace(sample, process="launcher", resident=200 * MIB, anonymous=99 * MIB, descriptors=25)]
    progress, seconds, steps = [], 0.0, 0
    while True:
        step = wall(0.1 * random.normal(1, 0.1), seconds)
        seconds, steps = seconds + 10 * step, steps + 10
        if seconds > END:
            break
        progress.append(Progress(seconds, steps, step))
    return {line.what: line for line in judge(samples, progress, SETTLE)}


def not_flat(found: dict[str, Judged]) -> set[str]:
    return {what for what, line in found.items() if not line.fine}


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_flat(seed: int) -> None:
    found = judged(seed=seed)
    assert not_flat(found) == set()
    of_each = ("memory", "descriptors", "threads")
    assert list(found) == [f"{name}: {what}" for name in ("rank 0", "launcher") for what in of_each] + ["step time"]


def test_a_leak_of_three_percent_is_found() -> None:
    found = judged(memory=lambda size, seconds: size * (1 + 0.03 * life(seconds)))
    assert not_flat(found) == {"rank 0: memory"}
    assert " (anonymous " in found["rank 0: memory"].found


def test_a_leak_of_one_percent_is_not() -> None:
    assert not_flat(judged(memory=lambda size, seconds: size * (1 + 0.01 * life(seconds)))) == set()


def test_three_percent_at_once_is_found() -> None:
    found = judged(memory=lambda size, seconds: size * (1.03 if life(seconds) > 0.5 else 1))
    assert not_flat(found) == {"rank 0: memory"}


@pytest.mark.parametrize("every", [60, 700])
def test_a_descriptor_that_stays_open_is_found(every: int) -> None:
    found = judged(descriptors=lambda count, seconds: count + seconds // every)
    assert not_flat(found) == {"rank 0: descriptors"}


def test_a_descriptor_that_is_closed_is_not() -> None:
    assert not_flat(judged(descriptors=lambda count, seconds: count + 50 * (int(seconds) % 3 == 0))) == set()


def slower(value: float, seconds: float) -> float:
    return value * (1 + 0.2 * life(seconds))


def test_steps_that_get_slower_are_found() -> None:
    # Processor time is counted by the second, steps take longer: as much of it in each, and more a step.
    found = judged(wall=slower)
    assert not_flat(found) == {"step time"}


def test_a_machine_that_gets_busier_is_not() -> None:
    found = judged(wall=slower, processor=lambda share, seconds: share / (1 + 0.2 * life(seconds)))
    assert not_flat(found) == set()
    wall = found["step time"].found.partition("; ")[2]
    # From the middle of the first window to that of the last, of the median.
    assert float(wall.partition(" %")[0]) == pytest.approx(100 * 0.2 * 0.9 / 1.1, abs=4)


def test_three_percent_slower_is_within_the_limit() -> None:
    assert not_flat(judged(wall=lambda value, seconds: value * (1 + 0.03 * life(seconds)))) == set()


def test_drift_is_the_change_from_first_to_last() -> None:
    assert drift(np.linspace(1.0, 1.2, WINDOWS)) == pytest.approx([0.2 / 1.1] * 3)
    assert drift(np.full(WINDOWS, 7.0)) == (0, 0, 0)


def test_outliers_do_not_move_it() -> None:
    values = np.linspace(1.0, 1.2, WINDOWS)
    values[[2, 7]] = 9, 0.1
    low, middle, high = drift(values)
    assert low < middle < high
    assert middle == pytest.approx(0.2 / 1.1, rel=0.15)


def test_its_interval_holds_no_drift_19_times_in_20() -> None:
    random = np.random.default_rng(0)
    holds = [low <= 0 <= high for low, _, high in (drift(random.normal(1, 0.1, WINDOWS)) for _ in range(2000))]
    assert 0.94 <= np.mean(holds) <= 0.98


def test_too_short_a_run_is_no_verdict() -> None:
    samples = [Sample(float(s), "rank 0", 1, 1, 1, 1, 0.1 * s) for s in range(50)]
    progress = [Progress(float(s), s, 1.0) for s in range(1, 50)]
    with pytest.raises(ValueError, match="let the run take longer"):
        judge(samples, progress, SETTLE)
    with pytest.raises(ValueError, match="let the run take longer"):
        judge(samples[:20] + samples[-1:], progress, 1.0)
