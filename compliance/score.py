"""The arithmetic of a score: olympic mean, the window of runs that counts, run-to-run variance, normalisation.

Pure functions of plain numbers, standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .benchmark import EVAL_INTERVAL_SAMPLES, RUNS, eval_interval_samples
from .findings import Spread, Variance


def olympic_mean(values: Sequence[float]) -> float | None:
    """Mean without the smallest and the largest value; the score of a set of runs (MLPerf Training rules).

    Args:
        values: three or more, in any unit; ``math.inf`` for a run that did not converge.

    Returns:
        The mean in the same unit. One ``math.inf`` is dropped as the slowest; with two or more the set has no score:
        None.

    Raises:
        ValueError: fewer than three values, or NaN among them.

    >>> olympic_mean([4.0, 1.0, 9.0, 3.0, 2.0])
    3.0
    >>> olympic_mean([4.0, 1.0, math.inf, 3.0, 2.0])
    3.0
    >>> olympic_mean([4.0, 1.0, math.inf, 3.0, math.inf]) is None
    True
    """
    if len(values) < 3:
        raise ValueError(f"an olympic mean needs at least 3 values, got {len(values)}")
    if any(math.isnan(value) for value in values):
        raise ValueError("an olympic mean of NaN has no meaning: pass math.inf for a run that did not converge")
    kept = sorted(values)[1:-1]
    mean = sum(kept) / len(kept)
    return mean if math.isfinite(mean) else None


def median_window(starts: Sequence[float], minutes: Sequence[float], runs: int = RUNS) -> tuple[int, ...]:
    """The runs that count when there are more than the rules ask for: the median of the windows of consecutive ones.

    The runs are put in order of their start; each window of ``runs`` neighbours has an olympic mean, infinite with two
    or more runs that did not converge. The window whose mean is the median counts. Of an even number of windows it is
    the slower of the two in the middle: whoever adds a run must not win the luckier window by it. Equal starts keep
    their order; of windows with equal means the earliest counts.

    Args:
        starts: start of each run, any unit.
        minutes: minutes of each run, ``math.inf`` if it did not converge.
        runs: runs per window.

    Returns:
        Indexes into the arguments, in order of start.

    Raises:
        ValueError: fewer runs than a window holds, or not as many starts as minutes, or NaN.

    >>> median_window([30.0, 10.0, 20.0, 40.0], [1.0, 2.0, 5.0, 3.0], runs=3)
    (2, 0, 3)
    """
    if len(starts) != len(minutes):
        raise ValueError(f"each run needs a start and minutes, got {len(starts)} starts and {len(minutes)} minutes")
    if len(starts) < runs:
        raise ValueError(f"a window holds {runs} runs, got {len(starts)}")
    if any(math.isnan(start) for start in starts):
        raise ValueError("a run that starts at NaN has no place among the others")
    order = sorted(range(len(starts)), key=lambda run: starts[run])
    windows = [tuple(order[first : first + runs]) for first in range(len(order) - runs + 1)]
    means = [olympic_mean([minutes[run] for run in window]) for window in windows]
    ranks = [math.inf if mean is None else mean for mean in means]
    median = sorted(ranks)[len(ranks) // 2]
    return windows[ranks.index(median)]


def spread(values: Sequence[float], quantum: float | None = None) -> Spread | None:
    """Mean, standard deviation and coefficient of variation, ddof 1.

    Args:
        values: finite, any unit.
        quantum: smallest step that a value can move by, in the same unit; None if there is none.

    Returns:
        None for fewer than two values, and for a mean of 0 or less, to which no deviation can be related.

    >>> spread([90.0, 100.0, 110.0], quantum=5.0)
    Spread(runs=3, mean=100.0, sd=10.0, cv_percent=10.0, minimum=90.0, maximum=110.0, quantum=5.0, quantum_percent=5.0)
    """
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    sd = math.dist(values, [mean] * len(values)) / math.sqrt(len(values) - 1)
    if not (mean > 0 and math.isfinite(mean + sd)):
        return None
    return Spread(
        runs=len(values),
        mean=mean,
        sd=sd,
        cv_percent=100 * sd / mean,
        minimum=min(values),
        maximum=max(values),
        quantum=quantum,
        quantum_percent=None if quantum is None else 100 * quantum / mean,
    )


def variance(
    samples: Sequence[float], minutes: Sequence[float], step: int | None, gbs: int | None, limit: float
) -> Variance:
    """Run-to-run variance of a set, and the sentences that say what the figures are.

    Args:
        samples: training samples to the target, one per run; ``math.inf`` for a run that did not converge, which is
            left out.
        minutes: minutes from run_start to run_stop, likewise.
        step: samples between the evaluations of these runs, the quantum of their samples; None if unknown.
        gbs: global batch size, above 0; None if unknown. It says whether the step is that of the closed division.
        limit: largest CV without a warning, in percent.
    """
    of_samples = spread(_finite(samples), step)
    of_minutes = spread(_finite(minutes))
    sentences = [
        "CV = standard deviation (ddof 1) / mean, over the converged runs, the fastest and the slowest included.",
        f"The limit of {limit:g} % is this project's own, not an MLPerf rule: MLPerf has none.",
    ]
    if of_samples is not None and of_samples.quantum is not None:
        steps = f"{of_samples.quantum:,}, the evaluation interval of these logs"
        if gbs is not None and step == eval_interval_samples(gbs):
            steps = f"CEIL({EVAL_INTERVAL_SAMPLES}/GBS) x GBS = {of_samples.quantum:,}"
        percent = f"{of_samples.quantum_percent:.1f} % of their mean"
        sentences.append(f"Samples move in steps of {steps}, which is {percent}: their CV is quantised.")
    return Variance(limit_percent=limit, definition=" ".join(sentences), samples=of_samples, minutes=of_minutes)


def normalization(reference_mean: float, submission_mean: float) -> float:
    """Factor on the score of a set that converged faster than the reference: the ratio of the means, at least 1.

    Both means in samples and above 0; a set that is slower gains nothing.

    >>> normalization(200_000.0, 160_000.0), normalization(200_000.0, 250_000.0)
    (1.25, 1.0)
    """
    return max(1.0, reference_mean / submission_mean)


def _finite(values: Sequence[float]) -> list[float]:
    """The runs that converged."""
    return [value for value in values if math.isfinite(value)]
