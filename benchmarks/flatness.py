"""Leak detection: checks that memory, open files, threads and step time of a run stay flat.

The samples after the first seconds are split into windows of equal length. A run is flat if:

- memory: the windows' medians of a process's resident memory are within 2 % of the lowest. Anonymous memory is shown
  beside it: that is where leaks are, the rest are the libraries' files;
- descriptors and threads: no window's minimum is above that of the first. Short-lived descriptors do not count;
- step time: the Theil-Sen line through the windows does not rise by more than 5 % from end to end, with 95 %
  confidence. CPU time per step must rise with wall time, because a busier machine slows steps too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
from numpy.typing import NDArray

WINDOWS = 10
MEMORY_LIMIT, DRIFT_LIMIT, CONFIDENCE = 0.02, 0.05, 0.95
MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """One process at one time.

    Attributes:
        seconds: since run_start.
        process: "launcher", "rank 0", "rank 1".
        resident, anonymous: bytes of memory, and the part of it that no file backs.
        descriptors, threads: numbers.
        cpu_seconds: since the process started.
    """

    seconds: float
    process: str
    resident: int
    anonymous: int
    descriptors: int
    threads: int
    cpu_seconds: float


@dataclass(frozen=True)
class Progress:
    """Progress of the training at one time, from the log.

    Attributes:
        seconds: since run_start.
        steps: finished.
        step_seconds: mean over the block that ended then, without its evaluation.
    """

    seconds: float
    steps: int
    step_seconds: float


@dataclass(frozen=True)
class Verdict:
    """One line of the result: a quantity, its measured change, and whether it is flat."""

    quantity: str
    measured: str
    is_flat: bool


def check_flatness(samples: Sequence[Sample], progress: Sequence[Progress], settle_seconds: float) -> list[Verdict]:
    """Return the verdicts on a run, without its first ``settle_seconds``.

    Raises:
        ValueError: the run was too short.
    """
    end = min(samples[-1].seconds, progress[-1].seconds)
    if progress[0].seconds > settle_seconds or settle_seconds >= end:
        raise ValueError(
            f"{end:.0f} s are too few to check all but the first {settle_seconds:g}: let the run take longer"
        )
    by_process: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_process[sample.process].append(sample)
    verdicts = [each for name, own in by_process.items() for each in _check_process(name, own, settle_seconds, end)]
    return [*verdicts, _check_steps(by_process, progress, settle_seconds, end)]


def _check_process(name: str, samples: Sequence[Sample], begin: float, end: float) -> Iterator[Verdict]:
    seconds = np.array([sample.seconds for sample in samples])
    # Number of the window from 0; below 0 before the first.
    window = np.floor((seconds - begin) / (end - begin) * WINDOWS).astype(np.int64)
    sizes = {
        kind: _per_window([getattr(sample, kind) for sample in samples], window, median)
        for kind in ("resident", "anonymous")
    }
    spread = {kind: max(each) / min(each) - 1 for kind, each in sizes.items()}
    resident, anonymous = (
        f"{min(each) / MIB:.1f} to {max(each) / MIB:.1f} MiB, {100 * spread[kind]:.2f} %"
        for kind, each in sizes.items()
    )
    yield Verdict(f"{name}: memory", f"{resident} (anonymous {anonymous})", spread["resident"] <= MEMORY_LIMIT)
    for kind in ("descriptors", "threads"):
        least = _per_window([getattr(sample, kind) for sample in samples], window, min)
        yield Verdict(f"{name}: {kind}", f"{least[0]:g}, then at most {max(least):g}", max(least) <= least[0])


def _check_steps(
    by_process: dict[str, list[Sample]], progress: Sequence[Progress], begin: float, end: float
) -> Verdict:
    borders, times = np.linspace(begin, end, WINDOWS + 1), [each.seconds for each in progress]

    def per_window(times: Sequence[float], total: Sequence[float]) -> NDArray[np.float64]:
        """Return the increase of a running total in each window."""
        return np.diff(np.interp(borders, times, total))

    finished = [each.steps for each in progress]
    trained = np.cumsum([each.step_seconds for each in progress] * np.diff(finished, prepend=0))
    steps = per_window(times, finished)
    wall = per_window(times, list(trained)) / steps
    cpu = np.sum(
        [per_window([s.seconds for s in own], [s.cpu_seconds for s in own]) for own in by_process.values()], axis=0
    )
    drifts = {"": drift(wall), "CPU time ": drift(cpu / steps)}
    measured = "; ".join(
        f"{name}{100 * each[1]:+.1f} % ({100 * each[0]:+.1f} to {100 * each[2]:+.1f})" for name, each in drifts.items()
    )
    rises = all(low > DRIFT_LIMIT for low, _, _ in drifts.values())
    return Verdict("step time", f"{1000 * np.median(wall):.1f} ms; {measured}", not rises)


def _per_window(
    values: Sequence[float], window: NDArray[np.int64], aggregate: Callable[[Sequence[float]], float]
) -> list[float]:
    grouped = [[value for value, own in zip(values, window, strict=True) if own == n] for n in range(WINDOWS)]
    if not all(grouped):
        raise ValueError(f"one of the {WINDOWS} windows has no sample: let the run take longer")
    return [float(aggregate(group)) for group in grouped]


def drift(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the relative change from the first to the last of equally spaced values: low end, estimate, high end.

    The slope is Theil's and Sen's, the median slope of all pairs, which outliers hardly move. The 95 % interval is from
    Sen, "Estimates of the regression coefficient based on Kendall's tau" (1968).
    """
    count = len(values)
    first, second = np.triu_indices(count, 1)
    slopes = np.sort((values[second] - values[first]) / (second - first))
    spread = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * np.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, int((len(slopes) - spread) / 2))
    scale = (count - 1) / np.median(values)
    return float(slopes[low] * scale), float(np.median(slopes) * scale), float(slopes[-1 - low] * scale)
