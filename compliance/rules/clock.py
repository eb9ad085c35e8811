"""Rules on the clock: initialization, start, stop, order of times."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from .. import benchmark
from ..findings import Severity
from ..run import JITTER_MS, Run
from .rule import COMMON_YAML, MAX_FINDINGS, OWN, Problem, rule, value_problem

_RUN_RESULTS = "training rules, Run Results"
_STOP_LIMIT_S = 60
_MINUTE_MS, _HOUR_MS = 60_000, 3_600_000
_CHUNK = 1 << 16
# Keys that may only be logged between run_start and run_stop.
_TIMED_KEYS = (*benchmark.INTERVAL_KEYS, "eval_tokens_sha256", "tracked_stats", "resumed")
_NEVER_AFTER_STOP = (
    *benchmark.INTERVAL_KEYS, "eval_tokens_sha256", "resumed", "init_start", "init_stop", "run_start",
)  # fmt: skip


@rule("cache-clear", Severity.ERROR, "training rules, Data State at Start of Run")
def cache_clear(run: Run) -> Iterator[Problem]:
    """Require cache_clear true before run_start. In the open division false is a warning.

    Further ones after run_stop, to clean up, are not judged.
    """
    start, stop = run.run_start, run.run_stop
    for number, record in enumerate(run.all("cache_clear")):
        if number and stop is not None and record.line > stop.line:
            continue
        if record.value is not True:
            severity = Severity.WARNING if run.division == "open" and record.value is False else None
            yield value_problem(record, "the caches were not cleared before the run", "true", severity)
        is_late = start is not None and run.times_in_ms and record.time_ms > start.time_ms + JITTER_MS
        if start is not None and (is_late or record.line > start.line):
            yield Problem(f"cache_clear after run_start (line {start.line})", record.line, expected="before run_start")


@rule("clock-order", Severity.ERROR, COMMON_YAML)
def clock_order(run: Run) -> Iterator[Problem]:
    """Require the order init_start, init_stop, run_start."""
    # By line and, beyond jitter, by time: either order can be wrong alone.
    milestones = [run.first(key) for key in ("init_start", "init_stop", "run_start")]
    for before, after in pairwise(record for record in milestones if record is not None):
        if after.line < before.line or after.time_ms < before.time_ms - JITTER_MS:
            message = f"{after.key} comes before {before.key} (line {before.line})"
            yield Problem(message, after.line, expected="init_start, init_stop, run_start")


@rule("clock-init-limit", Severity.ERROR, _RUN_RESULTS)
def clock_init_limit(run: Run) -> Iterator[Problem]:
    """Limit the time from the first init_start to run_start to 30 minutes, 240 in the open division.

    The official checker measures to init_stop only, which leaves the time from there to run_start unlimited.
    """
    start, limit = run.run_start, benchmark.INIT_LIMIT_MINUTES[run.division]
    if start is None or not run.all("init_start") or not run.times_in_ms:
        return
    minutes = (start.time_ms - min(record.time_ms for record in run.all("init_start"))) / _MINUTE_MS
    if minutes > limit:
        message = "initialization before run_start takes too long"
        yield Problem(message, start.line, expected=f"at most {limit} minutes", got=round(minutes, 3))


@rule("clock-init-measured", Severity.WARNING, OWN, of_set=True)
def clock_init_measured(run: Run) -> Iterator[Problem]:
    """Warn if the first init_start may be late: logged after the description, or an hour after cache_clear."""
    inits, described = run.all("init_start"), [record for key in benchmark.DESCRIPTION for record in run.all(key)[:1]]
    if not inits or not run.times_in_ms:
        return
    first, stop = min(inits, key=attrgetter("time_ms")), run.first("init_stop")
    if stop is not None and stop.line < first.line:
        return  # clock-order reports this
    before = [each for each in described if each.line < first.line and each.time_ms < first.time_ms]
    cleared = run.first("cache_clear")
    measured = "the init limit was measured from init_start, which is logged"
    if before:
        message = f"{measured} after {before[0].key} and {len(before) - 1} more"
        yield Problem(message, first.line, expected="init_start first")
    elif cleared is not None and len(inits) == 1 and (hours := (first.time_ms - cleared.time_ms) / _HOUR_MS) > 1:
        yield Problem(f"{measured} {hours:.1f} hours after cache_clear", first.line, expected="at most an hour")


@rule("clock-run-start", Severity.ERROR, _RUN_RESULTS)
def clock_run_start(run: Run) -> Iterator[Problem]:
    """Require a single run_start before all records of training, evaluation or data."""
    start = run.run_start
    if start is None:
        return
    for again in run.all("run_start")[1:]:
        yield Problem(f"second run_start; the first is in line {start.line}", again.line, expected="one run_start")
    timed = [(record.line, record.time_ms) for record in run.records if record.key in _TIMED_KEYS]
    losses = run.log.train_losses
    timed += zip(losses.lines[:1], losses.times_ms[:1], strict=True)
    # Earlier by its time. By its line only at the same time: the lines of ranks may arrive out of order.
    early = [
        line for line, time_ms in timed if time_ms < start.time_ms or (line < start.line and time_ms <= start.time_ms)
    ]
    if early:
        message = f"training, evaluation or data before run_start (line {start.line})"
        yield Problem(message, min(early), expected="after run_start")


@rule("clock-run-stop", Severity.ERROR, _RUN_RESULTS)
def clock_run_stop(run: Run) -> Iterator[Problem]:
    """Require a single run_stop, after run_start, and not before the passing evaluation or earlier records."""
    start, stop, passing = run.run_start, run.run_stop, run.passing_evaluation
    if stop is None:
        return
    for again in run.all("run_stop")[1:]:
        yield Problem(f"second run_stop; the first is in line {stop.line}", again.line, expected="one run_stop")
    is_instant = start is not None and stop.time_ms == start.time_ms and bool(run.evaluations)
    if start is not None and (stop.time_ms < start.time_ms or is_instant):
        yield Problem(f"run_stop is not later than run_start (line {start.line})", stop.line)
    elif passing is not None and stop.time_ms < passing.time_ms:
        message = f"run_stop is earlier than the passing evaluation (line {passing.line})"
        yield Problem(message, stop.line, expected=f">= {passing.time_ms:.0f}", got=stop.time_ms)
    elif passing is None:
        # After a pass, only the passing evaluation limits how early run_stop may be.
        before = [record for record in run.records if record.line < stop.line]
        latest = max(before, key=attrgetter("time_ms"), default=None)
        if latest is not None and stop.time_ms < latest.time_ms - JITTER_MS:
            message = f"run_stop is earlier than {latest.key} before it (line {latest.line})"
            yield Problem(message, stop.line, expected=f">= {latest.time_ms:.0f}", got=stop.time_ms)


@rule("clock-after-stop", Severity.ERROR, f"{_RUN_RESULTS}; {COMMON_YAML}", of_set=True)
def clock_after_stop(run: Run) -> Iterator[Problem]:
    """Reject training, evaluation, data and milestones after run_stop. Other records may follow it."""
    stop = run.run_stop
    if stop is None:
        return
    after = [record for record in run.records if record.line > stop.line and record.key != "run_stop"]
    lines = {key: [record.line for record in after if record.key == key] for key in _NEVER_AFTER_STOP}
    losses = run.log.train_losses
    lines["train_loss"] = losses.lines[bisect_right(losses.lines, stop.line) :].tolist()
    for key, late in lines.items():
        if late:
            yield Problem(f"records of {key} after run_stop", late[0], expected="before run_stop", got=len(late))
    others = [record for record in after if record.key not in lines]
    if others:
        keys = ", ".join(dict.fromkeys(record.key for record in others))
        yield Problem(f"after run_stop, to describe the run: {keys}", others[0].line, severity=Severity.INFO)


@rule("clock-stop-late", Severity.WARNING, OWN)
def clock_stop_late(run: Run) -> Iterator[Problem]:
    """Warn if run_stop comes over 60 seconds after the last evaluation of a converged run: the score includes them."""
    stop, passing = run.run_stop, run.passing_evaluation
    if stop is None or passing is None or not run.times_in_ms:
        return
    # eval-after-target reports evaluations after the passing one; they are no reason for a late stop.
    last = max(run.evaluations[-1].time_ms, passing.time_ms)
    seconds = (stop.time_ms - last) / 1000
    if seconds > _STOP_LIMIT_S:
        message = "run_stop comes long after the last evaluation"
        yield Problem(message, stop.line, expected=f"within {_STOP_LIMIT_S} s", got=round(seconds, 1))


@rule("clock-backwards", Severity.ERROR, "training rules, Run Results: the clock may not be paused")
def clock_backwards(run: Run) -> Iterator[Problem]:
    """Require times that never decrease by more than a second from one record to the next.

    Other rules check the times of run_start and run_stop.
    """
    if not run.times_in_ms:
        return
    latest, was_back = -math.inf, False
    for lines, times in _times_in_file_order(run):
        latest_before = np.maximum.accumulate(np.concatenate([[latest], times]))
        is_back = (latest_before[:-1] - times) > JITTER_MS
        # One jump puts all later records behind. Only the first of them is reported.
        for index in np.flatnonzero(is_back & ~np.concatenate([[was_back], is_back[:-1]]))[: MAX_FINDINGS + 1]:
            seconds = (latest_before[index] - times[index]) / 1000
            yield Problem(f"the clock jumps back by {seconds:,.1f} s", int(lines[index]), got=f"{seconds:.1f} s")
        latest, was_back = latest_before[-1], bool(is_back[-1])


def _times_in_file_order(run: Run) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield lines and times of all records except run_start and run_stop, in chunks: a log may hold a million."""
    records = [record for record in run.records if record.key not in ("run_start", "run_stop")]
    losses = run.log.train_losses
    loss_lines, loss_times = np.asarray(losses.lines), np.asarray(losses.times_ms)
    first = 0
    for start in range(0, max(len(losses), 1), _CHUNK):
        stop = start + _CHUNK
        end = len(records)
        if stop < len(losses):
            end = bisect_left(records, losses.lines[stop], key=attrgetter("line"))
        chunk, first = records[first:end], end
        lines = np.concatenate([np.asarray([record.line for record in chunk], np.int64), loss_lines[start:stop]])
        times = np.concatenate([np.asarray([record.time_ms for record in chunk]), loss_times[start:stop]])
        order = np.lexsort((times, lines))  # several records of one line by time
        if len(order):
            yield lines[order], times[order]


@rule("run-status", Severity.ERROR, COMMON_YAML)
def run_status(run: Run) -> Iterator[Problem]:
    """Require status success or aborted in run_stop."""
    for record in run.all("run_stop"):
        status = record.metadata.get("status", "success")
        if status not in ("success", "aborted"):
            message = "the status of run_stop is neither success nor aborted"
            yield Problem(message, record.line, expected="success or aborted", got=status)
