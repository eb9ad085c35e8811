"""Reference convergence points (RCPs) and the test that a set of runs did not converge too fast.

The points come from the data files of the installed mlperf-logging, which is never imported here: its RCP checker pulls
in scipy. Standard library only.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .benchmark import NAME, RULESETS, RUNS
from .findings import Rcp, RcpTest
from .score import normalization, olympic_mean

# The rules want twice as many reference runs as a submission has.
REFERENCE_RUNS = 2 * RUNS
CONFIDENCE = 0.95
# Samples; where the official checker stops searching for its minimum.
_TOLERANCE = 1e-4
_INSTALL = "pip install mlperf-logging==4.1.68"


class RcpDataError(Exception):
    """The reference convergence points cannot be read. The message says which package to install."""


@dataclass(frozen=True, slots=True)
class Point:
    """How the reference converges at one batch size.

    Attributes:
        gbs: global batch size in sequences.
        mean: olympic mean of the training samples to the target.
        sd: standard deviation (ddof 0) of all of them.
        n_ref: runs that the test reckons with.
    """

    gbs: int
    mean: float
    sd: float
    n_ref: int

    @property
    def limit(self) -> float:
        """Smallest olympic mean, in samples, that a one-sided t-test at 5 % does not call faster than the reference.

        Eight runs of the submission count, and their deviation is taken to be the reference's.
        """
        n_submission = RUNS - 2
        quantile = t_quantile(CONFIDENCE, self.n_ref + n_submission - 2)
        return self.mean - quantile * self.sd * math.sqrt(1 / self.n_ref + 1 / n_submission)

    @property
    def minimum(self) -> float:
        """Smallest accepted olympic mean, in samples: the limit as the official checker finds it, to the last digit.

        The checker halves the range from 0 to the mean until less than 1e-4 is left, and takes the middle. That is up
        to 5e-5 from the limit; halving as it does leaves no mean on which the two would disagree.
        """
        low, high, limit = 0.0, self.mean, self.limit
        while high - low > _TOLERANCE:
            middle = (low + high) / 2
            if middle > limit:
                high = middle
            else:
                low = middle
        return (low + high) / 2


@dataclass(frozen=True, slots=True)
class ReferencePoint(Point):
    """A published point.

    Attributes:
        samples: training samples to the target of each of the 20 runs, ascending.
        learning_rate: base learning rate of the runs.
        warmup_steps: their warm-up in steps.
    """

    samples: tuple[int, ...]
    learning_rate: float
    warmup_steps: int


def t_quantile(probability: float, df: int) -> float:
    """The t below which Student's distribution with ``df`` degrees of freedom has ``probability``.

    With the angle a = atan(t / sqrt(df)), P(-t..t) is a finite sum of powers of cos(a) (Abramowitz and Stegun 26.7.3
    and 26.7.4). Bisection of the angle down to neighbouring floats; right to about 1e-13.

    Args:
        probability: from 0.5 to below 1.
        df: whole and positive.

    Raises:
        ValueError: an argument out of its range.

    >>> round(t_quantile(0.95, 24), 6), round(t_quantile(0.95, 26), 6)
    (1.710882, 1.705618)
    """
    if not (0.5 <= probability < 1 and df >= 1):
        raise ValueError(f"t_quantile wants 0.5 <= probability < 1 and df >= 1, got {probability} and {df}")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _central_probability(middle, df) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return math.sqrt(df) * math.tan(high)


def _central_probability(angle: float, df: int) -> float:
    """P(-t..t) of Student's distribution at t = sqrt(df) tan(angle)."""
    odd = df % 2
    squared = math.cos(angle) ** 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(odd, df, 2):
        total += term
        term *= squared * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total


