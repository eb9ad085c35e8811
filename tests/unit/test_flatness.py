"""`benchmarks.flatness` on made samples of flat runs, leaks and slowdowns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.flatness import MIB, WINDOWS, Progress, Sample, Verdict, check_flatness, drift

SETTLE, END = 60.0, 1200.0
Change = Callable[[float, float], float]


def progress_of(seconds: float) -> float:
    """Return the share of the checked time that has passed: 0 to 1."""
    return max(0.0, (seconds - SETTLE) / (END - SETTLE))


def same(value: float, _: float) -> float:
    return value


def verdicts_of(
    memory: Change = same,
    descriptors: Change = same,
    wall: Change = same,
    cpu: Change = same,
    seed: int = 0,
) -> dict[str, Verdict]:
    """Return the verdicts on 20 minutes of two processes. Arguments change a flat run's value at some seconds."""
    random = np.random.default_rng(seed)
    samples, cpu_seconds, before = [], 0.0, 0.0
    for seconds in np.arange(1.0, END, 5):
        start = 150 * (1 - np.exp(-seconds / 10))  # memory grows in the first minute, which is not checked
        cpu_seconds += cpu(1.5 * random.normal(1, 0.1), seconds) * (seconds - before)
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
            cpu_seconds=cpu_seconds,
        )
        samples += [sample, replace(sample, process="launcher", resident=200 * MIB, anonymous=99 * MIB, descriptors=25)]
    progress, seconds, steps = [], 0.0, 0
    while True:
        step = wall(0.1 * random.normal(1, 0.1), seconds)
        seconds, steps = seconds + 10 * step, steps + 10
        if seconds > END:
            break
        progress.append(Progress(seconds, steps, step))
    return {verdict.quantity: verdict for verdict in check_flatness(samples, progress, SETTLE)}


def not_flat(verdicts: dict[str, Verdict]) -> set[str]:
    return {quantity for quantity, verdict in verdicts.items() if not verdict.is_flat}


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_flat(seed: int) -> None:
    verdicts = verdicts_of(seed=seed)
    assert not_flat(verdicts) == set()
    kinds = ("memory", "descriptors", "threads")
    assert list(verdicts) == [f"{name}: {kind}" for name in ("rank 0", "launcher") for kind in kinds] + ["step time"]


@pytest.mark.parametrize(
    "leak",
    [
        lambda size, seconds: size * (1 + 0.03 * progress_of(seconds)),
        lambda size, seconds: size * (1.03 if progress_of(seconds) > 0.5 else 1),
    ],
    ids=["slowly", "at once"],
)
def test_a_leak_of_three_percent_is_found(leak: Change) -> None:
    verdicts = verdicts_of(memory=leak)
    assert not_flat(verdicts) == {"rank 0: memory"}
    assert "anonymous" in verdicts["rank 0: memory"].measured


@pytest.mark.parametrize("every", [60, 700])
def test_a_descriptor_that_stays_open_is_found(every: int) -> None:
    verdicts = verdicts_of(descriptors=lambda count, seconds: count + seconds // every)
    assert not_flat(verdicts) == {"rank 0: descriptors"}


def slower(value: float, seconds: float) -> float:
    return value * (1 + 0.2 * progress_of(seconds))


@pytest.mark.parametrize(
    ("memory", "descriptors", "wall"),
    [
        (lambda size, seconds: size * (1 + 0.01 * progress_of(seconds)), same, same),
        (same, lambda count, seconds: count + 50 * (int(seconds) % 3 == 0), same),
        (same, same, lambda value, seconds: value * (1 + 0.03 * progress_of(seconds))),
    ],
    ids=["one percent of memory", "a descriptor that is closed", "three percent slower"],
)
def test_small_changes_are_flat(memory: Change, descriptors: Change, wall: Change) -> None:
    assert not_flat(verdicts_of(memory, descriptors, wall)) == set()


def test_steps_that_get_slower_are_found() -> None:
    # CPU time per second stays, and steps take longer: CPU time per step grows too.
    assert not_flat(verdicts_of(wall=slower)) == {"step time"}


def test_a_machine_that_gets_busier_is_flat() -> None:
    verdicts = verdicts_of(wall=slower, cpu=lambda share, seconds: share / (1 + 0.2 * progress_of(seconds)))
    assert not_flat(verdicts) == set()
    wall = verdicts["step time"].measured.partition("; ")[2]
    # From the middle of the first window to that of the last, of the median.
    assert float(wall.partition(" %")[0]) == pytest.approx(100 * 0.2 * 0.9 / 1.1, abs=4)


def test_drift_is_the_change_from_first_to_last() -> None:
    assert drift(np.linspace(1.0, 1.2, WINDOWS)) == pytest.approx([0.2 / 1.1] * 3)
    assert drift(np.full(WINDOWS, 7.0)) == (0, 0, 0)


def test_outliers_do_not_move_the_drift() -> None:
    values = np.linspace(1.0, 1.2, WINDOWS)
    values[[2, 7]] = 9, 0.1
    low, middle, high = drift(values)
    assert low < middle < high
    assert middle == pytest.approx(0.2 / 1.1, rel=0.15)


def test_the_interval_holds_no_drift_19_times_in_20() -> None:
    random = np.random.default_rng(0)
    holds = [low <= 0 <= high for low, _, high in (drift(random.normal(1, 0.1, WINDOWS)) for _ in range(2000))]
    assert 0.94 <= np.mean(holds) <= 0.98


def test_too_short_a_run_is_an_error() -> None:
    samples = [Sample(float(s), "rank 0", 1, 1, 1, 1, 0.1 * s) for s in range(50)]
    progress = [Progress(float(s), s, 1.0) for s in range(1, 50)]
    with pytest.raises(ValueError, match="let the run take longer"):
        check_flatness(samples, progress, SETTLE)
    with pytest.raises(ValueError, match="let the run take longer"):
        check_flatness(samples[:20] + samples[-1:], progress, 1.0)
