"""Rules on the evaluations: when, how many, of what, and what their losses allow."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from .. import benchmark
from ..findings import Severity
from ..run import Run, finite_float, whole_number
from ..schedule import Comparison, Schedule
from .rule import ABSENT, MAX_FINDINGS, Problem, Rule, rule

_QUALITY = "training rules, Quality measure"
_CADENCE = f"{_QUALITY}; gpt_oss_20b: every CEIL(12288 / GBS) steps"
_YAML = "mlperf-logging 4.1.68, compliance_checker/training_6.x.0/closed_gpt_oss_20b.yaml"


@rule("samples-count", Severity.ERROR, _YAML)
def samples_count(run: Run) -> Iterator[Problem]:
    """samples_count of the evaluations is a whole number that always grows, and run_stop has that of the last one.

    That of blocks, epochs and starts and stops of evaluations is a whole number that never shrinks.
    """
    last: int | None = None
    for record in run.all("eval_accuracy"):
        samples = whole_number(record.samples)
        if "samples_count" not in record.metadata:
            continue  # record-metadata says so
        if samples is None or samples < 0:
            message = "samples_count of an evaluation is not a whole number of samples"
            yield Problem(message, record.line, expected="a whole number", got=record.samples)
        elif last is not None and samples <= last:
            message = "samples_count of an evaluation does not grow"
            yield Problem(message, record.line, expected=f"more than {last}", got=samples)
        last = last if samples is None else samples
    yield from _interval_counts(run)
    stop = run.run_stop
    if stop is None or last is None:
        return
    if "samples_count" not in stop.metadata:
        message = "run_stop has no samples_count to compare with the last evaluation"
        yield Problem(message, stop.line, expected=str(last), severity=Severity.WARNING)
    elif whole_number(stop.samples) is None or (run.run_status == "success" and whole_number(stop.samples) != last):
        message = "samples_count of run_stop is not that of the last evaluation"
        yield Problem(message, stop.line, expected=str(last), got=stop.samples)


def _interval_counts(run: Run) -> Iterator[Problem]:
    """samples_count of blocks, epochs and starts and stops of evaluations: whole numbers that never shrink."""
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


@rule("eval-cadence", Severity.ERROR, _CADENCE)
def eval_cadence(run: Run) -> Iterator[Problem]:
    """Evaluations come every CEIL(12288 / GBS) x GBS samples: none missing, none extra, none off that grid.

    In the open division the first evaluation sets the interval.
    """
    interval = run.eval_interval_samples
    counts = [whole_number(record.samples) for record in run.all("eval_accuracy")]
    known = [count for count in counts if count is not None]
    grows = all(before < after for before, after in pairwise(known))
    if interval is None or len(known) < len(counts) or not grows:
        return  # other rules have said so
    due = interval
    for record, count in zip(run.all("eval_accuracy"), known, strict=True):
        if count % interval or count < interval:
            message = f"evaluation off the grid of every {interval:,} samples"
            yield Problem(message, record.line, expected=f"a positive multiple of {interval}", got=count)
        else:
            if count > due:
                missing = (count - due) // interval
                message = f"{missing} evaluation(s) missing: one is due every {interval:,} samples"
                yield Problem(message, record.line, expected=str(due), got=count)
            due = count + interval
    trained = run.trained_samples
    if run.passing_evaluation is None and trained is not None and trained > due:
        message = f"an evaluation is missing at the end: training went on to {trained:,} samples"
        yield Problem(message, expected=str(due), got=known[-1] if known else ABSENT)


@rule("eval-size", Severity.ERROR, f"{_QUALITY}; {_YAML}")
def eval_size(run: Run) -> Iterator[Problem]:
    """Every evaluation takes exactly 1,024 sequences, at any batch size; in the open division what the log declares."""
    declared = run.count("eval_samples")
    wanted = benchmark.EVAL_SAMPLES if run.division == "closed" else declared
    if wanted is None:
        return
    for record in run.all("eval_samples"):
        if whole_number(record.value) not in (None, wanted):
            message = "eval_samples is not what every evaluation must take"
            yield Problem(message, record.line, expected=str(wanted), got=record.value)
    for key in ("eval_start", "eval_accuracy", "eval_stop"):
        for record in run.all(key):
            # Where an evaluation says how many sequences it took, it must be as many.
            count = record.metadata.get("eval_samples")
            if count is not None and whole_number(count) != wanted:
                yield Problem(f"{key} of another number of sequences", record.line, expected=str(wanted), got=count)


@rule("eval-balance", Severity.ERROR, "mlperf-logging 4.1.68, compliance_checker/training_6.x.0/common.yaml")
def eval_balance(run: Run) -> Iterator[Problem]:
    """Every block, epoch and evaluation that starts stops, in turn, and every loss has its evaluation.

    The last block may be open when a run aborts, and an epoch when it ends.
    """
    for start, stop in benchmark.INTERVALS.items():
        opened = None
        for record in run.records:
            if record.key == start:
                if opened is not None:
                    yield Problem(f"{start} before the last one (line {opened.line}) has its {stop}", record.line)
                opened = record
            elif record.key == stop:
                if opened is None:
                    yield Problem(f"{stop} without its {start}", record.line)
                opened = None
        if opened is not None and start != "epoch_start" and run.run_status != "aborted":
            yield Problem(f"{start} without its {stop}", opened.line)
    started, losses = len(run.all("eval_start")), len(run.all("eval_accuracy"))
    unfinished = run.run_status == "aborted" and started == losses + 1
    # None at all is for record-required.
    if started and losses and started != losses and not unfinished:
        more, less = ("losses", "evaluations that start") if started < losses else ("evaluations", "losses")
        message = f"more {more} than {less}"
        yield Problem(message, run.all("eval_accuracy")[-1].line, expected=f"{losses} eval_start", got=started)


@rule("eval-loss", Severity.ERROR, _YAML)
def eval_loss(run: Run) -> Iterator[Problem]:
    """The loss of every evaluation is a positive finite number."""
    for record in run.all("eval_accuracy"):
        loss = finite_float(record.value)
        if loss is None or loss <= 0:
            message = "eval_accuracy is no possible loss"
            yield Problem(message, record.line, expected="a positive finite number", got=record.value)


@rule("eval-after-target", Severity.ERROR, "training rules, Run Results; gpt_oss_20b: stop at the first that passes")
def eval_after_target(run: Run) -> Iterator[Problem]:
    """The run ends at the first evaluation that meets the target; it neither trains nor evaluates on."""
    passing = run.passing_evaluation
    if passing is None:
        return
    keys = (*benchmark.INTERVALS, *benchmark.INTERVALS.values(), "eval_accuracy")
    after = [record for key in keys for record in run.all(key) if record.line > passing.line]
    later = [(record.line, whole_number(record.samples) or 0) for record in after]
    later = [(line, samples) for line, samples in later if samples > passing.samples]
    losses = run.log.train_losses
    lines, samples = np.asarray(losses.lines), np.asarray(losses.samples)
    # A loss that does not say how far training is comes after it as well.
    trained = np.flatnonzero((lines > passing.line) & ~(samples <= passing.samples))
    if later or len(trained):
        counted = [samples[index] for index in trained[-1:] if np.isfinite(samples[index])]
        last = int(max([count for _, count in later] + counted, default=passing.samples))
        line = min([line for line, _ in later] + [losses.lines[index] for index in trained[:1]])
        message = f"training goes on after an evaluation met the target of {run.target}"
        expected = f"run_stop at {passing.samples} samples (line {passing.line}: {passing.loss:.4f})"
        yield Problem(message, line, expected=expected, got=last)


@rule("eval-target", Severity.ERROR, _YAML)
def eval_target(run: Run) -> Iterator[Problem]:
    """A run that says success ends with an evaluation that meets the target."""
    if run.run_status == "success" and run.evaluations and not 0 < run.evaluations[-1].loss <= run.target:
        last = run.evaluations[-1]
        message = "run_stop says success, but the last evaluation does not meet the target"
        yield Problem(message, last.line, expected=f"<= {run.target}", got=last.loss)


@rule("run-not-converged", Severity.ERROR, "training rules, Benchmark Results")
def run_not_converged(run: Run) -> Iterator[Problem]:
    """A run judged alone has converged. In a set, one that has not may be the one dropped as the slowest."""
    if run.run_status == "aborted":
        losses = [each.loss for each in run.evaluations]
        stop = run.run_stop
        message = "the run was aborted: it counts as not converged, and a set may hold one such run"
        expected = f"status success, loss <= {run.target}"
        yield Problem(message, stop.line if stop else None, expected=expected, got=losses[-1] if losses else ABSENT)


@rule("schedule-rate", Severity.ERROR, "training rules, Hyperparameters; Megatron-Core's OptimizerParamScheduler")
def schedule_rate(run: Run) -> Iterator[Problem]:
    """The learning rates that train_loss records log are those of the logged schedule.

    Linear warm-up from 0 and a cosine, within 2e-7; see `compliance.schedule` for what may differ between logs. Logs
    without learning rates are not verifiable.
    """
    schedule, batch = logged_schedule(run), run.count("global_batch_size")
    if schedule is None or batch is None or batch < 1:
        return
    losses = run.log.train_losses
    samples, rates = np.asarray(losses.samples), np.asarray(losses.rates)
    usable = np.isfinite(samples) & np.isfinite(rates)
    if not usable.any():
        message = "no train_loss record has a learning rate and a samples_count to compare with the schedule"
        yield Problem(message, severity=Severity.UNVERIFIABLE)
        return
    places = None if usable.all() else np.flatnonzero(usable)  # no copy of a million rates for nothing
    if places is not None:
        samples, rates = samples[places], rates[places]
    comparison = Comparison(schedule, batch, samples, rates)
    for index in comparison.wrong()[: MAX_FINDINGS + 1]:
        message = f"the learning rate at {int(samples[index]):,} samples contradicts the logged schedule"
        expected = f"{float(comparison.expected(index)):.10g}"
        line = losses.lines[index if places is None else places[index]]
        yield Problem(message, line, expected=expected, got=float(rates[index]))


def logged_schedule(run: Run) -> Schedule | None:
    """The schedule as the log describes it; None where a number is missing or it is not the benchmark's kind."""
    base, end = run.number("opt_base_learning_rate"), run.number("opt_end_learning_rate")
    names = ("opt_learning_rate_warmup_steps", "opt_learning_rate_decay_steps", "max_steps")
    warmup, decay, last = map(run.count, names)
    kind = run.value("opt_learning_rate_decay_schedule")
    if base is None or end is None or warmup is None or decay is None or last is None:
        return None
    if kind != benchmark.FIXED["opt_learning_rate_decay_schedule"] or not 0 <= warmup <= last:
        return None
    return Schedule(base, end, warmup, decay, last)


RULES: tuple[Rule[Run], ...] = (
    samples_count,
    eval_cadence,
    eval_size,
    eval_balance,
    eval_loss,
    eval_after_target,
    eval_target,
    schedule_rate,
)
