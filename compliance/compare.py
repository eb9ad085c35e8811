"""Two judged sets of runs, A before a change and B after it: is B faster, in samples and in minutes, beyond noise?

Pure. Runs that break rules are compared like any others, and named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .benchmark import DESCRIPTION, DISCLOSURE, OPTIONAL, RUNS
from .findings import RunSummary, Severity, Spread, Status
from .judge import JudgedRun, judge_set
from .rules.rule import quote_json
from .run import MAX_PLAUSIBLE, Run, comparison_key
from .welch import CONFIDENCE, Measure, in_percent, measure, plain

CONFIDENCES = (0.5, 0.9999)
_DESCRIBED = (*DESCRIPTION, *DISCLOSURE, *OPTIONAL)
# They belong to one run, not to a set; in some logs train_samples is how far the run came.
_OF_ONE_RUN = frozenset({"seed", "train_samples", "cache_clear"})
_DEFINITIONS = (
    "Minutes: run_start to the first evaluation that meets the target. sd and CV with ddof 1. Percentages are of A's "
    "mean, taken as exact.",
    "Smallest difference that ten runs each would show four times in five: (t(0.5 + confidence / 2) + t(0.8)) x "
    "sqrt((sd_A^2 + sd_B^2) / 10), t the quantiles of Student's t at Welch's degrees of freedom for ten runs each.",
)


class NotComparableError(ValueError):
    """The sets, or the confidence, allow no comparison; says what is missing."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that is broken, and by which logs; none are named if it is the set that breaks it."""

    rule: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two sets.

    Attributes:
        name: the folder or log as the user named it.
        runs: how many logs.
        converged: how many of them met the target.
        left_out: the logs of the others.
        broken: rules of weight error; those on convergence against the reference only for ten runs, which they are for.
        step: samples between evaluations, the least that samples to target can move by; None if not one number.
    """

    name: str
    runs: int
    converged: int
    left_out: tuple[str, ...]
    broken: tuple[Broken, ...]
    step: int | None


@dataclass(frozen=True, slots=True)
class Setting:
    """A logged setting that is not the same in both sets: the values of each as JSON, none where it is not logged."""

    key: str
    a: tuple[str, ...]
    b: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets side by side.

    Attributes:
        ruleset: that both were judged by.
        confidence: of the intervals; a p-value below 1 - confidence is a difference.
        a, b: the sets.
        settings: logged settings that differ between them.
        samples, minutes: to the target.
        warnings: why the figures may mislead.
        notes: what the figures are.
    """

    ruleset: str
    confidence: float
    a: Side
    b: Side
    settings: tuple[Setting, ...]
    samples: Measure
    minutes: Measure
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def compare(
    a: Sequence[JudgedRun],
    b: Sequence[JudgedRun],
    ruleset: str,
    *,
    names: tuple[str, str] = ("A", "B"),
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compares two sets of judged runs.

    Args:
        a: runs before a change; at least two that met the target.
        b: runs after it, likewise. The sets need not be of one size.
        ruleset: that they were judged by.
        names: of the sets, for people.
        confidence: of the intervals, 0.5 to 0.9999.

    Raises:
        NotComparableError: too few runs met the target, or no such confidence.
    """
    if not CONFIDENCES[0] <= confidence <= CONFIDENCES[1]:
        raise NotComparableError(f"confidence {confidence:g}: expected {CONFIDENCES[0]} to {CONFIDENCES[1]}; try 0.95")
    side_a, side_b = _side(names[0], a, ruleset), _side(names[1], b, ruleset)
    for label, side in (("A", side_a), ("B", side_b)):
        if side.converged < 2:
            met = f"{side.converged} of {side.runs} runs met the target"
            raise NotComparableError(f"{label} ({side.name}): {met}; expected 2 or more in each set: add runs")
    runs_a, runs_b = [each.summary for each in a], [each.summary for each in b]
    samples = measure(
        "samples", _samples(runs_a), _samples(runs_b), confidence, steps=(_float(side_a.step), _float(side_b.step))
    )
    return Comparison(
        ruleset=ruleset,
        confidence=confidence,
        a=side_a,
        b=side_b,
        settings=tuple(_settings([each.run for each in a], [each.run for each in b])),
        samples=samples,
        minutes=measure("minutes", _minutes(runs_a), _minutes(runs_b), confidence),
        warnings=(*_left_out(side_a, side_b), *_unlike_or_shared(runs_a, runs_b)),
        notes=(*_grid(side_a, side_b, samples), *_batches(side_a, side_b, runs_a, runs_b), *_DEFINITIONS),
    )


def _met_target(run: RunSummary) -> bool:
    """As for a set's score: an aborted run did not converge, and an evaluation at no samples or less is nonsense."""
    samples = run.samples_to_target
    return samples is not None and 0 < samples < MAX_PLAUSIBLE and run.status is not Status.NOT_CONVERGED


def _samples(runs: Sequence[RunSummary]) -> list[float]:
    """Samples to target, infinite where it was not met."""
    return [float(run.samples_to_target or 0) if _met_target(run) else math.inf for run in runs]


def _minutes(runs: Sequence[RunSummary]) -> list[float]:
    """Minutes to target, infinite where it was not met, and where the clock is missing or runs back."""
    known = [run.minutes_to_target or 0.0 if _met_target(run) else 0.0 for run in runs]
    return [minutes if 0 < minutes < MAX_PLAUSIBLE else math.inf for minutes in known]


def _float(step: int | None) -> float | None:
    return None if step is None else float(step)


def _side(name: str, judged: Sequence[JudgedRun], ruleset: str) -> Side:
    # A comparison is of as many runs as there are: none are missing, and none outside a window.
    result, of_set = judge_set(judged, ruleset, required_runs=len(judged))
    files: dict[str, list[str]] = {}
    for finding in (*(each for run in judged for each in run.findings), *of_set):
        if finding.severity is Severity.ERROR and (len(judged) == RUNS or not finding.rule.startswith("rcp-")):
            files.setdefault(finding.rule, []).extend([finding.file] if finding.file else [])
    left_out = tuple(each.summary.file for each in judged if not _met_target(each.summary))
    return Side(
        name=name,
        runs=len(judged),
        converged=len(judged) - len(left_out),
        left_out=left_out,
        broken=tuple(Broken(rule, tuple(dict.fromkeys(found))) for rule, found in files.items()),
        step=result.eval_interval_samples,
    )


def _settings(a: Sequence[Run], b: Sequence[Run]) -> Iterator[Setting]:
    """What the logs say of the runs and differs: known settings, then others that are one value throughout each set."""
    others = {key for run in (*a, *b) for key in _announced(run)}.difference(_DESCRIBED)
    for key in (*_DESCRIBED, *sorted(others)):
        of_a, of_b = _values(key, a), _values(key, b)
        one_each = len(of_a) <= 1 and len(of_b) <= 1
        if key not in _OF_ONE_RUN and (key in _DESCRIBED or one_each) and set(of_a) != set(of_b):
            yield Setting(key, tuple(of_a.values()), tuple(of_b.values()))


def _announced(run: Run) -> Iterator[str]:
    """Keys that are logged before the clock starts, and mark no start or end."""
    start = math.inf if run.run_start is None else run.run_start.line
    return (record.key for record in run.records if record.line < start and record.event == "POINT_IN_TIME")


def _values(key: str, runs: Sequence[Run]) -> dict[str, str]:
    """Distinct values of a setting as people read them, by what makes them distinct."""
    records = [record for run in runs if (record := run.first(key)) is not None]
    return {comparison_key(record.value): quote_json(record.value) for record in records}


def _left_out(a: Side, b: Side) -> Iterator[str]:
    for label, side in (("A", a), ("B", b)):
        if side.left_out:
            missed = f"{len(side.left_out)} of {side.runs} runs of {label} did not meet the target and are left out"
            yield f"{missed}: a set without its slowest runs looks faster than it is."


def _unlike_or_shared(a: Sequence[RunSummary], b: Sequence[RunSummary]) -> Iterator[str]:
    """Targets of their own make two sets incomparable; what they share makes them dependent."""
    target_a, target_b = (", ".join(f"{each:g}" for each in sorted({run.target for run in runs})) for runs in (a, b))
    if target_a != target_b:
        yield f"The target is {target_a} in A and {target_b} in B: what it takes to meet them is not comparable."
    seeds = _shared(a, b, lambda run: run.seed)
    if seeds:
        yield f"{_of_b(seeds)} the seed of a run of A ({_pairs(seeds)}): not independent, as the test takes them to be."
    copies = _shared(a, b, lambda run: tuple((each.samples, each.loss) for each in run.evaluations) or None)
    if copies:
        same = f"{_of_b(copies)} the evaluation losses of a run of A to the last digit ({_pairs(copies)})"
        yield f"{same}: the same log, a copy, or the same seed and arithmetic; not independent."


def _shared(
    a: Sequence[RunSummary], b: Sequence[RunSummary], what: Callable[[RunSummary], object]
) -> list[tuple[str, str]]:
    """Runs of B that have something, other than None, in common with one of A: both files."""
    owners = {value: run.file for run in reversed(a) if (value := what(run)) is not None}
    return [(run.file, owners[what(run)]) for run in b if what(run) in owners]


def _of_b(pairs: Sequence[object]) -> str:
    return "1 run of B has" if len(pairs) == 1 else f"{len(pairs)} runs of B have"


def _pairs(pairs: Sequence[tuple[str, str]], most: int = 3) -> str:
    more = [f"and {len(pairs) - most} more"] if len(pairs) > most else []
    return ", ".join([*(f"{of_b} = {of_a}" for of_b, of_a in pairs[:most]), *more])


def _grid(a: Side, b: Side, samples: Measure) -> Iterator[str]:
    """That evaluations quantise what is compared."""
    steps = f"{_step('A', a, samples.a)} and {_step('B', b, samples.b)}"
    yield (
        f"Samples to target are quantised: they move by whole evaluation intervals, {steps}. The target is met "
        "somewhere within the last interval, and minutes end with it."
    )
    for label, spread in (("A", samples.a), ("B", samples.b)):
        if spread is not None and spread.sd == 0:
            hidden = "the interval hides what spread there is, and the test takes it to be none"
            yield f"Every run of {label} needs {plain(spread.mean)} samples: {hidden}."


def _step(label: str, side: Side, spread: Spread | None) -> str:
    if side.step is None or spread is None or spread.quantum_percent is None:
        return f"of no single size in {label}"
    return f"{side.step:,} samples in {label} ({in_percent(spread.quantum_percent)} % of the mean)"


def _batches(a: Side, b: Side, runs_a: Sequence[RunSummary], runs_b: Sequence[RunSummary]) -> Iterator[str]:
    """What another batch size does to the grid."""
    sizes = [", ".join(sorted({str(run.global_batch_size) for run in runs})) for runs in (runs_a, runs_b)]
    if a.step is None or b.step is None:
        return
    if a.step != b.step:
        half = f"{(b.step - a.step) / 2:+,.0f} samples"
        yield f"The intervals differ (GBS {sizes[0]} and {sizes[1]}): about half of that, {half} of B - A, is its own."
    elif sizes[0] != sizes[1]:
        yield f"GBS differs ({sizes[0]} and {sizes[1]}), the evaluation interval does not: both are on the same grid."
