"""Rules on a set of runs: number, equal settings, distinct seeds, variance, convergence against the reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .. import benchmark
from ..findings import Rcp, RunSummary, Severity, Status, Variance
from ..json_values import comparison_key, seed_number
from ..rcp import full_points
from ..records import Record
from ..run import Run
from ..score import olympic_mean
from .rule import OFFICIAL, OWN, SEED_CHECKER, Problem, quote_json, rule

_BENCHMARK_RESULTS = "training rules, Benchmark Results"
_RCP = f"training rules, Reference Convergence Points; {OFFICIAL}rcp_checker"
# Some logs write the samples trained so far as train_samples.
_MAY_DIFFER = ("seed", "train_samples", "config_filename")


@dataclass(frozen=True)
class RunSet:
    """Several runs of one benchmark on one system.

    Attributes:
        window: the runs that count, by start time.
        others: number of logs of other benchmarks, which are not in ``runs``.
        interval: samples between evaluations that the rules require, None if the runs differ.
        variance: variance of the window.
        rcp: the convergence tests; None in the open division or without a batch size.
    """

    runs: tuple[Run, ...]
    summaries: tuple[RunSummary, ...]
    window: tuple[RunSummary, ...]
    others: int
    required_runs: int
    interval: int | None
    variance: Variance | None
    rcp: Rcp | None


@rule("set-count", Severity.ERROR, _BENCHMARK_RESULTS)
def set_count(subject: RunSet) -> Iterator[Problem]:
    """Require 10 runs. Of more runs, the window of 10 consecutive ones with the median score counts."""
    count, required = len(subject.runs) + subject.others, subject.required_runs
    if count < required:
        yield Problem("too few runs for a result", expected=str(required), got=count)
    elif count > required:
        window = f"{subject.window[0].file} to {subject.window[-1].file}"
        message = f"more runs than a result holds; the median window by start time counts: {window}"
        yield Problem(message, expected=str(required), got=count, severity=Severity.INFO)


@rule("set-alike", Severity.ERROR, "training rules, System and framework must be consistent; Hyperparameters")
def set_alike(subject: RunSet) -> Iterator[Problem]:
    """Require equal hyperparameters, precision, parallelism, organisation, platform, status and division in all runs.

    The seed, train_samples (in some logs the samples trained so far) and config_filename may differ.
    """
    for key in benchmark.SETTING_KEYS:
        logged = [(run.log.name, record) for run in subject.runs if (record := run.first(key)) is not None]
        if key in _MAY_DIFFER or not logged:
            continue
        values = {comparison_key(record.value): record.value for _, record in logged}
        # The majority is right by definition, so that one differing run is one finding.
        usual = Counter(comparison_key(record.value) for _, record in logged).most_common(1)[0][0]
        for file, record in logged:
            if comparison_key(record.value) != usual:
                message, expected = f"{key} differs from the other runs", quote_json(values[usual])
                yield Problem(message, record.line, expected=expected, got=record.value, file=file)


@rule("set-seed", Severity.ERROR, SEED_CHECKER, official=("seeds",))
def set_seed(subject: RunSet) -> Iterator[Problem]:
    """Reject a seed that another run logs at the same line of source. From another line it is a warning."""
    seen: dict[int, dict[tuple[str, str], str]] = {}
    for run in subject.runs:
        logged: dict[int, dict[tuple[str, str], Record]] = {}
        for record in run.all("seed"):
            if (value := seed_number(record.value)) is not None:
                source = (repr(record.metadata.get("file")), repr(record.metadata.get("lineno")))
                logged.setdefault(value, {}).setdefault(source, record)
        for value, records in logged.items():
            files = seen.setdefault(value, {})
            same = next((source for source in records if source in files), None)
            if files:
                message = f"the seed is that of {next(iter(files.values())) if same is None else files[same]}"
                line, severity = next(iter(records.values())).line, Severity.WARNING if same is None else None
                expected, file = "a distinct seed", run.log.name
                yield Problem(message, line, expected=expected, got=value, file=file, severity=severity)
            for source in records:
                files.setdefault(source, run.log.name)


@rule("set-copy", Severity.ERROR, "training rules, Scoring: a submission is a set of N independent runs")
def set_copy(subject: RunSet) -> Iterator[Problem]:
    """Reject copied runs: runs with different seeds never have losses that are equal to the last digit."""
    seen: dict[tuple[str, object], str] = {}
    for run in subject.runs:
        series: dict[str, object] = {
            "evaluation": tuple((each.samples, each.loss) for each in run.evaluations),
            "training": run.training_digest,
        }
        same = [(name, seen[name, losses]) for name, losses in series.items() if losses and (name, losses) in seen]
        # A copy has both series in common; one finding suffices.
        for name, other in same[:1]:
            yield Problem(f"the {name} losses are those of {other}: one is a copy", file=run.log.name)
        for name, losses in series.items():
            seen.setdefault((name, losses), run.log.name)


@rule("set-cadence", Severity.INFO, OWN)
def set_cadence(subject: RunSet) -> Iterator[Problem]:
    """Report the score of a set with another interval of evaluations, had that been accepted, as real rounds did."""
    intervals = {run.regular_interval for run in subject.runs}
    regular, due = intervals.pop() if len(intervals) == 1 else None, subject.interval
    if regular is None or due in (None, regular) or len(subject.window) < 3:
        return
    minutes = olympic_mean([math.inf if run.minutes is None else run.minutes for run in subject.window])
    if minutes is None:
        return
    normalized = "the RCP test fails"
    if subject.rcp is not None and subject.rcp.pruned.passed and subject.rcp.pruned.normalization is not None:
        normalized = f"{minutes * subject.rcp.pruned.normalization:.3f} normalised"
    yield Problem(f"had the cadence been accepted, the score would be {minutes:.3f} minutes; {normalized}")


@rule("set-invalid-run", Severity.INFO, _BENCHMARK_RESULTS)
def set_invalid_run(subject: RunSet) -> Iterator[Problem]:
    """Report runs that break a rule. Such a run is never dropped as the slowest, and its set has no score.

    The official package checker accepts one such file.
    """
    for run in subject.summaries:
        if run.status is Status.INVALID:
            yield Problem("an invalid run, which cannot be dropped as the slowest", file=run.file)


@rule("set-not-converged", Severity.ERROR, _BENCHMARK_RESULTS, official=("pruned", "full"))
def set_not_converged(subject: RunSet) -> Iterator[Problem]:
    """Allow one run without convergence, which is dropped as the slowest. Two make the result invalid."""
    missed = [run.file for run in subject.window if run.status is Status.NOT_CONVERGED]
    if len(missed) > 1:
        message = f"{len(missed)} runs did not converge: {', '.join(missed)}"
        yield Problem(message, expected="at most 1", got=len(missed))
    elif missed:
        message = f"{missed[0]} did not converge and is dropped as the slowest"
        yield Problem(message, file=missed[0], severity=Severity.INFO)


@rule("variance-limit", Severity.WARNING, OWN)
def variance_limit(subject: RunSet) -> Iterator[Problem]:
    """Warn if the coefficient of variation (ddof 1) of samples or minutes exceeds --cv-limit percent."""
    if subject.variance is None:
        return
    limit = subject.variance.limit_percent
    for name, spread in (("samples", subject.variance.samples), ("minutes", subject.variance.minutes)):
        if spread is not None and spread.cv_percent > limit:
            steps = ""
            if spread.quantum is not None:
                steps = f"; samples move in steps of {spread.quantum:,.0f}, {spread.quantum_percent:.1f} % of the mean"
            message = f"the {name} of {spread.runs} runs vary by a CV of {spread.cv_percent:.2f} % (ddof 1){steps}"
            yield Problem(message, expected=f"<= {limit:g} %", got=round(spread.cv_percent, 3))


@rule("rcp-missing", Severity.ERROR, _RCP, official=("pruned", "full"))
def rcp_missing(subject: RunSet) -> Iterator[Problem]:
    """Require a reference convergence point for the batch size, two around it, or a larger one that the set meets."""
    if subject.rcp is None:
        return
    test, size = subject.rcp.pruned, subject.rcp.global_batch_size
    if test.kind == "missing":
        message = f"no reference convergence point for global batch size {size} or above; submit reference runs"
        points = full_points(subject.runs[0].ruleset)
        yield Problem(message, expected=f"{points[0].gbs} to {points[-1].gbs}", got=size)
    elif test.kind == "smallest" and test.passed is False:
        message = f"global batch size {size} is below the smallest RCP, and the set converges faster than that"
        yield Problem(message, expected=f">= {test.minimum:.6f}", got=test.submission_mean)


@rule("rcp-pruned", Severity.ERROR, _RCP, official=("pruned",))
def rcp_pruned(subject: RunSet) -> Iterator[Problem]:
    """Require an olympic mean of samples to target of at least the pruned RCP's minimum. This test decides."""
    if subject.rcp is None or subject.rcp.pruned.kind in ("missing", "smallest"):
        return
    test, size = subject.rcp.pruned, subject.rcp.global_batch_size
    if test.passed is False:
        message = f"the set converges faster than the reference allows at global batch size {size}"
        yield Problem(message, expected=f">= {test.minimum:.6f} samples", got=test.submission_mean)


@rule("rcp-full", Severity.INFO, _RCP)
def rcp_full(subject: RunSet) -> Iterator[Problem]:
    """Report a set that fails the same test against all RCPs, pruned points included. It does not decide."""
    if subject.rcp is None or subject.rcp.full.passed is not False or subject.rcp.pruned.passed is False:
        return
    test = subject.rcp.full
    message = "the set passes the pruned RCP, but converges faster than the full RCP allows"
    yield Problem(message, expected=f">= {test.minimum:.6f} samples", got=test.submission_mean)


@rule("rcp-normalization", Severity.INFO, _RCP)
def rcp_normalization(subject: RunSet) -> Iterator[Problem]:
    """Report the score factor of a passing set that converges faster than the RCP's mean: the ratio of the means."""
    if subject.rcp is None or not subject.rcp.pruned.passed or subject.rcp.pruned.normalization in (None, 1.0):
        return
    test = subject.rcp.pruned
    means = f"{test.mean:.1f} / {test.submission_mean:.1f}"
    yield Problem(f"the score is multiplied by {test.normalization:.6f}: RCP mean {means}")
