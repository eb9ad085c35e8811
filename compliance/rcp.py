"""Reference convergence points (RCPs), and the test that a set of runs did not converge too fast.

The points are read from the data files of the installed mlperf-logging. The package is not imported, because its RCP
checker imports scipy. This module needs the standard library only.
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

from .benchmark import NAME, OFFICIAL_PACKAGE, OFFICIAL_VERSION, RUNS
from .findings import Rcp, RcpKind, RcpTest
from .score import normalization_factor, olympic_mean

# The rules require twice as many reference runs as submission runs.
REFERENCE_RUNS = 2 * RUNS
# 95 % quantiles of Student's t distribution by degrees of freedom: 18 or 20 reference runs + 8 of the submission - 2.
T_QUANTILES = {24: 1.710882079909428, 26: 1.7056179197592727}
# In samples. The official checker ends its bisection at this width.
_TOLERANCE = 1e-4
_INSTALL = f"pip install {OFFICIAL_PACKAGE}=={OFFICIAL_VERSION}"


class RcpDataError(Exception):
    """The reference convergence points cannot be read. The message names the package to install."""


@dataclass(frozen=True, slots=True)
class RcpPoint:
    """Convergence of the reference at one batch size.

    Attributes:
        gbs: global batch size in sequences.
        mean: olympic mean of the training samples to the target.
        sd: standard deviation (ddof 0) of the same samples, over all runs.
        n_ref: number of reference runs in the t-test: 18 at a published point, 20 between two.
    """

    gbs: int
    mean: float
    sd: float
    n_ref: int

    @property
    def limit(self) -> float:
        """Smallest olympic mean, in samples, that a one-sided t-test at 5 % does not call faster than the reference.

        The test uses eight runs of the submission, and the standard deviation of the reference for both sides.
        """
        n_submission = RUNS - 2
        quantile = T_QUANTILES[self.n_ref + n_submission - 2]
        return self.mean - quantile * self.sd * math.sqrt(1 / self.n_ref + 1 / n_submission)

    @property
    def minimum(self) -> float:
        """Smallest accepted olympic mean, in samples: the limit as the official checker computes it.

        The official checker bisects from 0 to the mean until the interval is below 1e-4, and takes the middle. Its
        result is up to 5e-5 away from the limit. The same bisection here gives the same verdict for every mean.
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
class PublishedPoint(RcpPoint):
    """A point published in mlperf-logging.

    Attributes:
        samples: training samples to the target of each of the 20 runs, ascending.
        learning_rate: base learning rate of the runs.
        warmup_steps: warm-up of the runs, in steps.
    """

    samples: tuple[int, ...]
    learning_rate: float
    warmup_steps: int


def read_points(path: Path) -> tuple[PublishedPoint, ...]:
    """Read an RCP file of mlperf-logging. Return its points, sorted by batch size. Raise `RcpDataError`."""
    try:
        entries = json.loads(path.read_bytes())
        return tuple(sorted(map(_parse_point, entries.values()), key=lambda point: point.gbs))
    except FileNotFoundError:
        raise RcpDataError(f"no reference convergence points in {path}: {_INSTALL}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RcpDataError(f"cannot read the reference convergence points in {path} ({error!r}): {_INSTALL}") from error


def _parse_point(entry: dict[str, Any]) -> PublishedPoint:
    gbs, setting = entry["BS"], entry["Hyperparams"]
    # The file format writes "Epochs" for every benchmark. For this benchmark the values are samples.
    samples = tuple(sorted(entry["Epochs to converge"]))
    if len(samples) != REFERENCE_RUNS or (olympic := olympic_mean(samples)) is None:
        raise ValueError(f"GBS {gbs} has {len(samples)} reference runs, expected {REFERENCE_RUNS} that converged")
    mean = sum(samples) / len(samples)
    return PublishedPoint(
        gbs=gbs,
        mean=olympic,
        sd=math.dist(samples, [mean] * len(samples)) / math.sqrt(len(samples)),
        n_ref=len(samples) - 2,
        samples=samples,
        learning_rate=setting["opt_base_learning_rate"],
        warmup_steps=setting["opt_learning_rate_warmup_samples"] // gbs,
    )


@cache
def full_points(ruleset: str) -> tuple[PublishedPoint, ...]:
    """Return every published point of a ruleset, sorted by batch size.

    Raises:
        RcpDataError: mlperf-logging is not installed, or its points cannot be read.
    """
    package = find_spec("mlperf_logging")
    if package is None or not package.submodule_search_locations:
        raise RcpDataError(f"mlperf-logging, the source of the reference convergence points, is missing: {_INSTALL}")
    folder = Path(package.submodule_search_locations[0])
    return read_points(folder / "rcp_checker" / f"training_{ruleset}" / f"rcps_{NAME}.json")


def pruned_points(ruleset: str) -> tuple[PublishedPoint, ...]:
    """Return the points that the official package checker uses. Raises the errors of `full_points`."""
    return prune(full_points(ruleset))


def prune(points: Sequence[PublishedPoint]) -> tuple[PublishedPoint, ...]:
    """Remove the points that make the test laxer than their neighbours do, as the official checker does.

    First, remove points with a smaller batch size than the point of the smallest mean. Then, in ascending order, remove
    each point whose mean is above the line between its neighbours. Removing a point does not reconsider earlier ones,
    so the result need not be convex.
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


def interpolate(gbs: int, low: RcpPoint, high: RcpPoint) -> RcpPoint:
    """Return the point between two others, with mean and standard deviation linear in the batch size."""

    def linear(at_low: float, at_high: float) -> float:
        return at_low + (at_high - at_low) / (high.gbs - low.gbs) * (gbs - low.gbs)

    return RcpPoint(gbs, linear(low.mean, high.mean), linear(low.sd, high.sd), REFERENCE_RUNS)


def find_point(gbs: int, points: Sequence[RcpPoint]) -> tuple[RcpKind, RcpPoint | None]:
    """Return the point that applies to a batch size among points sorted by it, and its kind.

    The kind is "exact" for a published point, "interpolated" between two, "smallest" below all points, and "missing"
    above all of them.
    """
    above = bisect_left([point.gbs for point in points], gbs)
    if above == len(points):
        return "missing", None
    if points[above].gbs == gbs:
        return "exact", points[above]
    if above == 0:
        return "smallest", points[0]
    return "interpolated", interpolate(gbs, points[above - 1], points[above])


def check_convergence(gbs: int, submission_mean: float | None, ruleset: str) -> Rcp:
    """Run both convergence tests on a set of runs.

    A mean equal to the minimum passes. Below the smallest point, the smallest point applies. A set that fails there,
    and every set above the largest point, gets "Missing RCP" from the official checker.

    ``submission_mean`` is the olympic mean of the samples to the target. Raise `RcpDataError`.
    """
    pruned, full = (_check_points(gbs, submission_mean, points(ruleset)) for points in (pruned_points, full_points))
    return Rcp(gbs, pruned, full)


def _check_points(gbs: int, submission_mean: float | None, points: Sequence[RcpPoint]) -> RcpTest:
    kind, point = find_point(gbs, points)
    if point is None:
        passed = None if submission_mean is None else False
        return RcpTest(kind, None, None, submission_mean, passed, None, None)
    if submission_mean is None:
        return RcpTest(kind, point.mean, point.minimum, None, None, None, None)
    margin = submission_mean - point.minimum
    factor = normalization_factor(point.mean, submission_mean)
    return RcpTest(kind, point.mean, point.minimum, submission_mean, margin >= 0, margin, factor)
