"""Whether a run needs more and more of anything: memory, descriptors, threads, time for a step.

What was seen after the first seconds is cut into windows of equal length:

- memory: the windows' medians of a process's resident memory lie within 2 % of the least. Anonymous memory, which is
  what leaks, is shown beside it: the rest are the libraries' files;
- descriptors and threads: the least number of a window is never above that of the first. What is open for a moment does
  not stay open;
- step time: the Theil-Sen line through the windows rises by more than 5 % from end to end, with 95 % confidence. A
  machine that gets busier slows steps as well, so processor time per step must rise with it; a rise of wall time alone
  is shown, not judged.
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
        resident, anonymous: bytes of memory in all, and of what is no file's.
        descriptors, threads: open ones.
        cpu_seconds: of processor time since it began.
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
    """What the log says at one time.

    Attributes:
        seconds: since run_start.
        steps: finished.
        step_seconds: mean of the block that ended then, without its evaluation.
    """

    seconds: float
    steps: int
    step_seconds: float


@dataclass(frozen=True)
class Judged:
    """One line of the verdict: what was looked at, in words what was found, and whether that is fine."""

    what: str
    found: str
    fine: bool


def windows(seconds: NDArray[np.float64], begin: float, end: float) -> NDArray[np.int64]:
    """The number of the window, from 0, that each time lies in; below 0 before the first."""
    return np.floor((seconds - begin) / (end - begin) * WINDOWS).astype(np.int64)


def judge(samples: Sequence[Sample], progress: Sequence[Progress], settle_seconds: float) -> list[Judged]:
    """The verdict on a run, less its first seconds.

    Raises:
        ValueError: too little was seen to tell.
    """
    end = min(samples[-1].seconds, progress[-1].seconds)
    if progress[0].seconds > settle_seconds or settle_seconds >= end:
        raise ValueError(
            f"{end:.0f} s are too few to judge all but the first {settle_seconds:g}: let the run take longer"
        )
    of_process: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        of_process[sample.process].append(sample)
    found = [line for name, own in of_process.items() for line in _judge_process(name, own, settle_seconds, end)]
    return [*found, _judge_steps(of_process, progress, settle_seconds, end)]


def _judge_process(name: str, samples: Sequence[Sample], begin: float, end: float) -> Iterator[Judged]:
    window = windows(np.array([sample.seconds for sample in samples]), begin, end)
    sizes = {
        kind: _per_window([getattr(sample, kind) for sample in samples], window, median)
        for kind in ("resident", "anonymous")
    }
    spread = {kind: max(found) / min(found) - 1 for kind, found in sizes.items()}
    resident, anonymous = (
        f"{min(found) / MIB:.1f} to {max(found) / MIB:.1f} MiB, {100 * spread[kind]:.2f} %"
        for kind, found in sizes.items()
    )
    yield Judged(f"{name}: memory", f"{resident} (anonymous {anonymous})", spread["resident"] <= MEMORY_LIMIT)
    for kind in ("descriptors", "threads"):
        least = _per_window([getattr(sample, kind) for sample in samples], window, min)
        yield Judged(f"{name}: {kind}", f"{least[0]:g}, then at most {max(least):g}", max(least) <= least[0])


def _judge_steps(of_process: dict[str, list[Sample]], progress: Sequence[Progress], begin: float, end: float) -> Judged:
    borders, times = np.linspace(begin, end, WINDOWS + 1), [each.seconds for each in progress]

    def per_window(times: Sequence[float], total: Sequence[float]) -> NDArray[np.float64]:
        return np.diff(np.interp(borders, times, total))

    finished = [each.steps for each in progress]
    trained = np.cumsum([each.step_seconds for each in progress] * np.diff(finished, prepend=0))
    steps = per_window(times, finished)
    wall = per_window(times, list(trained)) / steps
    processor = np.sum(
        [per_window([s.seconds for s in own], [s.cpu_seconds for s in own]) for own in of_process.values()], axis=0
    )
    drifts = {"": drift(wall), "processor time ": drift(processor / steps)}
    shown = "; ".join(
        f"{what}{100 * each[1]:+.1f} % ({100 * each[0]:+.1f} to {100 * each[2]:+.1f})" for what, each in drifts.items()
    )
    rises = all(low > DRIFT_LIMIT for low, _, _ in drifts.values())
    return Judged("step time", f"{1000 * np.median(wall):.1f} ms; {shown}", not rises)


def _per_window(
    values: Sequence[float], window: NDArray[np.int64], take: Callable[[Sequence[float]], float]
) -> list[float]:
    grouped = [[value for value, own in zip(values, window, strict=True) if own == n] for n in range(WINDOWS)]
    if not all(grouped):
        raise ValueError(f"a window of {WINDOWS} has nothing to judge: let the run take longer")
    return [float(take(group)) for group in grouped]


def drift(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Relative change from the first to the last of equally spaced values: low end, estimate, high end.

    The slope is Theil's and Sen's, the median of those of all pairs; its interval is Sen's (1968), at 95 %. Neither
    minds outliers.
    """
    count = len(values)
    first, second = np.triu_indices(count, 1)
    slopes = np.sort((values[second] - values[first]) / (second - first))
    spread = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * np.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, int((len(slopes) - spread) / 2))
    scale = (count - 1) / np.median(values)
    return float(slopes[low] * scale), float(np.median(slopes) * scale), float(slopes[-1 - low] * scale)