def read_points(path: Path) -> tuple[ReferencePoint, ...]:
    """The points of an RCP file of mlperf-logging, by batch size.

    Raises:
        RcpDataError: no such file, or not what a file of this benchmark holds.
    """
    try:
        entries = json.loads(path.read_bytes())
        return tuple(sorted(map(_point, entries.values()), key=lambda point: point.gbs))
    except FileNotFoundError:
        raise RcpDataError(f"no reference convergence points in {path}: {_INSTALL}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RcpDataError(f"cannot read the reference convergence points in {path} ({error!r}): {_INSTALL}") from error


def _point(entry: dict[str, Any]) -> ReferencePoint:
    gbs, setting = entry["BS"], entry["Hyperparams"]
    # "Epochs" is the file format's word for every benchmark; those of this one are samples.
    samples = tuple(sorted(entry["Epochs to converge"]))
    olympic = olympic_mean(samples)
    if olympic is None or len(samples) != REFERENCE_RUNS:
        raise ValueError(f"GBS {gbs} has {len(samples)} reference runs, expected {REFERENCE_RUNS} that converged")
    mean = sum(samples) / len(samples)
    return ReferencePoint(
        gbs=gbs,
        mean=olympic,
        sd=math.dist(samples, [mean] * len(samples)) / math.sqrt(len(samples)),
        n_ref=len(samples) - 2,
        samples=samples,
        learning_rate=setting["opt_base_learning_rate"],
        warmup_steps=setting["opt_learning_rate_warmup_samples"] // gbs,
    )


@cache
def full_points(ruleset: str) -> tuple[ReferencePoint, ...]:
    """Every published point of a ruleset, by batch size.

    Raises:
        ValueError: unknown ruleset.
        RcpDataError: the installed mlperf-logging lacks the points, or there is none.
    """
    if ruleset not in RULESETS:
        raise ValueError(f"unknown ruleset {ruleset!r}, expected one of {', '.join(RULESETS)}")
    package = find_spec("mlperf_logging")
    if package is None or not package.submodule_search_locations:
        raise RcpDataError(
            f"mlperf-logging, which holds the reference convergence points, is not installed: {_INSTALL}"
        )
    folder = Path(package.submodule_search_locations[0])
    return read_points(folder / "rcp_checker" / f"training_{ruleset}" / f"rcps_{NAME}.json")


def pruned_points(ruleset: str) -> tuple[ReferencePoint, ...]:
    """The points that the official package checker judges by. Raises as `full_points` does."""
    return prune(full_points(ruleset))


def prune(points: Sequence[ReferencePoint]) -> tuple[ReferencePoint, ...]:
    """Leave out the points that make the test laxer than their neighbours do, as the official checker does.

    First those with a smaller batch than the fastest-converging point; then, going up, each whose mean is above the
    line between its neighbours. It never goes back, so what is left need not be convex.

    Args:
        points: by batch size, at least one.
    """
    fastest = min(points, key=lambda point: point.mean)
    kept = [point for point in points if point.gbs >= fastest.gbs]
    middle = 1
    while middle < len(kept) - 1:
        if kept[middle].mean > interpolate(kept[middle].gbs, kept[middle - 1], kept[middle + 1]).mean:
            del kept[middle]
        else:
            middle += 1
    return tuple(kept)


def interpolate(gbs: int, low: Point, high: Point) -> Point:
    """The point between two others, mean and standard deviation linear in the batch size."""

    def linear(at_low: float, at_high: float) -> float:
        return at_low + (at_high - at_low) / (high.gbs - low.gbs) * (gbs - low.gbs)

    return Point(gbs, linear(low.mean, high.mean), linear(low.sd, high.sd), REFERENCE_RUNS)


def applicable(gbs: int, points: Sequence[Point]) -> tuple[str, Point | None]:
    """The point that a batch size is judged by, and how it was found (`findings.RcpTest.kind`).

    Args:
        gbs: global batch size, 1 or more.
        points: by batch size, at least one.

    Returns:
        ("exact", published), ("interpolated", between two), ("smallest", the first, for a smaller batch than any) or
        ("missing", None) for a larger one.

    Raises:
        ValueError: a batch size below 1.
    """
    if gbs < 1:
        raise ValueError(f"the global batch size must be 1 or more, got {gbs}")
    above = bisect_left([point.gbs for point in points], gbs)
    if above == len(points):
        return "missing", None
    if points[above].gbs == gbs:
        return "exact", points[above]
    if above == 0:
        return "smallest", points[0]
    return "interpolated", interpolate(gbs, points[above - 1], points[above])


def test(gbs: int, submission_mean: float | None, ruleset: str) -> Rcp:
    """Both convergence tests of a set of runs.

    A mean equal to the minimum passes. Below the smallest point the smallest applies; a set that fails there gets
    "Missing RCP" from the official checker, as does every set above the largest point.

    Args:
        gbs: global batch size of the runs, 1 or more.
        submission_mean: olympic mean of their samples to the target; None if there is none, and nothing to test.
        ruleset: "6.0.0" or "6.1.0".

    Raises:
        ValueError: a batch size below 1, a mean that is not positive and finite, an unknown ruleset.
        RcpDataError: as `full_points`.
    """
    if submission_mean is not None and not 0 < submission_mean < math.inf:
        raise ValueError(f"the olympic mean must be a positive number of samples, got {submission_mean}")
    pruned = _test(gbs, submission_mean, pruned_points(ruleset))
    return Rcp(gbs, pruned, _test(gbs, submission_mean, full_points(ruleset)))


def _test(gbs: int, submission_mean: float | None, points: Sequence[Point]) -> RcpTest:
    kind, point = applicable(gbs, points)
    if point is None:
        passed = None if submission_mean is None else False
        return RcpTest(kind, None, None, submission_mean, passed, None, None)
    if submission_mean is None:
        return RcpTest(kind, point.mean, point.minimum, None, None, None, None)
    margin = submission_mean - point.minimum
    factor = normalization(point.mean, submission_mean)
    return RcpTest(kind, point.mean, point.minimum, submission_mean, margin >= 0, margin, factor)
