"""Rules on a set of runs: how many, how alike, how different, how fast they converge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from .. import benchmark
from ..findings import Rcp, RunSummary, Severity, Status, Variance
from ..run import Run, comparison_key, whole_number
from .rule import Problem, Rule, quote_json, rule

_BENCHMARK_RESULTS = "training rules, Benchmark Results"
_RCP = "training rules, Reference Convergence Points; mlperf-logging 4.1.68, rcp_checker"
_OWN = "this project, not a rule of MLPerf"
# What may differ from run to run: the seed, how far it came, and the name of the file that configured it.
_ALIKE = tuple(
    key
    for key in (*benchmark.DESCRIPTION, *benchmark.DISCLOSURE, *benchmark.OPTIONAL)
    if key not in ("seed", "train_samples", "config_filename")
)


@dataclass(frozen=True)
class RunSet:
    """Several runs of one benchmark on one system.

    Attributes:
        judged: the runs.
        runs: their summaries, in the same order.
        window: the runs that count, by start.
        required_runs: runs that make a result.
        variance: of the window.
        rcp: the convergence tests; None in the open division or without a batch size.
        olympic_samples: olympic mean of samples to target, None if too few runs converged.
    """

    judged: tuple[Run, ...]
    runs: tuple[RunSummary, ...]
    window: tuple[RunSummary, ...]
    required_runs: int
    variance: Variance | None
    rcp: Rcp | None
    olympic_samples: float | None


@rule("set-count", Severity.ERROR, _BENCHMARK_RESULTS)
def set_count(subject: RunSet) -> Iterator[Problem]:
    """A result is 10 runs. Of more, the window of 10 consecutive ones whose score is the median counts."""
    found, wanted = len(subject.runs), subject.required_runs
    if found < wanted:
        yield Problem("too few runs for a result", expected=str(wanted), got=found)
    elif found > wanted:
        window = f"{subject.window[0].file} to {subject.window[-1].file}"
        message = f"more runs than a result holds; the median window by start time counts: {window}"
        yield Problem(message, expected=str(wanted), got=found, severity=Severity.INFO)


@rule("set-alike", Severity.ERROR, "training rules, System and framework must be consistent; Hyperparameters")
def set_alike(subject: RunSet) -> Iterator[Problem]:
    """All runs have the same hyperparameters, precision, parallelism, organisation, platform, status and division.

    The seed, train_samples (how far a run came, in some logs) and config_filename may differ.
    """
    for key in _ALIKE:
        records = [(run, run.first(key)) for run in subject.judged]
        logged = [(run, record) for run, record in records if record is not None]
        if not logged:
            continue
        values = {comparison_key(record.value): record.value for _, record in logged}
        usual = Counter(comparison_key(record.value) for _, record in logged).most_common(1)[0][0]
        for run, record in logged:
            if comparison_key(record.value) != usual:
                message, expected = f"{key} differs from the other runs", quote_json(values[usual])
                yield Problem(message, record.line, expected=expected, got=record.value, file=run.log.name)


@rule("set-seed", Severity.ERROR, "training rules, Random numbers; mlperf-logging 4.1.68, package_checker/seed_checker")
def set_seed(subject: RunSet) -> Iterator[Problem]:
    """No two runs have the same seed."""
    owner: dict[int, str] = {}
    for run in subject.judged:
        for value in dict.fromkeys(whole_number(record.value) for record in run.all("seed")):
            if value is None:
                continue
            if value in owner:
                record = run.first("seed")
                message = f"the seed is that of {owner[value]}"
                line = record.line if record else None
                yield Problem(message, line, expected="a seed of its own", got=value, file=run.log.name)
            owner.setdefault(value, run.log.name)


@rule("set-copy", Severity.ERROR, _OWN)
def set_copy(subject: RunSet) -> Iterator[Problem]:
    """No run is a copy of another: two runs with other seeds never have the same losses to the last digit."""
    seen: dict[tuple[str, object], str] = {}
    for run in subject.judged:
        series: dict[str, object] = {
            "evaluation": tuple((each.samples, each.loss) for each in run.evaluations),
            "training": run.log.train_losses.losses.tobytes(),
        }
        same = [(name, seen[name, losses]) for name, losses in series.items() if losses and (name, losses) in seen]
        for name, other in same[:1]:
            yield Problem(f"the {name} losses are those of {other}: one is a copy", file=run.log.name)
        for name, losses in series.items():
            seen.setdefault((name, losses), run.log.name)


@rule("set-invalid-run", Severity.INFO, _BENCHMARK_RESULTS)
def set_invalid_run(subject: RunSet) -> Iterator[Problem]:
    """A run that breaks a rule is invalid and is never dropped as the slowest; the set has no score with it.

    The official package checker accepts one such file.
    """
    for run in subject.runs:
        if run.status is Status.INVALID:
            yield Problem("an invalid run, which cannot be dropped as the slowest", file=run.file)


@rule("set-not-converged", Severity.ERROR, _BENCHMARK_RESULTS)
def set_not_converged(subject: RunSet) -> Iterator[Problem]:
    """One run that did not converge counts as the slowest and is dropped; two make the result invalid."""
    missed = [run.file for run in subject.window if run.status is Status.NOT_CONVERGED]
    if len(missed) > 1:
        message = f"{len(missed)} runs did not converge: {', '.join(missed)}"
        yield Problem(message, expected="at most 1", got=len(missed))
    elif missed:
        message = f"{missed[0]} did not converge and is dropped as the slowest"
        yield Problem(message, file=missed[0], severity=Severity.INFO)


@rule("variance-limit", Severity.WARNING, _OWN)
def variance_limit(subject: RunSet) -> Iterator[Problem]:
    """The coefficient of variation (ddof 1) of samples and of minutes is at most --cv-limit percent."""
    if subject.variance is None:
        return
    limit = subject.variance.limit_percent
    for name in ("samples", "minutes"):
        spread = subject.variance.samples if name == "samples" else subject.variance.minutes
        if spread is not None and spread.cv_percent > limit:
            steps = ""
            if spread.quantum is not None:
                steps = f"; samples move in steps of {spread.quantum:,.0f}, {spread.quantum_percent:.1f} % of the mean"
            message = f"the {name} of {spread.runs} runs vary by a CV of {spread.cv_percent:.2f} % (ddof 1){steps}"
            yield Problem(message, expected=f"<= {limit:g} %", got=round(spread.cv_percent, 3))


@rule("rcp-missing", Severity.ERROR, _RCP)
def rcp_missing(subject: RunSet) -> Iterator[Problem]:
    """There is a reference convergence point for the batch size, or two around it, or a larger one that is met."""
    if subject.rcp is None:
        return
    test = subject.rcp.pruned
    size = subject.rcp.global_batch_size
    if test.kind == "missing":
        message = f"no reference convergence point at global batch size {size} or above; runs of the reference are due"
        yield Problem(message, expected="16 to 64", got=size)
    elif test.kind == "smallest" and test.passed is False:
        message = f"global batch size {size} is below the smallest RCP, and the set converges faster than that"
        yield Problem(message, expected=f">= {test.minimum:.6f}", got=test.submission_mean)


@rule("rcp-pruned", Severity.ERROR, _RCP)
def rcp_pruned(subject: RunSet) -> Iterator[Problem]:
    """The olympic mean of samples to target is not below the pruned RCP's minimum, by which results are accepted."""
    if subject.rcp is None or subject.rcp.pruned.kind in ("missing", "smallest"):
        return
    test = subject.rcp.pruned
    if test.passed is False:
        message = (
            f"the set converges faster than the reference allows at global batch size {subject.rcp.global_batch_size}"
        )
        yield Problem(message, expected=f">= {test.minimum:.6f} samples", got=test.submission_mean)


