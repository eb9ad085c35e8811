"""What a batch size entails, before a run is paid for: cadence, layouts, RCP minimum, learning rates, risk.

numpy is imported where it is used, so that importing this module costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .benchmark import RUNS, eval_interval_samples
from .findings import Rcp, RcpTest
from .rcp import ReferencePoint, full_points
from .rcp import test as rcp_test

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NODE_GPUS = 8
# What is tried when nothing is asked for: micro batches that submissions used, and up to 64 GPUs, because no batch
# above 64 sequences has an RCP.
_MICRO_BATCHES = (1, 2, 4)
_NODES = range(1, 9)
DRAWS = 100_000
_SEED = 20


@dataclass(frozen=True, slots=True)
class Layout:
    """Micro batch x data parallel x accumulation = GBS, in sequences, ranks and micro batches per step."""

    micro_batch: int
    data_parallel: int
    accumulation: int


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A published setting. gbs: the batch size it was published for; source: by whom, and how near that is."""

    learning_rate: float
    warmup_steps: int
    source: str
    gbs: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A probability from random draws, and the standard error that their number leaves it with."""

    probability: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How often ten runs of the reference would fail the RCP tests.

    Attributes:
        pruned, full: by the pruned and by the full points; None where there is no RCP.
        draws: sets of ten runs drawn.
        seed: of the random numbers.
        approximate: whether the runs are not those of this very batch size.
        note: where they come from, or why there are none.
    """

    pruned: Estimate | None
    full: Estimate | None
    draws: int
    seed: int
    approximate: bool
    note: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a global batch size entails.

    Attributes:
        gbs: global batch size in sequences.
        ruleset: "6.0.0" or "6.1.0".
        eval_interval_samples, eval_interval_steps: cadence of evaluations.
        layouts: ways to split the batch on 8-GPU nodes.
        rcp: the convergence tests with nothing to test.
        suggested: published learning rates and warm-ups, those of this batch size first.
        passes_pruned, passes_full: smallest olympic mean of eight runs that evaluations allow and the test accepts, in
            samples; None without an RCP.
        bootstrap: the risk that the reference itself fails.
    """

    gbs: int
    ruleset: str
    eval_interval_samples: int
    eval_interval_steps: int
    layouts: tuple[Layout, ...]
    rcp: Rcp
    suggested: tuple[Suggestion, ...]
    passes_pruned: float | None
    passes_full: float | None
    bootstrap: Bootstrap

    def to_json(self) -> dict[str, Any]:
        """The plan as `plan` prints it. "probability_of_failing" is that of the pruned test, which decides."""
        pruned = self.bootstrap.pruned
        return {
            "gbs": self.gbs,
            "ruleset": self.ruleset,
            "eval_interval_samples": self.eval_interval_samples,
            "eval_interval_steps": self.eval_interval_steps,
            "accumulation": [asdict(layout) for layout in self.layouts],
            "rcp": {name: _bounds(test) for name, test in (("pruned", self.rcp.pruned), ("full", self.rcp.full))},
            "suggested": [asdict(suggestion) for suggestion in self.suggested],
            "olympic_means_that_pass": {"pruned": self.passes_pruned, "full": self.passes_full},
            "probability_of_failing": None if pruned is None else pruned.probability,
            "bootstrap": asdict(self.bootstrap),
        }


def _bounds(test: RcpTest) -> dict[str, Any]:
    return {"mean": test.mean, "min": test.minimum, "kind": test.kind}


def make_plan(
    gbs: int, ruleset: str, micro_batch: int | None = None, data_parallel: int | None = None, draws: int = DRAWS
) -> Plan:
    """Work out what a batch size entails. The same arguments give the same plan.

    Args:
        gbs: global batch size in sequences.
        ruleset: "6.0.0" or "6.1.0".
        micro_batch: sequences per rank and micro batch; None to try some.
        data_parallel: ranks that split the batch; None to try some.
        draws: sets of ten reference runs to draw for the risk.

    Raises:
        ValueError: a number below 1, an unknown ruleset, a micro batch and data parallel size that do not divide GBS.
        rcp.RcpDataError: the installed mlperf-logging has no RCPs.
    """
    given = {"gbs": gbs, "micro_batch": micro_batch, "data_parallel": data_parallel, "draws": draws}
    for name, value in given.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    points = full_points(ruleset)
    rcp = rcp_test(gbs, None, ruleset)
    return Plan(
        gbs=gbs,
        ruleset=ruleset,
        eval_interval_samples=eval_interval_samples(gbs),
        eval_interval_steps=eval_interval_samples(gbs) // gbs,
        layouts=layouts(gbs, micro_batch, data_parallel),
        rcp=rcp,
        suggested=suggestions(gbs, points),
        passes_pruned=lowest_passing(gbs, rcp.pruned.minimum),
        passes_full=lowest_passing(gbs, rcp.full.minimum),
        bootstrap=bootstrap(rcp, points, draws),
    )


def layouts(gbs: int, micro_batch: int | None, data_parallel: int | None) -> tuple[Layout, ...]:
    """Ways to split a batch whose product is GBS exactly, on one to eight nodes of 8 GPUs.

    Each GPU is a data-parallel rank, unless GBS has too few factors of two: then a node forms 4, 2 or 1 ranks, of 2, 4
    or 8 GPUs that share each sequence (context parallel).

    Raises:
        ValueError: a given size leaves no way.

    >>> layouts(16, None, None)[1]
    Layout(micro_batch=2, data_parallel=8, accumulation=1)
    """
    node_ranks = math.gcd(gbs // (micro_batch or 1), NODE_GPUS)
    ranks = [node_ranks * nodes for nodes in _NODES] if data_parallel is None else [data_parallel]
    micro_batches = _MICRO_BATCHES if micro_batch is None else (micro_batch,)
    found = tuple(
        Layout(micro, parallel, gbs // (micro * parallel))
        for parallel in ranks
        for micro in micro_batches
        if gbs % (micro * parallel) == 0
    )
    if not found:
        raise ValueError(
            f"GBS must be micro batch x data parallel x accumulation, whole numbers: got GBS {gbs}, micro batch "
            f"{micro_batch or 'any'}, data parallel {data_parallel or 'any'}. Choose sizes whose product divides {gbs}"
        )
    return found


# Submissions to round v6.0, as their public logs say.
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


def suggestions(gbs: int, points: Sequence[ReferencePoint]) -> tuple[Suggestion, ...]:
    """Published settings of this batch size, then those of the nearest batch sizes below and above.

    Nothing is interpolated: a setting of another batch size says so in its source.
    """
    reference = "the reference runs behind the RCP (mlperf-logging)"
    published = [Suggestion(point.learning_rate, point.warmup_steps, reference, point.gbs) for point in points]
    published += _SUBMITTED
    sizes = {suggestion.gbs for suggestion in published}
    below = max((size for size in sizes if size < gbs), default=None)
    above = min((size for size in sizes if size > gbs), default=None)
    exact = [suggestion for suggestion in published if suggestion.gbs == gbs]
    near = [
        Suggestion(
            suggestion.learning_rate,
            suggestion.warmup_steps,
            f"{suggestion.source} at GBS {size}, the nearest published {side} {gbs}: a start for a search at GBS {gbs}",
            size,
        )
        for size, side in ((below, "below"), (above, "above"))
        for suggestion in published
        if size is not None and suggestion.gbs == size
    ]
    return (*exact, *near)


def lowest_passing(gbs: int, minimum: float | None) -> float | None:
    """The smallest mean of eight multiples of the evaluation interval that is not below ``minimum``, in samples.

    >>> lowest_passing(64, 290_308.3)
    291840.0
    """
    if minimum is None:
        return None
    step = eval_interval_samples(gbs) / (RUNS - 2)
    return math.ceil(minimum / step) * step


def bootstrap(rcp: Rcp, points: Sequence[ReferencePoint], draws: int) -> Bootstrap:
    """The probability that ten runs of the reference fail the tests, by drawing them from its published runs.

    Args:
        rcp: the tests of the batch size, of which the minima are used.
        points: the published runs, by batch size.
        draws: sets of ten runs. The same number gives the same result.
    """
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
    gbs: int, points: Sequence[ReferencePoint], shape: tuple[int, int], generator: np.random.Generator
) -> tuple[NDArray[np.float64], str]:
    """Draw samples to the target of reference runs, with replacement, and say where they come from.

    At a batch size without runs, a run is made of the two of equal rank at the published sizes around it. When each met
    the target is known to one evaluation interval, so a moment within it is drawn, the same fraction for both; the
    moments are interpolated linearly in GBS, and the next evaluation is what the run would have logged. (The logged
    counts themselves, interpolated and rounded up, would be half an interval too many at GBS 24 and 48.)

    Args:
        gbs: global batch size, at most the largest published.
        points: the published runs, by batch size.
        shape: of the result.
        generator: of the random numbers.

    Returns:
        Training samples of the given shape, and a sentence.
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
