"""Rules on a run that was interrupted and went on from a checkpoint: the record `resumed`, which this project logs.

MLPerf's rules leave checkpoints to the submitter and want a contiguous period on a clock that is not paused; its
checker allows the key and does not look at it. A log whose clock ran on is therefore valid, and says what happened.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Severity
from ..records import Record
from ..run import Run, whole_number
from .rule import Problem, Rule, rule


@rule("run-resumed", Severity.WARNING, "this project; training rules, Run Results: the clock may not be paused")
def run_resumed(run: Run) -> Iterator[Problem]:
    """An interrupted run that went on is named; the gap is in its score.

    It is an error if the log does not say from how many samples, or if training before the record went beyond them, or
    training after it repeats them: what came after the checkpoint stands in the log once.
    """
    for record in run.all("resumed"):
        samples = whole_number(record.value)
        if samples is None or samples < 0 or whole_number(record.metadata.get("samples_count", samples)) != samples:
            message = "resumed does not say from how many samples the run went on"
            expected = "a whole number, samples_count alike"
            yield Problem(message, record.line, expected=expected, got=record.value, severity=Severity.ERROR)
            continue
        seconds = (record.time_ms - _time_before(run, record)) / 1000
        message = (
            f"the run was interrupted and went on from its checkpoint at {samples:,} samples, "
            f"{seconds:,.1f} s after the record before it; the gap is in the score"
        )
        yield Problem(message, record.line)
        yield from _order(run, record, samples)


def _time_before(run: Run, resumed: Record) -> float:
    """The latest time of the records before it; its own if it is the first."""
    losses = run.log.train_losses
    trained = np.asarray(losses.times_ms)[np.asarray(losses.lines) < resumed.line]
    others = [record.time_ms for record in run.records if record.line < resumed.line]
    return max([*others, *trained[-1:]], default=resumed.time_ms)


def _order(run: Run, resumed: Record, samples: int) -> Iterator[Problem]:
    losses = run.log.train_losses
    lines, counts = np.asarray(losses.lines), np.asarray(losses.samples)
    trained = counts[(lines < resumed.line) & np.isfinite(counts)]
    evaluations = [record.samples for record in run.all("eval_accuracy") if record.line < resumed.line]
    reached = max([0, *trained, *(count for count in map(whole_number, evaluations) if count is not None)])
    if reached > samples:
        message = f"training went on from {samples:,} samples, but stands in the log to {int(reached):,} before that"
        yield Problem(message, resumed.line, expected=f"<= {samples}", got=int(reached), severity=Severity.ERROR)
    again = np.flatnonzero((lines > resumed.line) & (counts <= samples))
    if len(again):
        message = f"train_loss after a checkpoint at {samples:,} samples (line {resumed.line}) does not go beyond them"
        got, line = int(counts[again[0]]), losses.lines[again[0]]
        yield Problem(message, line, expected=f"more than {samples}", got=got, severity=Severity.ERROR)


RULES: tuple[Rule[Run], ...] = (run_resumed,)
