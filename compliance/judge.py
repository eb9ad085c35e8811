"""Records to findings: one run, then a set of runs. Pure: opens no file."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from . import rcp, score
from .benchmark import DISCLOSURE, RUNS
from .findings import Curve, Finding, Phase, RunSummary, Score, SetResult, Severity, Status, Variance
from .json_values import finite_float, seed_number
from .records import Log, Record
from .rules import RUN_RULES, SET_RULES, UNVERIFIABLE
from .rules.description import submission_benchmark
from .rules.evaluations import logged_schedule, run_not_converged
from .rules.rule import Waive, judge_by
from .rules.sets import RunSet, set_count
from .run import Machine, Run, common_eval_interval
from .schedule import Comparison

# More points than a chart can show.
_MAX_CURVE_POINTS = 1000
_OF_SET = frozenset(rule.id for rule in RUN_RULES if rule.of_set)
_TRACKED = {"train_step_time": "step_s", "validation_time": "validation_s", "throughput": "throughput"}
_PHASES = {
    "init_start": ("init", "init_stop"),
    "block_start": ("training", "block_stop"),
    "eval_start": ("evaluation", "eval_stop"),
}


@dataclass(frozen=True)
class JudgedRun:
    """One run with its findings and its summary."""

    run: Run
    findings: tuple[Finding, ...]
    summary: RunSummary


def judge_run(
    log: Log,
    ruleset: str,
    machine: Machine | None = None,
    system: str | None = None,
    *,
    in_set: bool = True,
    waive: Waive | None = None,
) -> JudgedRun:
    """Judge one log by every rule on runs.

    Args:
        log: the parsed file.
        ruleset: "6.0.0" or "6.1.0".
        machine: the system that the run used, from a system description.
        system: name of the system in a submission tree.
        in_set: False makes a run without convergence an error. In a set, the rules on sets decide.
        waive: marks the findings that a waiver accepts.
    """
    run = Run(log, ruleset, machine)
    rules = RUN_RULES if in_set else (*RUN_RULES, run_not_converged)
    rules = (submission_benchmark,) if run.is_other_benchmark else rules
    findings = judge_by((rule for rule in rules if run.division in rule.divisions), run, log.name, waive)
    summary = _summary(run, _status(run, findings), system)
    run.release()
    return JudgedRun(run, findings, summary)


def judge_set(
    judged: Sequence[JudgedRun],
    ruleset: str,
    *,
    required_runs: int = RUNS,
    cv_limit: float = 5.0,
    name: str = "",
    waive: Waive | None = None,
) -> tuple[SetResult, tuple[Finding, ...]]:
    """Check a set of runs by the cross-run rules: seeds, copies, variance, RCP.

    Args:
        judged: the runs, each already judged.
        ruleset: "6.0.0" or "6.1.0".
        required_runs: runs of a result, 10 by the rules.
        cv_limit: this project's limit of the coefficient of variation in percent.
        name: folder of the set in a submission tree, which findings on the whole set name.
        waive: marks the findings that a waiver accepts.
    """
    # Figures and convergence are those of the window. The other rules apply to every run of this benchmark.
    own = [each for each in judged if not each.run.is_other_benchmark]
    runs = [each.summary for each in own]
    window = _window(runs, required_runs)
    batch = _most_common_batch(runs)
    samples = [_samples(run) for run in window]
    olympic_samples = score.olympic_mean(samples) if len(samples) >= 3 else None
    tested = None
    # Reference convergence points exist for the closed division only.
    if batch is not None and all(run.division != "open" for run in runs):
        tested = rcp.check_convergence(batch, olympic_samples, ruleset)
    interval = common_eval_interval([each.run for each in own])
    variance: Variance | None = None
    if window:
        # Runs without convergence are infinite here, and left out of the spread.
        variance = score.variance(samples, [_minutes(run) for run in window], interval, batch, cv_limit)
    subject = RunSet(
        runs=tuple(each.run for each in own), summaries=tuple(runs), window=tuple(window),
        others=len(judged) - len(own), required_runs=required_runs, interval=interval, variance=variance, rcp=tested,
    )  # fmt: skip
    # In a tree, package-result-count requires the number of runs.
    rules = [rule for rule in SET_RULES if rule is not set_count or not name or len(judged) > required_runs]
    findings = judge_by(rules, subject, name or None, waive) if own or not judged else ()
    has_errors = any(finding.severity is Severity.ERROR for finding in [*findings, *run_findings(judged)])
    normalization = tested.pruned.normalization if tested is not None else 1.0
    scored = _score(window, valid=not has_errors, normalization=normalization)
    sizes, machines = {each.run.accelerators for each in own}, {each.run.machine for each in own}
    machine = machines.pop() if len(machines) == 1 else None
    result = SetResult(
        name, tuple(each.summary for each in judged), scored, variance, tested, interval,
        system=None if machine is None else machine.name, accelerators=sizes.pop() if len(sizes) == 1 else None,
    )  # fmt: skip
    return result, findings


def run_findings(judged: Sequence[JudgedRun]) -> list[Finding]:
    """Return the findings of all runs. What all runs have in common of a rule with ``of_set`` is one finding."""
    by_run = [{_kind(finding): finding for finding in each.findings if finding.rule in _OF_SET} for each in judged]
    shared = set.intersection(*map(set, by_run)) if len(judged) > 1 else set()
    note = f"; in all {len(judged)} logs"
    merged = [
        replace(finding, message=finding.message + note, file=None, line=None)
        for kind, finding in (by_run[0] if by_run else {}).items()
        if kind in shared
    ]
    return merged + [finding for each in judged for finding in each.findings if _kind(finding) not in shared]


def _kind(finding: Finding) -> tuple[str, ...]:
    of_waiver = str(finding.waived)
    return finding.rule, finding.severity, finding.message, str(finding.expected), str(finding.got), of_waiver


def unverifiable_findings() -> tuple[Finding, ...]:
    """Return the findings on facts that no log proves, once per report."""
    return judge_by(UNVERIFIABLE, None)


def _status(run: Run, findings: Iterable[Finding]) -> Status:
    if any(finding.severity is Severity.ERROR for finding in findings):
        return Status.INVALID
    converged = run.passing_evaluation is not None and run.run_status == "success"
    return Status.CONVERGED if converged else Status.NOT_CONVERGED


def _samples(run: RunSummary) -> float:
    """Return the samples to target for an olympic mean, infinite if the run did not converge."""
    samples = run.samples_to_target
    # Other rules report an evaluation at 0 samples or below.
    return math.inf if samples is None or samples < 1 or run.status is Status.NOT_CONVERGED else float(samples)


def _minutes(run: RunSummary) -> float:
    """Return the minutes for an olympic mean, infinite if the run did not converge."""
    return math.inf if run.minutes is None or math.isinf(_samples(run)) else run.minutes


def _most_common_batch(runs: Sequence[RunSummary]) -> int | None:
    sizes = Counter(run.global_batch_size for run in runs if run.global_batch_size and run.global_batch_size > 0)
    return sizes.most_common(1)[0][0] if sizes else None


def _window(runs: Sequence[RunSummary], required_runs: int) -> list[RunSummary]:
    """Return the runs that count, by start: all of them, or the median window of more than required."""
    started = [run for run in runs if run.start_ms is not None]
    if len(started) < max(required_runs, 3) or len(runs) <= required_runs:
        return sorted(runs, key=lambda run: math.inf if run.start_ms is None else run.start_ms)
    starts = [run.start_ms for run in started if run.start_ms is not None]
    return [started[index] for index in score.median_window(starts, [_minutes(run) for run in started], required_runs)]


def _score(window: Sequence[RunSummary], *, valid: bool, normalization: float | None) -> Score | None:
    if len(window) < 3:
        return None
    minutes = [_minutes(run) for run in window]
    to_target = [math.inf if run.minutes_to_target is None else run.minutes_to_target for run in window]
    olympic = score.olympic_mean(minutes) if valid else None
    # Runs without convergence are infinite, and so the slowest.
    order = sorted(range(len(window)), key=minutes.__getitem__)
    return Score(
        valid=valid and olympic is not None,
        olympic_minutes=olympic,
        normalized_minutes=None if olympic is None or normalization is None else olympic * normalization,
        normalization=normalization,
        olympic_samples=score.olympic_mean([_samples(run) for run in window]),
        olympic_minutes_to_target=score.olympic_mean(to_target),
        window=tuple(run.file for run in window),
        dropped=(window[order[0]].file, window[order[-1]].file),
    )


def _summary(run: Run, status: Status, system: str | None) -> RunSummary:
    passing, evaluations = run.passing_evaluation, run.evaluations
    losses, logged_rates, expected_rates = _curves(run)
    return RunSummary(
        file=run.log.name,
        status=status,
        seed=seed_number(run.value("seed")),
        global_batch_size=run.count("global_batch_size"),
        learning_rate=run.number("opt_base_learning_rate"),
        warmup_steps=run.count("opt_learning_rate_warmup_steps"),
        samples_to_target=None if passing is None else passing.samples,
        minutes=run.minutes_until(None if run.run_stop is None else run.run_stop.time_ms),
        minutes_to_target=None if passing is None else run.minutes_until(passing.time_ms),
        first_eval_loss=evaluations[0].loss if evaluations else None,
        final_eval_loss=evaluations[-1].loss if evaluations else None,
        target=run.target,
        start_ms=None if run.run_start is None else run.run_start.time_ms,
        evaluations=tuple(evaluations),
        train_loss=losses,
        logged_learning_rates=logged_rates,
        expected_learning_rates=expected_rates,
        phases=_phases(run),
        tracked=_tracked_medians(run),
        platform=_text(run, "submission_platform"),
        division=_text(run, "submission_division"),
        organisation=_text(run, "submission_org"),
        logged_status=_text(run, "submission_status"),
        disclosed={
            key: str(run.value(key))[:60]
            for key in (*DISCLOSURE, "git_commit")
            if isinstance(run.value(key), str | int | float)
        },
        system=system,
    )


def _text(run: Run, key: str) -> str | None:
    value = run.value(key)
    return value if isinstance(value, str) else None


def _curves(run: Run) -> tuple[Curve, Curve, Curve]:
    """Return training loss, logged and expected learning rates, each thinned to `_MAX_CURVE_POINTS`."""
    columns = run.log.train_losses
    samples, losses, rates = (np.asarray(each) for each in (columns.samples, columns.losses, columns.learning_rates))
    if not len(samples):
        points = [(record.samples, value) for record, value in _tracked(run, "reduced_train_loss")]
        points = [(count, loss) for count, loss in points if finite_float(count) is not None]
        samples, losses = np.array(points, np.float64).reshape(-1, 2).T
        rates = np.full(len(samples), np.nan)
    stride = max(1, math.ceil(len(samples) / _MAX_CURVE_POINTS))
    samples, losses, rates = samples[::stride], losses[::stride], rates[::stride]
    has_loss = np.isfinite(samples) & np.isfinite(losses)
    has_rate = np.isfinite(samples) & np.isfinite(rates)
    schedule, batch = logged_schedule(run), run.count("global_batch_size")
    expected = Curve((), ())
    if schedule is not None and batch is not None and batch > 0 and has_rate.any():
        comparison = Comparison(schedule, batch, samples[has_rate], rates[has_rate])
        expected = _curve(samples[has_rate], comparison.expected())
    return _curve(samples[has_loss], losses[has_loss]), _curve(samples[has_rate], rates[has_rate]), expected


def _tracked(run: Run, name: str) -> Iterator[tuple[Record, float]]:
    """Yield the finite numbers of one name in the tracked_stats, as logs derived from NVIDIA's hold them."""
    for record in run.all("tracked_stats"):
        number = finite_float(record.value.get(name)) if isinstance(record.value, dict) else None
        if number is not None:
            yield record, number


def _tracked_medians(run: Run) -> dict[str, float]:
    values = {kind: [value for _, value in _tracked(run, name)] for name, kind in _TRACKED.items()}
    return {kind: median(logged) for kind, logged in values.items() if logged}


def _curve(samples: NDArray[np.float64], values: NDArray[np.float64]) -> Curve:
    return Curve(array("d", samples.tobytes()), array("d", values.tobytes())) if len(samples) else Curve((), ())


def _phases(run: Run) -> tuple[Phase, ...]:
    """Return the intervals of initialization, training and evaluation whose start and stop match."""
    phases = []
    for start, (name, stop) in _PHASES.items():
        opened: float | None = None
        for record in run.records:
            if record.key == start and opened is None:
                opened = record.time_ms
            elif record.key == stop and opened is not None:
                phases.append(Phase(name, opened, record.time_ms))
                opened = None
    return tuple(sorted(phases, key=lambda phase: phase.start_ms))
