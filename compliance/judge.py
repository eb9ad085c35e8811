"""Records to findings: one run, then a set of runs. Pure: no file is opened here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import rcp, score
from .benchmark import RUNS
from .findings import Curve, Finding, Phase, RunSummary, Score, SetResult, Severity, Status, Variance
from .records import Log
from .rules import RUN_RULES, SET_RULES, UNVERIFIABLE
from .rules.evaluations import logged_schedule, run_not_converged
from .rules.sets import RunSet
from .run import Machine, Run, common_eval_interval, whole_number
from .schedule import Comparison

# Points of a curve that a picture can show.
_CURVE_POINTS = 1000


@dataclass(frozen=True)
class JudgedRun:
    """One run, what the rules found in it, and its summary."""

    run: Run
    findings: tuple[Finding, ...]
    summary: RunSummary


def judge_run(
    log: Log, ruleset: str, machine: Machine | None = None, system: str | None = None, *, in_set: bool = True
) -> JudgedRun:
    """Judges one log by every rule on runs.

    Args:
        log: the parsed file.
        ruleset: "6.0.0" or "6.1.0".
        machine: the system it ran on, where a system description tells.
        system: name of the system in a submission tree.
        in_set: whether the rules on sets decide what a run that did not converge means; alone it is an error.
    """
    run = Run(log, ruleset, machine)
    findings = tuple(
        finding
        for rule in (RUN_RULES if in_set else (*RUN_RULES, run_not_converged))
        if run.division in rule.divisions
        for finding in rule.judge(run, log.name)
    )
    return JudgedRun(run, findings, _summary(run, _status(run, findings), system))


def _status(run: Run, findings: Iterable[Finding]) -> Status:
    if any(finding.severity is Severity.ERROR for finding in findings):
        return Status.INVALID
    converged = run.passing_evaluation is not None and run.run_status == "success"
    return Status.CONVERGED if converged else Status.NOT_CONVERGED


def judge_set(
    judged: Sequence[JudgedRun], ruleset: str, *, required_runs: int = RUNS, cv_limit: float = 5.0, name: str = ""
) -> tuple[SetResult, tuple[Finding, ...]]:
    """Judges what only several runs together show.

    Args:
        judged: the runs, each already judged.
        ruleset: "6.0.0" or "6.1.0".
        required_runs: runs of a result: 10 by the rules.
        cv_limit: limit of the coefficient of variation in percent, of this project.
        name: of the set, in messages.

    Returns:
        The set's figures, and the findings of the rules on sets.
    """
    runs = [each.summary for each in judged]
    window = _window(runs, required_runs)
    batch = _batch(runs)
    samples = [_samples(run) for run in window]
    olympic_samples = score.olympic_mean(samples) if len(samples) >= 3 else None
    tested = None
    if batch is not None and all(run.division != "open" for run in runs):
        tested = rcp.check_convergence(batch, olympic_samples, ruleset)
    step = common_eval_interval([each.run for each in judged])
    variance = _variance(window, step, batch, cv_limit)
    subject = RunSet(
        judged=tuple(each.run for each in judged), runs=tuple(runs), window=tuple(window),
        required_runs=required_runs, variance=variance, rcp=tested, olympic_samples=olympic_samples,
    )  # fmt: skip
    findings = tuple(finding for rule in SET_RULES for finding in rule.judge(subject))
    errors = any(finding.severity is Severity.ERROR for finding in [*findings, *_all(judged)])
    normalization = tested.pruned.normalization if tested is not None else 1.0
    scored = _score(window, valid=not errors, normalization=normalization)
    return SetResult(name, tuple(runs), scored, variance, tested, step), findings


def unverifiable_findings() -> tuple[Finding, ...]:
    """What no log proves, said once per report."""
    return tuple(finding for rule in UNVERIFIABLE for finding in rule.judge(None))


def _all(judged: Iterable[JudgedRun]) -> list[Finding]:
    return [finding for each in judged for finding in each.findings]


def _samples(run: RunSummary) -> float:
    """Samples to target for an olympic mean: infinite if it is not reached."""
    samples = run.samples_to_target
    # An evaluation at no samples, or less than none, is nonsense that other rules name.
    return math.inf if samples is None or samples < 1 or run.status is Status.NOT_CONVERGED else float(samples)


def _minutes(run: RunSummary) -> float:
    """Minutes for an olympic mean: infinite if the run did not converge."""
    return math.inf if run.minutes is None or math.isinf(_samples(run)) else run.minutes


def _batch(runs: Sequence[RunSummary]) -> int | None:
    """The batch size that most runs log."""
    sizes = Counter(run.global_batch_size for run in runs if run.global_batch_size and run.global_batch_size > 0)
    return sizes.most_common(1)[0][0] if sizes else None


def _window(runs: Sequence[RunSummary], required_runs: int) -> list[RunSummary]:
    """The runs that count: all of them, or of more than required_runs the median window."""
    started = [run for run in runs if run.start_ms is not None]
    if len(started) < max(required_runs, 3) or len(runs) <= required_runs:
        return sorted(runs, key=lambda run: math.inf if run.start_ms is None else run.start_ms)
    starts = [run.start_ms for run in started if run.start_ms is not None]
    return [started[index] for index in score.median_window(starts, [_minutes(run) for run in started], required_runs)]


def _variance(window: Sequence[RunSummary], step: int | None, batch: int | None, limit: float) -> Variance | None:
    """Spread over the runs of the window; those that did not converge are infinite, and left out."""
    if not window:
        return None
    return score.variance([_samples(run) for run in window], [_minutes(run) for run in window], step, batch, limit)


def _score(window: Sequence[RunSummary], *, valid: bool, normalization: float | None) -> Score | None:
    if len(window) < 3:
        return None
    minutes = [_minutes(run) for run in window]
    to_target = [math.inf if run.minutes_to_target is None else run.minutes_to_target for run in window]
    olympic = score.olympic_mean(minutes) if valid else None
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
    organisation, platform, division = map(run.value, ("submission_org", "submission_platform", "submission_division"))
    losses, rates, expected = _curves(run)
    return RunSummary(
        file=run.log.name,
        status=status,
        seed=whole_number(run.value("seed")),
        global_batch_size=run.count("global_batch_size"),
        learning_rate=run.number("opt_base_learning_rate"),
        warmup_steps=run.count("opt_learning_rate_warmup_steps"),
        samples_to_target=None if passing is None else passing.samples,
        minutes=run.score_minutes,
        minutes_to_target=None if passing is None else run.minutes(passing.time_ms),
        first_eval_loss=evaluations[0].loss if evaluations else None,
        final_eval_loss=evaluations[-1].loss if evaluations else None,
        target=run.target,
        start_ms=None if run.run_start is None else run.run_start.time_ms,
        evaluations=tuple(evaluations),
        train_loss=losses,
        logged_learning_rates=rates,
        expected_learning_rates=expected,
        phases=_phases(run),
        platform=platform if isinstance(platform, str) else None,
        division=division if isinstance(division, str) else None,
        organisation=organisation if isinstance(organisation, str) else None,
        system=system,
    )


def _curves(run: Run) -> tuple[Curve, Curve, Curve]:
    """Training loss, logged rates and expected rates at about a thousand points."""
    columns = run.log.train_losses
    samples, losses, rates = (np.asarray(each) for each in (columns.samples, columns.losses, columns.rates))
    stride = max(1, math.ceil(len(samples) / _CURVE_POINTS))
    samples, losses, rates = samples[::stride], losses[::stride], rates[::stride]
    known = np.isfinite(samples)
    loss = known & np.isfinite(losses)
    rate = known & np.isfinite(rates)
    schedule, batch = logged_schedule(run), run.count("global_batch_size")
    expected = Curve((), ())
    if schedule is not None and batch is not None and batch > 0 and rate.any():
        expected = _curve(samples[rate], Comparison(schedule, batch, samples[rate], rates[rate]).expected())
    return _curve(samples[loss], losses[loss]), _curve(samples[rate], rates[rate]), expected


def _curve(samples: NDArray[np.float64], values: NDArray[np.float64]) -> Curve:
    return Curve(tuple(samples.tolist()), tuple(values.tolist()))


_PHASES = {
    "init_start": ("init", "init_stop"),
    "block_start": ("training", "block_stop"),
    "eval_start": ("evaluation", "eval_stop"),
}


def _phases(run: Run) -> tuple[Phase, ...]:
    """Initialisation, training and evaluation, as far as their starts and stops pair up."""
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
