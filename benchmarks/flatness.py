"""Leak detection: checks that memory, open files, threads and step time of a run stay flat.

The samples after the first seconds are split into windows of equal length. A run is flat if:

- memory: the windows' medians of a process's resident memory are within 2 % of the lowest. Anonymous memory is shown
  beside it: that is where leaks are, the rest are the libraries' files;
- descriptors and threads: no window's minimum is above that of the first. Short-lived descriptors do not count;
- step time: the Theil-Sen line through the windows does not rise by more than 5 % from end to end, with 95 %
  confidence. CPU time per step must rise with wall time, because a busier machine slows steps too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import theilslopes  # type: ignore[import-untyped]

WINDOWS = 10
MEMORY_LIMIT, DRIFT_LIMIT = 0.02, 0.05
MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """One process at one time, in seconds since run_start. ``anonymous`` is memory that no file backs."""

    seconds: float
    process: str
    resident: int
    anonymous: int
    descriptors: int
    threads: int
    cpu_seconds: float


@dataclass(frozen=True)
class Progress:
    """Steps finished at one time, in seconds since run_start.

    ``step_seconds`` is the mean over the block that ended then, without its evaluation.
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
    table = pd.DataFrame(samples)
    borders = np.linspace(settle_seconds, end, WINDOWS + 1)
    table["window"] = pd.cut(table.seconds, borders.tolist(), right=False, labels=False)
    by_process = dict(list(table.groupby("process", sort=False)))
    verdicts = [each for name, own in by_process.items() for each in _check_process(str(name), own)]
    return [*verdicts, _check_steps(list(by_process.values()), progress, borders)]


def _check_process(name: str, samples: pd.DataFrame) -> Iterator[Verdict]:
    windows = samples.groupby("window")
    if len(windows) < WINDOWS:
        raise ValueError(f"one of the {WINDOWS} windows has no sample: let the run take longer")
    sizes = windows[["resident", "anonymous"]].median() / MIB
    low, high = sizes.min(), sizes.max()
    spread = high / low - 1
    resident, anonymous = (
        f"{low[k]:.1f} to {high[k]:.1f} MiB, {100 * spread[k]:.2f} %" for k in ("resident", "anonymous")
    )
    yield Verdict(f"{name}: memory", f"{resident} (anonymous {anonymous})", bool(spread.resident <= MEMORY_LIMIT))
    for kind in ("descriptors", "threads"):
        least = windows[kind].min()
        first, most = least.iloc[0], least.max()
        yield Verdict(f"{name}: {kind}", f"{first:g}, then at most {most:g}", bool(most <= first))


def _check_steps(
    processes: Sequence[pd.DataFrame], progress: Sequence[Progress], borders: NDArray[np.float64]
) -> Verdict:
    blocks = pd.DataFrame(progress)

    def per_window(times: pd.Series, total: pd.Series) -> NDArray[np.float64]:
        """Return the increase of a running total in each window."""
        return np.diff(np.interp(borders, times, total))

    trained = (blocks.step_seconds * np.diff(blocks.steps, prepend=0)).cumsum()
    steps = per_window(blocks.seconds, blocks.steps)
    wall = per_window(blocks.seconds, trained) / steps
    cpu = np.sum([per_window(own.seconds, own.cpu_seconds) for own in processes], axis=0)
    drifts = {"": drift(wall), "CPU time ": drift(cpu / steps)}
    measured = "; ".join(
        f"{name}{100 * each[1]:+.1f} % ({100 * each[0]:+.1f} to {100 * each[2]:+.1f})" for name, each in drifts.items()
    )
    rises = all(low > DRIFT_LIMIT for low, _, _ in drifts.values())
    return Verdict("step time", f"{1000 * np.median(wall):.1f} ms; {measured}", not rises)


def drift(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the relative change from the first to the last of equally spaced values: low end, estimate, high end.

    The slope is Theil's and Sen's, the median slope of all pairs, which outliers hardly move, with its 95 % interval.
    """
    slope, _, low, high = theilslopes(values)
    scale = (len(values) - 1) / np.median(values)
    return float(low * scale), float(slope * scale), float(high * scale)
