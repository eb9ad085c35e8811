"""Plan a global batch size: evaluation interval, batch layouts, RCP minimum, published settings, risk of failing.

The bootstrap imports numpy on its first call, so that importing this module is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Interval, MinLen

from .benchmark import EVAL_INTERVAL_SAMPLES, RUNS, Ruleset, eval_interval_samples
from .findings import Rcp, RcpKind, RcpTest
from .rcp import PublishedPoint, check_convergence, full_points

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NODE_GPUS = 8
# Sizes to try: the micro batches of published submissions, and up to 64 GPUs, because no batch size above 64 has an
# RCP.
_MICRO_BATCHES = (1, 2, 4)
_NODES = range(1, 9)
DRAWS = 100_000
_SEED = 20

Positive = Annotated[int, Ge(1)]
Probability = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class Layout:
    """Sequences per micro batch x data-parallel ranks x micro batches per step: a split of the global batch."""

    micro_batch: Positive
    data_parallel: Positive
    accumulation: Positive


@dataclass(frozen=True, slots=True)
class ReferenceBounds:
    """Samples to target by the reference convergence point (RCP) of one test.

    Attributes:
        mean: mean of the reference; None if kind is missing.
        min: smallest accepted mean; None if kind is missing.
    """

    mean: float | None
    min: float | None
    kind: RcpKind


@dataclass(frozen=True, slots=True)
class PlanRcp:
    """Bounds of both RCP tests.

    Attributes:
        pruned: the test that the official package checker decides by.
    """

    pruned: ReferenceBounds
    full: ReferenceBounds


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A published setting.

    Attributes:
        source: publisher of the setting, and its distance from the planned batch size.
        gbs: batch size that the setting was published for.
    """

    learning_rate: Annotated[float, Gt(0)]
    warmup_steps: Annotated[int, Ge(0)]
    source: str
    gbs: Positive