@rule("rcp-full", Severity.INFO, _RCP)
def rcp_full(subject: RunSet) -> Iterator[Problem]:
    """The same test against the full RCPs, pruned points included, which does not decide."""
    if subject.rcp is None or subject.rcp.full.passed is not False or subject.rcp.pruned.passed is False:
        return
    test = subject.rcp.full
    message = "the set passes the pruned RCP, but converges faster than the full RCP allows"
    yield Problem(message, expected=f">= {test.minimum:.6f} samples", got=test.submission_mean)


@rule("rcp-normalization", Severity.INFO, _RCP)
def rcp_normalization(subject: RunSet) -> Iterator[Problem]:
    """A set that converges faster than the RCP's mean, and passes, has its score multiplied by the ratio."""
    if subject.rcp is None or not subject.rcp.pruned.passed or subject.rcp.pruned.normalization in (None, 1.0):
        return
    test = subject.rcp.pruned
    message = (
        f"the score is multiplied by {test.normalization:.6f}: RCP mean {test.mean:.1f} / {test.submission_mean:.1f}"
    )
    yield Problem(message)


RULES: tuple[Rule[RunSet], ...] = (
    set_count,
    set_alike,
    set_seed,
    set_copy,
    set_invalid_run,
    set_not_converged,
    variance_limit,
    rcp_missing,
    rcp_pruned,
    rcp_full,
    rcp_normalization,
)
