"""The loss curve of a run: where it will reach the target, and its plot in characters. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, float]  # training samples, loss in nats per token
_OLDEST = 0.1  # losses before this share of the run so far say nothing about its end
_BINS = 16
_EXPONENTS = np.linspace(0.05, 1.0, 20)
_AGREEMENT = 2.0


def samples_to_target(train: Sequence[Point], evaluations: Sequence[Point], target: float) -> float | None:
    """Extrapolate the loss curve to the target with a power law, L = a + b n^-c.

    The training losses give the form. They are averaged in bins of equal width in log n, and shifted by the median
    difference of the evaluations from them.

    Returns:
        Samples at which the evaluation loss reaches the target; None where the fit means nothing. It needs two
        evaluations, a curve that falls below the target, and an earlier fit, to the first 80 % of the samples, that
        agrees within a factor of 2.
    """
    if len(evaluations) < 2 or not train:
        return None
    n, loss = np.array(train, dtype=float).T
    reach = _extrapolate(n, loss, evaluations, target)
    earlier = n <= 0.8 * n[-1]
    before = _extrapolate(n[earlier], loss[earlier], evaluations, target)
    if reach is None or before is None or max(reach / before, before / reach) > _AGREEMENT:
        return None
    return reach


def _extrapolate(
    n: NDArray[np.float64], loss: NDArray[np.float64], evaluations: Sequence[Point], target: float
) -> float | None:
    if len(n) < 4:
        return None
    now = n[-1]
    recent = n > _OLDEST * now
    x, loss = np.log(n[recent] / now), loss[recent]
    if len(x) < 4:
        return None
    bins = np.minimum((_BINS * (1 - x / x[0])).astype(int), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    filled = counts > 0
    x, loss = (np.bincount(bins, values, _BINS)[filled] / counts[filled] for values in (x, loss))
    shifts = [value - np.interp(math.log(m / now), x, loss) for m, value in evaluations if x[0] <= math.log(m / now)]
    loss = loss + (np.median(shifts) if shifts else 0.0)
    weights = np.sqrt(counts[filled])
    fits = []
    for c in _EXPONENTS:
        b, a = np.polyfit(power := np.exp(-c * x), loss, 1, w=weights)
        fits.append((float(np.sum((weights * (a + b * power - loss)) ** 2)), c, b, a))
    _, c, b, a = min(fits)
    return float(now * (b / (target - a)) ** (1 / c)) if b > 0 and a < target else None


def plot(train: Sequence[Point], evaluations: Sequence[Point], target: float, width: int, height: int = 12) -> str:
    """Plot training losses (.), evaluations (o) and the target (-) in ASCII, loss over samples."""
    losses = [loss for _, loss in (*train, *evaluations)]
    last = max(n for n, _ in (*train, *evaluations))
    low, high = min(target, *losses), max(target, *losses)
    columns = max(10, width - 9)

    def row(loss: float) -> int:
        return round((high - loss) / ((high - low) or 1.0) * (height - 1))

    rows = [[" "] * columns for _ in range(height)]
    rows[row(target)] = ["-"] * columns
    for mark, points in ((".", train), ("o", evaluations)):
        for n, loss in points:
            rows[row(loss)][round(n / last * (columns - 1))] = mark
    labels = {0: f"{high:.2f}", height - 1: f"{low:.2f}", row(target): f"{target:.2f}"}
    lines = [f"{labels.get(i, ''):>7} |{''.join(marks).rstrip()}" for i, marks in enumerate(rows)]
    legend = ". training  o evaluation"
    return "\n".join([*lines, f"{'0':>9}{legend:^{max(columns - 14, 0)}}{f'{last:,} samples':>14}".rstrip()])