@dataclass(frozen=True, slots=True)
class PassingMeans:
    """Smallest olympic means, in samples, that evaluations allow and the test accepts; None without an RCP."""

    pruned: float | None
    full: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A probability estimated from random draws, and the standard error of their number."""

    probability: Probability
    standard_error: Annotated[float, Ge(0)]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Probability that ten runs of the reference fail the RCP tests.

    Attributes:
        pruned, full: by the pruned and by the full points; None without an RCP.
        approximate: true if the runs drawn are not of exactly this batch size.
        note: origin of the runs, or why there are none.
    """

    pruned: Estimate | None
    full: Estimate | None
    draws: Positive
    seed: int
    approximate: bool
    note: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Consequences of a global batch size, as printed by ``plan --format json``.

    Attributes:
        gbs: global batch size in sequences.
        eval_interval_samples: training samples between evaluations, CEIL(12288 / gbs) x gbs.
        eval_interval_steps: optimizer steps between evaluations.
        accumulation: ways to split the batch on nodes of 8 GPUs.
        suggested: published settings, those of this batch size first.
        probability_of_failing: of ten runs of the reference, by the pruned test; None without an RCP.
    """

    gbs: Positive
    ruleset: Ruleset
    eval_interval_samples: Annotated[int, Ge(EVAL_INTERVAL_SAMPLES)]
    eval_interval_steps: Positive
    accumulation: Annotated[tuple[Layout, ...], MinLen(1)]
    rcp: PlanRcp
    suggested: Annotated[tuple[Suggestion, ...], MinLen(1)]
    olympic_means_that_pass: PassingMeans
    probability_of_failing: Probability | None
    bootstrap: Bootstrap


def make_plan(gbs: int, ruleset: str, draws: int = DRAWS) -> Plan:
    """Plan a global batch size in sequences, with ``draws`` sets of ten reference runs. The same arguments, same plan.

    Raises:
        RcpDataError: the RCPs of mlperf-logging cannot be read.
    """
    points = full_points(ruleset)
    rcp = check_convergence(gbs, None, ruleset)
    risk = bootstrap(rcp, points, draws)
    return Plan(
        gbs=gbs,
        ruleset=Ruleset(ruleset),
        eval_interval_samples=eval_interval_samples(gbs),
        eval_interval_steps=eval_interval_samples(gbs) // gbs,
        accumulation=layouts(gbs),
        rcp=PlanRcp(_bounds(rcp.pruned), _bounds(rcp.full)),
        suggested=suggestions(gbs, points),
        olympic_means_that_pass=PassingMeans(*(lowest_passing(gbs, test.minimum) for test in (rcp.pruned, rcp.full))),
        probability_of_failing=None if risk.pruned is None else risk.pruned.probability,
        bootstrap=risk,
    )


def _bounds(test: RcpTest) -> ReferenceBounds:
    return ReferenceBounds(test.mean, test.minimum, test.kind)


def layouts(gbs: int) -> tuple[Layout, ...]:
    """Return the ways to split a batch on one to eight nodes of 8 GPUs; their product is exactly GBS.

    Each GPU is a data-parallel rank, unless GBS has too few factors of two. Then a node forms 4, 2 or 1 ranks, of 2, 4
    or 8 GPUs that share each sequence (context parallel).

    >>> layouts(16)[1]
    Layout(micro_batch=2, data_parallel=8, accumulation=1)
    """
    node_ranks = math.gcd(gbs, NODE_GPUS)
    return tuple(
        Layout(micro_batch, node_ranks * nodes, gbs // (micro_batch * node_ranks * nodes))
        for nodes in _NODES
        for micro_batch in _MICRO_BATCHES
        if gbs % (micro_batch * node_ranks * nodes) == 0
    )


# Settings of submissions to round v6.0, from their public logs.
_SUBMISSION = "a submission to MLPerf Training v6.0"
_SUBMITTED = (
    Suggestion(4e-4, 128, _SUBMISSION, 16),
    Suggestion(5e-4, 256, _SUBMISSION, 24),
    Suggestion(8e-4, 192, _SUBMISSION, 32),
    Suggestion(5e-4, 256, _SUBMISSION, 32),
    Suggestion(5e-4, 256, _SUBMISSION, 48),
    Suggestion(5.2e-4, 32, _SUBMISSION, 64),
    Suggestion(1e-3, 192, _SUBMISSION, 64),
)


def suggestions(gbs: int, points: Sequence[PublishedPoint]) -> tuple[Suggestion, ...]:
    """Return the published settings of this batch size, then those of the nearest sizes below and above.

    Nothing is interpolated. The source of a setting of another batch size names that size.
    """
    reference = "the reference runs behind the RCP (mlperf-logging)"
    published = [Suggestion(point.learning_rate, point.warmup_steps, reference, point.gbs) for point in points]
    published += _SUBMITTED
    sizes = {suggestion.gbs for suggestion in published}
    below = max((size for size in sizes if size < gbs), default=None)
    above = min((size for size in sizes if size > gbs), default=None)
    exact = [suggestion for suggestion in published if suggestion.gbs == gbs]
    start = f"a start for a search at GBS {gbs}"
    near = [
        replace(each, source=f"{each.source} at GBS {size}, the nearest published {side} {gbs}: {start}")
        for size, side in ((below, "below"), (above, "above"))
        for each in published
        if each.gbs == size
    ]
    return (*exact, *near)


def lowest_passing(gbs: int, minimum: float | None) -> float | None:
    """Return the smallest mean of eight multiples of the evaluation interval that is ``minimum`` or more, in samples.

    >>> lowest_passing(64, 290_308.3)
    291840.0
    """
    if minimum is None:
        return None
    # The olympic mean is over eight runs, each a multiple of the interval.
    resolution = eval_interval_samples(gbs) / (RUNS - 2)
    return math.ceil(minimum / resolution) * resolution


def bootstrap(rcp: Rcp, points: Sequence[PublishedPoint], draws: int) -> Bootstrap:
    """Estimate the probability that ten runs of the reference fail the tests, by resampling its published runs."""
    import numpy as np

    gbs = rcp.global_batch_size
    if gbs > points[-1].gbs:
        note = f"No RCP above GBS {points[-1].gbs}: no result at GBS {gbs} can pass, whatever its convergence."
        return Bootstrap(None, None, draws, _SEED, False, note)
    runs, note = draw_runs(gbs, points, (draws, RUNS), np.random.default_rng(_SEED))
    means = np.sort(runs, axis=1)[:, 1:-1].mean(axis=1)
    exact = any(point.gbs == gbs for point in points)
    note += " The standard error is that of the draws; what twenty runs leave unknown is not in it."
    return Bootstrap(_estimate(means, rcp.pruned), _estimate(means, rcp.full), draws, _SEED, not exact, note)


def _estimate(means: NDArray[np.float64], test: RcpTest) -> Estimate | None:
    if test.minimum is None:
        return None
    probability = float((means < test.minimum).mean())
    return Estimate(probability, math.sqrt(probability * (1 - probability) / len(means)))


def draw_runs(
    gbs: int, points: Sequence[PublishedPoint], shape: tuple[int, int], generator: np.random.Generator
) -> tuple[NDArray[np.float64], str]:
    """Draw samples to target of reference runs, with replacement.

    At a batch size without published runs, interpolate between the two runs of equal rank at the sizes around it. Each
    run met the target somewhere within its last evaluation interval. Draw that moment, the same fraction of the
    interval for both runs, interpolate the moments linearly in GBS, and round up to the next evaluation. Interpolating
    the logged counts and rounding up would be half an interval too many at GBS 24 and 48.

    Returns:
        Training samples in the given shape, and a sentence about the origin of the runs.
    """
    import numpy as np

    above = next(point for point in points if point.gbs >= gbs)
    below = max((point for point in points if point.gbs <= gbs), key=lambda point: point.gbs, default=above)
    rank = generator.integers(len(above.samples), size=shape)
    if above is below:
        note = f"Drawn with replacement from the {len(above.samples)} reference runs at GBS {above.gbs}"
        note += "." if above.gbs == gbs else f", the smallest there are: there are none at GBS {gbs}."
        return np.array(above.samples, dtype=np.float64)[rank], note
    fraction = generator.random(shape)
    early, late = (
        np.array(point.samples)[rank] - fraction * eval_interval_samples(point.gbs) for point in (below, above)
    )
    moment = early + (late - early) * (gbs - below.gbs) / (above.gbs - below.gbs)
    interval = eval_interval_samples(gbs)
    note = (
        f"There are no reference runs at GBS {gbs}: they are interpolated between the runs of equal rank at GBS "
        f"{below.gbs} and {above.gbs}, each with its target met anywhere in its last evaluation interval, and end at "
        f"the next evaluation. That spreads them a little wider than the RCP reckons: the probability errs upwards."
    )
    return np.ceil(moment / interval) * interval, note
