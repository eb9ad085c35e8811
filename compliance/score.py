"""The arithmetic of a score: olympic mean, median window, run-to-run variance, normalization.

Pure functions of plain numbers. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .benchmark import EVAL_INTERVAL_SAMPLES, RUNS, eval_interval_samples
from .findings import Spread, Variance


def olympic_mean(values: Sequence[float]) -> float | None:
    """Return the mean without the smallest and the largest value, the score of a set (MLPerf Training rules).

    ``values`` are three or more, ``math.inf`` for a run that did not converge. One ``math.inf`` is dropped as the
    slowest run. With two or more the set has no score, and the result is None.

    >>> olympic_mean([4.0, 1.0, 9.0, 3.0, 2.0])
    3.0
    >>> olympic_mean([4.0, 1.0, math.inf, 3.0, 2.0])
    3.0
    >>> olympic_mean([4.0, 1.0, math.inf, 3.0, math.inf]) is None
    True
    """
    kept = sorted(values)[1:-1]
    mean = sum(kept) / len(kept)
    return mean if math.isfinite(mean) else None


def median_window(starts: Sequence[float], minutes: Sequence[float], runs: int = RUNS) -> tuple[int, ...]:
    """Return the scored runs of a set that has more runs than the rules require.

    Sort the runs by start. Each window of ``runs`` consecutive runs has an olympic mean, infinite with two or more
    runs that did not converge. The window with the median mean is scored. Of an even number of windows, take the
    slower of the two in the middle, so that an extra run cannot buy a faster window. Equal starts keep their order,
    and of windows with equal means the earliest is taken.

    Args:
        starts: start of each run, in any unit.
        minutes: minutes of each run; ``math.inf`` if it did not converge.
        runs: runs per window, at most as many as there are.

    Returns:
        Indexes into the arguments, in order of start.

    >>> median_window([30.0, 10.0, 20.0, 40.0], [1.0, 2.0, 5.0, 3.0], runs=3)
    (2, 0, 3)
    """
    order = sorted(range(len(starts)), key=lambda run: starts[run])
    windows = [tuple(order[first : first + runs]) for first in range(len(order) - runs + 1)]
    means = [olympic_mean([minutes[run] for run in window]) for window in windows]
    ranks = [math.inf if mean is None else mean for mean in means]
    median = sorted(ranks)[len(ranks) // 2]
    return windows[ranks.index(median)]


def spread(values: Sequence[float], quantum: float | None = None) -> Spread | None:
    """Return mean, standard deviation (ddof 1) and coefficient of variation of finite values in any unit.

    ``quantum`` is their resolution. None for fewer than two values, and for a mean of 0 or less: the CV is undefined.

    >>> spread([90.0, 100.0, 110.0], quantum=5.0)
    Spread(runs=3, mean=100.0, sd=10.0, cv_percent=10.0, minimum=90.0, maximum=110.0, quantum=5.0, quantum_percent=5.0)
    """
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    sd = math.dist(values, [mean] * len(values)) / math.sqrt(len(values) - 1)
    if not (mean > 0 and math.isfinite(mean + sd)):
        return None
    if min(values) == max(values):
        mean, sd = values[0], 0.0  # a floating-point sum leaves a trace of a deviation
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
    samples: Sequence[float],
    minutes: Sequence[float],
    interval: int | None,
    gbs: int | None,
    limit_percent: float,
) -> Variance:
    """Return the run-to-run variance of a set, with the definition of its figures.

    Args:
        samples: training samples to the target of each run; ``math.inf``, which is excluded, without convergence.
        minutes: minutes from run_start to run_stop of each run; ``math.inf`` as above.
        interval: samples between evaluations, the resolution of ``samples``; None if unknown.
        gbs: decides which definition of the interval is stated.
        limit_percent: largest CV without a warning, in percent.
    """
    of_samples = spread([value for value in samples if math.isfinite(value)], interval)
    of_minutes = spread([value for value in minutes if math.isfinite(value)])
    sentences = [
        "CV = standard deviation (ddof 1) / mean, over the converged runs, the fastest and the slowest included.",
        f"The limit of {limit_percent:g} % is this project's own, not an MLPerf rule: MLPerf has none.",
    ]
    if of_samples is not None and of_samples.quantum is not None:
        stated = f"{of_samples.quantum:,}, the evaluation interval of these logs"
        if gbs is not None and interval == eval_interval_samples(gbs):
            stated = f"CEIL({EVAL_INTERVAL_SAMPLES}/GBS) x GBS = {of_samples.quantum:,}"
        percent = f"{of_samples.quantum_percent:.1f} % of their mean"
        sentences.append(f"Samples move in steps of {stated}, which is {percent}: their CV is quantised.")
    return Variance(limit_percent, " ".join(sentences), of_samples, of_minutes)


def normalization_factor(reference_mean: float, submission_mean: float) -> float:
    """Return the factor on the score of a set that converged faster than the reference.

    The factor is the ratio of the two means (in samples, above 0), and at least 1: a slower set gains nothing.

    >>> normalization_factor(200_000.0, 160_000.0), normalization_factor(200_000.0, 250_000.0)
    (1.25, 1.0)
    """
    return max(1.0, reference_mean / submission_mean)
