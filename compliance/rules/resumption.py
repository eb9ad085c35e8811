"""Rules on runs that resumed from a checkpoint: the record `resumed`, which this project logs.

The MLPerf rules leave checkpoints to the submitter and require a contiguous period on a clock that is not paused. The
official checker allows the key and ignores it. A log whose clock kept running is therefore valid.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Severity
from ..json_values import whole_number
from ..records import Record
from ..run import Run
from .rule import OWN, Problem, rule, value_problem


@rule("run-resumed", Severity.WARNING, OWN)
def run_resumed(run: Run) -> Iterator[Problem]:
    """Warn about a resumed run: the score includes the interruption, and work after the checkpoint that is repeated.

    It is a warning, too, if `resumed` lacks the samples of the checkpoint.
    """
    for record in run.all("resumed"):
        samples = _samples_at_checkpoint(record)
        if samples is None:
            message = "resumed lacks the number of samples at its checkpoint"
            yield value_problem(record, message, "a whole number, equal to samples_count")
            continue
        seconds = (record.time_ms - _latest_time_before(run, record)) / 1000
        message = (
            f"the run was interrupted and resumed from a checkpoint at {samples:,} samples, {seconds:,.1f} s after "
            "the record before it; the score includes this time"
        )
        yield Problem(message, record.line)
        if (reached := _samples_reached(run, record)) > samples:
            message = f"the run resumed at {samples:,} samples, but the log before that reaches {reached:,}"
            yield Problem(message, record.line, expected=f"<= {samples}", got=reached)


@rule(
    "run-repeats-data",
    Severity.ERROR,
    "training rules, Training Data Order: each datum appears exactly once",
    divisions=["closed"],
)
def run_repeats_data(run: Run) -> Iterator[Problem]:
    """Reject training after `resumed` on samples that the checkpoint has already seen."""
    losses = run.log.train_losses
    lines, counts = np.asarray(losses.lines), np.asarray(losses.samples)
    for record in run.all("resumed"):
        samples = _samples_at_checkpoint(record)
        if samples is None:
            continue  # run-resumed reports this
        again = np.flatnonzero((lines > record.line) & (counts <= samples))
        if len(again):
            message = f"train_loss at or below the {samples:,} samples of the checkpoint (line {record.line})"
            got, line = int(counts[again[0]]), losses.lines[again[0]]
            yield Problem(message, line, expected=f"more than {samples}", got=got)


def _samples_at_checkpoint(resumed: Record) -> int | None:
    samples = whole_number(resumed.value)
    if samples is None or samples < 0 or whole_number(resumed.metadata.get("samples_count", samples)) != samples:
        return None
    return samples


def _latest_time_before(run: Run, resumed: Record) -> float:
    """Return the latest time of the records before ``resumed``, or its own time if it is the first."""
    losses = run.log.train_losses
    trained = np.asarray(losses.times_ms)[np.asarray(losses.lines) < resumed.line]
    others = [record.time_ms for record in run.records if record.line < resumed.line]
    return max([*others, *trained[-1:]], default=resumed.time_ms)


def _samples_reached(run: Run, resumed: Record) -> int:
    """Return the largest number of samples before a record `resumed`."""
    losses = run.log.train_losses
    counts = np.asarray(losses.samples)
    trained = counts[(np.asarray(losses.lines) < resumed.line) & np.isfinite(counts)]
    evaluations = [record.samples for record in run.all("eval_accuracy") if record.line < resumed.line]
    return int(max([0, *trained, *(count for count in map(whole_number, evaluations) if count is not None)]))
