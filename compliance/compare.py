"""Compare two judged sets of runs, A before a change and B after it, in samples and in minutes.

Pure. Runs that break rules are compared like all others, and the rules are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from .benchmark import NAME, RUNS, SETTING_KEYS, Ruleset
from .findings import PositiveInt, RunSummary, Severity, Spread, Status
from .json_values import comparison_key
from .judge import JudgedRun, judge_set
from .rules.rule import quote_json
from .run import MAX_PLAUSIBLE, Run
from .welch import CONFIDENCE, MetricComparison, compare_metric, format_number, format_percent

MIN_CONFIDENCE, MAX_CONFIDENCE = 0.5, 0.9999
# These differ between the runs of one set. In some logs train_samples is the number of samples reached.
_PER_RUN_KEYS = frozenset({"seed", "train_samples", "cache_clear"})
_DEFINITIONS = (
    "Minutes: run_start to the first evaluation that meets the target. sd and CV with ddof 1. Percentages are of A's "
    "mean, taken as exact.",
    "Smallest difference that ten runs each would show four times in five: (t(0.5 + confidence / 2) + t(0.8)) x "
    "sqrt((sd_A^2 + sd_B^2) / 10), t the quantiles of Student's t at Welch's degrees of freedom for ten runs each.",
)


class NotComparableError(ValueError):
    """The sets cannot be compared at this confidence; the message names what is missing."""


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A rule that a set breaks.

    Attributes:
        files: logs that break it; empty if the set as a whole does.
    """

    rule: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two sets.

    Attributes:
        name: folder or log as the user named it.
        converged: number of runs that met the target.
        left_out: logs of the other runs.
        broken: broken rules of severity error. RCP rules are included for a set of ten runs only.
        eval_interval_samples: training samples between evaluations, the resolution of the samples to the target; None
            if the runs do not share one.
    """

    name: str
    runs: Annotated[int, Ge(2)]
    converged: Annotated[int, Ge(2)]
    left_out: tuple[str, ...]
    broken: tuple[BrokenRule, ...]
    eval_interval_samples: PositiveInt | None


@dataclass(frozen=True, slots=True)
class Setting:
    """A logged setting that differs between the sets.

    Attributes:
        a, b: distinct values in the set, as JSON; empty if the setting is not logged.
    """

    key: str
    a: tuple[str, ...]
    b: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Set A before a change and set B after it, side by side, as printed by ``compare --format json``.

    Attributes:
        confidence: of the intervals. A p-value below 1 - confidence is a difference.
        samples: training samples to the target.
        minutes: minutes from run_start to the first evaluation that meets the target.
        warnings: reasons why the figures may mislead.
        notes: definitions of the figures.
    """

    schema_version: Literal[2] = 2
    command: Literal["compare"] = "compare"
    ruleset: Ruleset
    confidence: Annotated[float, Interval(ge=MIN_CONFIDENCE, le=MAX_CONFIDENCE)]
    a: Side
    b: Side
    settings: tuple[Setting, ...]
    samples: MetricComparison
    minutes: MetricComparison
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
    """Compare two sets of judged runs, ``a`` before a change and ``b`` after it. The sets may differ in size.

    Raises:
        NotComparableError: fewer than two runs of a set met the target, or the confidence is out of range.
    """
    if not MIN_CONFIDENCE <= confidence <= MAX_CONFIDENCE:
        expected = f"expected {MIN_CONFIDENCE} to {MAX_CONFIDENCE}; try 0.95"
        raise NotComparableError(f"confidence {confidence:g}: {expected}")
    for label, judged in (("A", a), ("B", b)):
        if other := next((each for each in judged if each.run.is_other_benchmark), None):
            logged = other.run.value("submission_benchmark")
            raise NotComparableError(f"{label} ({other.summary.file}): a log of {logged}; expected logs of {NAME}")
    side_a, side_b = _side(names[0], a, ruleset), _side(names[1], b, ruleset)
    for label, side in (("A", side_a), ("B", side_b)):
        if side.converged < 2:
            met = f"{side.converged} of {side.runs} runs met the target"
            raise NotComparableError(f"{label} ({side.name}): {met}; expected 2 or more in each set: add runs")
    runs_a, runs_b = [each.summary for each in a], [each.summary for each in b]
    samples = compare_metric(
        "samples",
        _samples(runs_a),
        _samples(runs_b),
        confidence,
        quanta=(side_a.eval_interval_samples, side_b.eval_interval_samples),
    )
    return Comparison(
        ruleset=Ruleset(ruleset),
        confidence=confidence,
        a=side_a,
        b=side_b,
        settings=tuple(_settings([each.run for each in a], [each.run for each in b])),
        samples=samples,
        minutes=compare_metric("minutes", _minutes(runs_a), _minutes(runs_b), confidence),
        warnings=(*_excluded_runs(side_a, side_b), *_dependent_runs(runs_a, runs_b)),
        notes=(*_resolution(side_a, side_b, samples), *_batch_sizes(side_a, side_b, runs_a, runs_b), *_DEFINITIONS),
    )


