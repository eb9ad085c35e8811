"""Rules on the clock: initialisation, start, stop, and time itself."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from .. import benchmark
from ..findings import Severity
from ..run import JITTER_MS, Run
from .rule import MAX_FINDINGS, Problem, Rule, rule

_RUN_RESULTS = "training rules, Run Results"
_COMMON = "mlperf-logging 4.1.68, compliance_checker/training_6.x.0/common.yaml"
_STOP_LIMIT_S = 60
_MINUTE_MS = 60_000
_STRETCH = 1 << 16
# What happens on the clock only.
_ON_THE_CLOCK = (
    *benchmark.INTERVALS,
    *benchmark.INTERVALS.values(),
    "eval_accuracy",
    "eval_tokens_sha256",
    "tracked_stats",
    "resumed",
)


@rule("cache-clear", Severity.ERROR, "training rules, Data State at Start of Run")
def cache_clear(run: Run) -> Iterator[Problem]:
    """cache_clear is true, and comes before run_start. In the open division false is a warning."""
    for record in run.all("cache_clear"):
        if record.value is not True:
            severity = Severity.WARNING if run.division == "open" and record.value is False else None
            message = "the caches were not cleared before the run"
            yield Problem(message, record.line, expected="true", got=record.value, severity=severity)
        start = run.run_start
        late = start is not None and run.times_in_ms and record.time_ms > start.time_ms + JITTER_MS
        if start is not None and (late or record.line > start.line):
            message = f"cache_clear after run_start (line {start.line})"
            yield Problem(message, record.line, expected="before run_start")


@rule("clock-order", Severity.ERROR, _COMMON)
def clock_order(run: Run) -> Iterator[Problem]:
    """init_start, init_stop and run_start come in this order."""
    milestones = [run.first(key) for key in ("init_start", "init_stop", "run_start")]
    found = [record for record in milestones if record is not None]
    for before, after in pairwise(found):
        if after.line < before.line or after.time_ms < before.time_ms - JITTER_MS:
            message = f"{after.key} comes before {before.key} (line {before.line})"
            yield Problem(message, after.line, expected="init_start, init_stop, run_start")


@rule("clock-init-limit", Severity.ERROR, _RUN_RESULTS)
def clock_init_limit(run: Run) -> Iterator[Problem]:
    """From the first init_start to run_start it takes at most 30 minutes, 240 in the open division.

    The official checker looks at init_stop alone, so that time between init_stop and run_start would be free.
    """
    start, limit = run.run_start, benchmark.INIT_LIMIT_MINUTES[run.division]
    if start is None or not run.all("init_start") or not run.times_in_ms:
        return
    minutes = (start.time_ms - min(record.time_ms for record in run.all("init_start"))) / _MINUTE_MS
    if minutes > limit:
        message = "initialisation takes too long before run_start"
        yield Problem(message, start.line, expected=f"at most {limit} minutes", got=round(minutes, 3))


@rule("clock-run-start", Severity.ERROR, _RUN_RESULTS)
def clock_run_start(run: Run) -> Iterator[Problem]:
    """The clock starts once, before the first record of training, evaluation or data."""
    start = run.run_start
    if start is None:
        return
    for again in run.all("run_start")[1:]:
        yield Problem(f"the clock starts again; it started in line {start.line}", again.line, expected="one run_start")
    early = [
        record for record in run.records if record.key in _ON_THE_CLOCK and _before(record.line, record.time_ms, run)
    ]
    losses = run.log.train_losses
    lines = [record.line for record in early]
    if len(losses) and _before(losses.lines[0], losses.times_ms[0], run):
        lines.append(losses.lines[0])
    if lines:
        message = f"training, evaluation or data before run_start (line {start.line})"
        yield Problem(message, min(lines), expected="after run_start")


def _before(line: int, time_ms: float, run: Run) -> bool:
    """Whether something happened before run_start: by its time, or in the file unless its time says otherwise."""
    start = run.run_start
    return start is not None and (time_ms < start.time_ms or (line < start.line and time_ms <= start.time_ms))


@rule("clock-run-stop", Severity.ERROR, _RUN_RESULTS)
def clock_run_stop(run: Run) -> Iterator[Problem]:
    """The clock stops once, not before run_start, nor before the evaluation that passes, or what else came before."""
    start, stop, passing = run.run_start, run.run_stop, run.passing_evaluation
    if stop is None:
        return
    for again in run.all("run_stop")[1:]:
        yield Problem(f"the clock stops again; it stopped in line {stop.line}", again.line, expected="one run_stop")
    if start is not None and stop.time_ms < start.time_ms:
        yield Problem(f"run_stop is earlier than run_start (line {start.line})", stop.line)
    elif passing is not None and stop.time_ms < passing.time_ms:
        message = f"run_stop is earlier than the evaluation that passes (line {passing.line})"
        yield Problem(message, stop.line, expected=f">= {passing.time_ms:.0f}", got=stop.time_ms)
    elif passing is None:
        before = [record for record in run.records if record.line < stop.line]
        latest = max(before, key=attrgetter("time_ms"), default=None)
        if latest is not None and stop.time_ms < latest.time_ms - JITTER_MS:
            message = f"run_stop is earlier than {latest.key} before it (line {latest.line})"
            yield Problem(message, stop.line, expected=f">= {latest.time_ms:.0f}", got=stop.time_ms)


@rule("clock-after-stop", Severity.ERROR, _RUN_RESULTS)
def clock_after_stop(run: Run) -> Iterator[Problem]:
    """Nothing happens after run_stop; a record that only describes the run is a warning there."""
    stop = run.run_stop
    if stop is None:
        return
    losses = run.log.train_losses
    if len(losses) and losses.lines[-1] > stop.line:
        yield Problem(f"train_loss after run_stop (line {stop.line})", losses.lines[-1], expected="before run_stop")
    for record in run.records:
        if record.line > stop.line and record.key != "run_stop":
            describes = record.key in benchmark.DESCRIPTION or record.key in benchmark.DISCLOSURE
            message = f"{record.key} after run_stop (line {stop.line})"
            severity = Severity.WARNING if describes else None
            yield Problem(message, record.line, expected="before run_stop", severity=severity)


@rule("clock-stop-late", Severity.WARNING, "this project")
def clock_stop_late(run: Run) -> Iterator[Problem]:
    """run_stop follows the last evaluation of a run that converged within 60 seconds; all of it is in the score."""
    stop, passing = run.run_stop, run.passing_evaluation
    if stop is None or passing is None or not run.times_in_ms:
        return
    # A run that trains on stops late after its last evaluation, which is another rule's business.
    last = max(run.evaluations[-1].time_ms, passing.time_ms)
    seconds = (stop.time_ms - last) / 1000
    if seconds > _STOP_LIMIT_S:
        message = "run_stop comes long after the last evaluation"
        yield Problem(message, stop.line, expected=f"within {_STOP_LIMIT_S} s", got=round(seconds, 1))


@rule("clock-backwards", Severity.ERROR, "training rules, Run Results: the clock may not be paused")
def clock_backwards(run: Run) -> Iterator[Problem]:
    """Time never runs back by more than a second from one record to the next.

    Where run_start and run_stop may stand is the business of rules of their own.
    """
    if not run.times_in_ms:
        return
    latest, early = -math.inf, False
    for lines, times in _in_file_order(run):
        # The latest time before each record.
        before = np.maximum.accumulate(np.concatenate([[latest], times]))
        back = (before[:-1] - times) > JITTER_MS
        # One jump makes every later record early: the first of each stretch is named.
        for index in np.flatnonzero(back & ~np.concatenate([[early], back[:-1]]))[: MAX_FINDINGS + 1]:
            seconds = (before[index] - times[index]) / 1000
            yield Problem(f"the clock runs back by {seconds:,.1f} s", int(lines[index]), got=f"{seconds:.1f} s")
        latest, early = before[-1], bool(back[-1])


def _in_file_order(run: Run) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Lines and times of all records but run_start and run_stop, in stretches: a log may have a million."""
    records = [record for record in run.records if record.key not in ("run_start", "run_stop")]
    losses = run.log.train_losses
    loss_lines, loss_times = np.asarray(losses.lines), np.asarray(losses.times_ms)
    begun = 0
    for start in range(0, max(len(losses), 1), _STRETCH):
        stop = start + _STRETCH
        ended = len(records)
        if stop < len(losses):
            ended = bisect_left(records, losses.lines[stop], key=attrgetter("line"))
        some, begun = records[begun:ended], ended
        lines = np.concatenate([np.asarray([record.line for record in some], np.int64), loss_lines[start:stop]])
        times = np.concatenate([np.asarray([record.time_ms for record in some]), loss_times[start:stop]])
        order = np.lexsort((times, lines))  # records of one line have no order to speak of
        if len(order):
            yield lines[order], times[order]


@rule("run-status", Severity.ERROR, _COMMON)
def run_status(run: Run) -> Iterator[Problem]:
    """The status in run_stop is success or aborted."""
    for record in run.all("run_stop"):
        status = record.metadata.get("status", "success")
        if status not in ("success", "aborted"):
            message = "the status of run_stop is neither success nor aborted"
            yield Problem(message, record.line, expected="success or aborted", got=status)


RULES: tuple[Rule[Run], ...] = (
    cache_clear,
    clock_order,
    clock_init_limit,
    clock_run_start,
    clock_run_stop,
    clock_after_stop,
    clock_stop_late,
    clock_backwards,
    run_status,
)
