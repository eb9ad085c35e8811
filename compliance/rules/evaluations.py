"""Rules on evaluations: their interval, number, size and losses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from .. import benchmark
from ..findings import Severity
from ..json_values import finite_float, whole_number
from ..run import Run
from ..schedule import Comparison, Schedule
from .rule import ABSENT, CLOSED_YAML, COMMON_YAML, MAX_FINDINGS, OFFICIAL, Problem, rule, value_problem

_QUALITY = "training rules, Quality measure"
_CADENCE = f"{_QUALITY}; gpt_oss_20b: every CEIL(12288 / GBS) steps"


@rule("samples-count", Severity.ERROR, CLOSED_YAML)
def samples_count(run: Run) -> Iterator[Problem]:
    """Require a whole, growing samples_count in evaluations, and that of the last one in run_stop.

    In blocks, epochs, eval_start and eval_stop it is a whole number that never decreases.
    """
    last: int | None = None
    for record in run.all("eval_accuracy"):
        samples = whole_number(record.samples)
        if "samples_count" not in record.metadata:
            continue  # record-metadata reports this
        if samples is None or samples < 0:
            message = "samples_count of an evaluation is not a whole number of samples"
            yield Problem(message, record.line, expected="a whole number", got=record.samples)
        elif last is not None and samples <= last:
            message = "samples_count of an evaluation does not grow"
            yield Problem(message, record.line, expected=f"more than {last}", got=samples)
        # An unreadable count is skipped, so that the next one is compared with the last readable one.
        last = last if samples is None else samples
    yield from _decreasing_counts(run)
    stop = run.run_stop
    if stop is None or last is None:
        return
    if "samples_count" not in stop.metadata:
        message = "run_stop has no samples_count to compare with the last evaluation"
        yield Problem(message, stop.line, expected=str(last), severity=Severity.WARNING)
    elif whole_number(stop.samples) is None or (run.run_status == "success" and whole_number(stop.samples) != last):
        message = "samples_count of run_stop is not that of the last evaluation"
        yield Problem(message, stop.line, expected=str(last), got=stop.samples)


def _decreasing_counts(run: Run) -> Iterator[Problem]:
    """Yield a problem for each samples_count of an interval key that is not whole or decreases."""
    for key in (*benchmark.INTERVALS, *benchmark.INTERVALS.values()):
        last = 0
        for record in run.all(key):
            if "samples_count" not in record.metadata:
                continue
            samples = whole_number(record.samples)
            if samples is None or samples < last:
                message = f"samples_count of {key} is not a whole number of at least {last}"
                yield Problem(message, record.line, expected=f">= {last}", got=record.samples)
            last = last if samples is None else samples


@rule("eval-cadence", Severity.ERROR, _CADENCE, of_set=True)
def eval_cadence(run: Run) -> Iterator[Problem]:
    """Require an evaluation exactly every CEIL(12288 / GBS) x GBS samples.

    A run that keeps another interval throughout is one finding. In the open division the first evaluation sets the
    interval.
    """
    interval = run.eval_interval_samples
    counts = [whole_number(record.samples) for record in run.all("eval_accuracy")]
    known = [count for count in counts if count is not None]
    # Without a growing series, the number of missing evaluations would be meaningless.
    is_growing = all(before < after for before, after in pairwise(known))
    if interval is None or len(known) < len(counts) or not is_growing:
        return  # other rules report this
    regular, batch = run.regular_interval, run.count("global_batch_size")
    if regular is not None and regular != interval and batch is not None and len(run.evaluations) == len(known):
        yield Problem(
            f"evaluates every {_steps(regular, batch)}; the rules say CEIL, {_steps(interval, batch)}",
            run.evaluations[0].line, expected=f"every {interval} samples", got=regular,
        )  # fmt: skip
        interval = regular
    due = interval
    for record, count in zip(run.all("eval_accuracy"), known, strict=True):
        if count % interval or count < interval:
            message = f"evaluation off the grid of every {interval:,} samples"
            yield Problem(message, record.line, expected=f"a positive multiple of {interval}", got=count)
        else:
            if count > due:
                # A gap is one finding, and the grid continues after it.
                missing = (count - due) // interval
                message = f"{missing} evaluation(s) missing: one is due every {interval:,} samples"
                yield Problem(message, record.line, expected=str(due), got=count)
            due = count + interval
    trained = run.trained_samples
    if run.passing_evaluation is None and trained is not None and trained > due:
        message = f"an evaluation is missing at the end: training continued to {trained:,} samples"
        yield Problem(message, expected=str(due), got=known[-1] if known else ABSENT)


def _steps(samples: int, batch: int) -> str:
    """Return an interval in steps and samples.

    >>> _steps(12276, 36), _steps(12312, 36), _steps(8192, 36)
    ('341 steps, FLOOR = 12,276 samples', '342 steps = 12,312 samples', '227.6 steps = 8,192 samples')
    """
    is_floor = samples == benchmark.EVAL_INTERVAL_SAMPLES // batch * batch and benchmark.EVAL_INTERVAL_SAMPLES % batch
    return f"{samples / batch:.4g} steps{', FLOOR' if is_floor else ''} = {samples:,} samples"


@rule("eval-size", Severity.ERROR, f"{_QUALITY}; {CLOSED_YAML}")
def eval_size(run: Run) -> Iterator[Problem]:
    """Require 1,024 sequences per evaluation at any batch size; in the open division the declared number."""
    required = benchmark.EVAL_SAMPLES if run.division == "closed" else run.count("eval_samples")
    if required is None:
        return
    for record in run.all("eval_samples"):
        if whole_number(record.value) not in (None, required):
            yield value_problem(record, "eval_samples is not the required number of sequences", required)
    for key in ("eval_start", "eval_accuracy", "eval_stop"):
        for record in run.all(key):
            count = record.metadata.get("eval_samples")  # optional
            if count is not None and whole_number(count) != required:
                message = f"{key} with another number of sequences"
                yield Problem(message, record.line, expected=str(required), got=count)


@rule("eval-balance", Severity.ERROR, COMMON_YAML)
def eval_balance(run: Run) -> Iterator[Problem]:
    """Require matching starts and stops of blocks, epochs and evaluations, and an evaluation for every loss.

    The last block may be open when a run aborts, and the last epoch at any end of a run.
    """
    for start, stop in benchmark.INTERVALS.items():
        opened = None
        for record in run.records:
            if record.key == start:
                if opened is not None:
                    yield Problem(f"second {start} before the {stop} of line {opened.line}", record.line)
                opened = record
            elif record.key == stop:
                if opened is None:
                    yield Problem(f"{stop} without its {start}", record.line)
                opened = None
        if opened is not None and start != "epoch_start" and run.run_status != "aborted":
            yield Problem(f"{start} without its {stop}", opened.line)
    starts, losses = len(run.all("eval_start")), len(run.all("eval_accuracy"))
    is_unfinished = run.run_status == "aborted" and starts == losses + 1
    # record-required reports a log without any.
    if starts and losses and starts != losses and not is_unfinished:
        more, fewer = ("losses", "evaluations that start") if starts < losses else ("evaluations", "losses")
        line = run.all("eval_accuracy")[-1].line
        yield Problem(f"more {more} than {fewer}", line, expected=f"{losses} eval_start", got=starts)


@rule("eval-loss", Severity.ERROR, CLOSED_YAML)
def eval_loss(run: Run) -> Iterator[Problem]:
    """Require positive finite evaluation losses."""
    for record in run.all("eval_accuracy"):
        loss = finite_float(record.value)
        if loss is None or loss <= 0:
            yield value_problem(record, "eval_accuracy is not a possible loss", "a positive finite number")


@rule(
    "eval-after-target",
    Severity.ERROR,
    f"training rules, Run Results; {OFFICIAL}rcp_checker: the last evaluation counts as convergence",
)
def eval_after_target(run: Run) -> Iterator[Problem]:
    """Require the run to end at the first evaluation that meets the target: later ones would inflate its samples."""
    passing = run.passing_evaluation
    if passing is None:
        return
    after = [record for key in benchmark.INTERVAL_KEYS for record in run.all(key) if record.line > passing.line]
    later = [(record.line, whole_number(record.samples) or 0) for record in after]
    later = [(line, samples) for line, samples in later if samples > passing.samples]
    losses = run.log.train_losses
    lines, samples = np.asarray(losses.lines), np.asarray(losses.samples)
    # Not `samples > passing.samples`: a loss without a samples_count is NaN there and counts as later, too.
    trained = np.flatnonzero((lines > passing.line) & ~(samples <= passing.samples))
    if later or len(trained):
        counted = [samples[index] for index in trained[-1:] if np.isfinite(samples[index])]
        last = int(max([count for _, count in later] + counted, default=passing.samples))
        line = min([line for line, _ in later] + [losses.lines[index] for index in trained[:1]])
        message = f"training continues after an evaluation met the target of {run.target}"
        expected = f"run_stop at {passing.samples} samples (line {passing.line}: {passing.loss:.4f})"
        yield Problem(message, line, expected=expected, got=last)


@rule("eval-target", Severity.ERROR, CLOSED_YAML)
def eval_target(run: Run) -> Iterator[Problem]:
    """Require the last evaluation of a run with status success to meet the target."""
    if run.run_status == "success" and run.evaluations and not 0 < run.evaluations[-1].loss <= run.target:
        last = run.evaluations[-1]
        message = "status is success, but the last evaluation does not meet the target"
        yield Problem(message, last.line, expected=f"<= {run.target}", got=last.loss)


@rule("run-not-converged", Severity.ERROR, "training rules, Benchmark Results")
def run_not_converged(run: Run) -> Iterator[Problem]:
    """Require convergence of a run that is judged alone. In a set, one other run may be dropped as the slowest."""
    if run.run_status == "aborted":
        stop = run.run_stop
        message = "the run was aborted and did not converge; a set may hold one such run"
        expected = f"status success, loss <= {run.target}"
        got = run.evaluations[-1].loss if run.evaluations else ABSENT
        yield Problem(message, stop.line if stop else None, expected=expected, got=got)


@rule("schedule-rate", Severity.ERROR, "training rules, Hyperparameters; Megatron-Core's OptimizerParamScheduler")
def schedule_rate(run: Run) -> Iterator[Problem]:
    """Compare the learning rates of train_loss records with the logged schedule.

    The schedule is a linear warm-up from 0 and a cosine, the tolerance 2e-7. `compliance.schedule` lists accepted
    differences between logs. A rate that is no number contradicts any schedule. A log without learning rates is
    unverifiable.
    """
    losses = run.log.train_losses
    for index in np.flatnonzero(np.isinf(np.asarray(losses.learning_rates)))[: MAX_FINDINGS + 1]:
        yield Problem("the lr of a train_loss is not a finite number", losses.lines[index], expected="a finite number")
    schedule, batch = logged_schedule(run), run.count("global_batch_size")
    if schedule is None or batch is None or batch < 1:
        return
    samples, rates = np.asarray(losses.samples), np.asarray(losses.learning_rates)
    is_usable = np.isfinite(samples) & np.isfinite(rates)
    if not is_usable.any():
        message = "no train_loss record has a learning rate and a samples_count to compare with the schedule"
        yield Problem(message, severity=Severity.UNVERIFIABLE)
        return
    # Indexing copies the columns; a log with a million complete records keeps its own.
    usable = None if is_usable.all() else np.flatnonzero(is_usable)
    if usable is not None:
        samples, rates = samples[usable], rates[usable]
    comparison = Comparison(schedule, batch, samples, rates)
    for index in comparison.wrong()[: MAX_FINDINGS + 1]:
        message = f"the learning rate at {int(samples[index]):,} samples contradicts the logged schedule"
        expected = f"{float(comparison.expected(index)):.10g}"
        line = losses.lines[index if usable is None else usable[index]]
        yield Problem(message, line, expected=expected, got=float(rates[index]))


def logged_schedule(run: Run) -> Schedule | None:
    """Return the logged schedule; None if a number is missing or the schedule is not the benchmark's kind."""
    base, end = run.number("opt_base_learning_rate"), run.number("opt_end_learning_rate")
    names = ("opt_learning_rate_warmup_steps", "opt_learning_rate_decay_steps", "max_steps")
    warmup, decay, last = map(run.count, names)
    kind = run.value("opt_learning_rate_decay_schedule")
    if base is None or end is None or warmup is None or decay is None or last is None:
        return None
    if kind != benchmark.FIXED["opt_learning_rate_decay_schedule"] or not 0 <= warmup <= last:
        return None
    return Schedule(base, end, warmup, decay, last)