def _met_target(run: RunSummary) -> bool:
    """Return whether a run counts as converged, as for a score: not aborted, and at a plausible number of samples."""
    samples = run.samples_to_target
    return samples is not None and 0 < samples < MAX_PLAUSIBLE and run.status is not Status.NOT_CONVERGED


def _samples(runs: Sequence[RunSummary]) -> list[float]:
    """Return samples to target; infinite where the target was not met."""
    return [float(run.samples_to_target or 0) if _met_target(run) else math.inf for run in runs]


def _minutes(runs: Sequence[RunSummary]) -> list[float]:
    """Return minutes to target; infinite where the target was not met, or the clock is missing or runs backwards."""
    known = [run.minutes_to_target or 0.0 if _met_target(run) else 0.0 for run in runs]
    return [minutes if 0 < minutes < MAX_PLAUSIBLE else math.inf for minutes in known]


def _side(name: str, judged: Sequence[JudgedRun], ruleset: str) -> Side:
    # All runs are compared: none is missing, and none is outside a window.
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
        broken=tuple(BrokenRule(rule, tuple(dict.fromkeys(logs))) for rule, logs in files.items()),
        eval_interval_samples=result.eval_interval_samples,
    )


def _settings(a: Sequence[Run], b: Sequence[Run]) -> Iterator[Setting]:
    """Yield the settings that differ: known ones, then other keys that have one value in each set."""
    others = {key for run in (*a, *b) for key in _keys_before_start(run)}.difference(SETTING_KEYS)
    for key in (*SETTING_KEYS, *sorted(others)):
        values_a, values_b = _values(key, a), _values(key, b)
        one_each = len(values_a) <= 1 and len(values_b) <= 1
        if key not in _PER_RUN_KEYS and (key in SETTING_KEYS or one_each) and set(values_a) != set(values_b):
            yield Setting(key, tuple(values_a.values()), tuple(values_b.values()))


def _keys_before_start(run: Run) -> Iterator[str]:
    """Yield the keys logged before the clock starts, without starts and ends of intervals."""
    start = math.inf if run.run_start is None else run.run_start.line
    return (record.key for record in run.records if record.line < start and record.event == "POINT_IN_TIME")


def _values(key: str, runs: Sequence[Run]) -> dict[str, str]:
    """Return the distinct values of a setting: comparison key -> JSON text."""
    records = [record for run in runs if (record := run.first(key)) is not None]
    return {comparison_key(record.value): quote_json(record.value) for record in records}


def _excluded_runs(a: Side, b: Side) -> Iterator[str]:
    for label, side in (("A", a), ("B", b)):
        if side.left_out:
            missed = f"{len(side.left_out)} of {side.runs} runs of {label} did not meet the target and are left out"
            yield f"{missed}: a set without its slowest runs looks faster than it is."


def _dependent_runs(a: Sequence[RunSummary], b: Sequence[RunSummary]) -> Iterator[str]:
    """Warn of different targets, which make sets incomparable, and of shared seeds or losses, which tie the runs."""
    target_a, target_b = (", ".join(f"{each:g}" for each in sorted({run.target for run in runs})) for runs in (a, b))
    if target_a != target_b:
        yield f"The target is {target_a} in A and {target_b} in B: what it takes to meet them is not comparable."
    seeds = _shared(a, b, lambda run: run.seed)
    if seeds:
        shared = f"{_runs_of_b(seeds)} the seed of a run of A ({_pairs(seeds)})"
        yield f"{shared}: not independent, as the test takes them to be."
    copies = _shared(a, b, lambda run: tuple((each.samples, each.loss) for each in run.evaluations) or None)
    if copies:
        shared = f"{_runs_of_b(copies)} the evaluation losses of a run of A to the last digit ({_pairs(copies)})"
        yield f"{shared}: the same log, a copy, or the same seed and arithmetic; not independent."


def _shared(
    a: Sequence[RunSummary], b: Sequence[RunSummary], value_of: Callable[[RunSummary], object]
) -> list[tuple[str, str]]:
    """Return (file of B, file of A) for each run of B that shares a value, other than None, with a run of A."""
    files_a = {value: run.file for run in reversed(a) if (value := value_of(run)) is not None}
    return [(run.file, files_a[value_of(run)]) for run in b if value_of(run) in files_a]


def _runs_of_b(pairs: Sequence[object]) -> str:
    return "1 run of B has" if len(pairs) == 1 else f"{len(pairs)} runs of B have"


def _pairs(pairs: Sequence[tuple[str, str]], limit: int = 3) -> str:
    more = [f"and {len(pairs) - limit} more"] if len(pairs) > limit else []
    return ", ".join([*(f"{file_b} = {file_a}" for file_b, file_a in pairs[:limit]), *more])


def _resolution(a: Side, b: Side, samples: MetricComparison) -> Iterator[str]:
    """State the resolution of samples to target, which evaluations quantise."""
    intervals = f"{_interval('A', a, samples.a)} and {_interval('B', b, samples.b)}"
    yield (
        f"Samples to target are quantised: they move by whole evaluation intervals, {intervals}. The target is met "
        "somewhere within the last interval, and minutes end with it."
    )
    for label, spread in (("A", samples.a), ("B", samples.b)):
        if spread is not None and spread.sd == 0:
            hidden = "the interval hides what spread there is, and the test takes it to be none"
            yield f"Every run of {label} needs {format_number(spread.mean)} samples: {hidden}."


def _interval(label: str, side: Side, spread: Spread | None) -> str:
    if side.eval_interval_samples is None or spread is None or spread.quantum_percent is None:
        return f"of no single size in {label}"
    percent = format_percent(spread.quantum_percent)
    return f"{side.eval_interval_samples:,} samples in {label} ({percent} % of the mean)"


def _batch_sizes(a: Side, b: Side, runs_a: Sequence[RunSummary], runs_b: Sequence[RunSummary]) -> Iterator[str]:
    """State the effect of different batch sizes on the evaluation interval."""
    sizes = [", ".join(sorted({str(run.global_batch_size) for run in runs})) for runs in (runs_a, runs_b)]
    interval_a, interval_b = a.eval_interval_samples, b.eval_interval_samples
    if interval_a is None or interval_b is None:
        return
    if interval_a != interval_b:
        # A target is met half an interval before the evaluation that shows it, on average.
        half = f"{(interval_b - interval_a) / 2:+,.0f} samples"
        yield f"The intervals differ (GBS {sizes[0]} and {sizes[1]}): about half of that, {half} of B - A, is its own."
    elif sizes[0] != sizes[1]:
        yield f"GBS differs ({sizes[0]} and {sizes[1]}), the evaluation interval does not: both are on the same grid."
