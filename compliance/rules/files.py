"""Rules on what a file is made of: readable, whole, and with everything a log must have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .. import benchmark
from ..findings import Severity
from ..run import EARLIEST_MS, Run, comparison_key, whole_number
from .rule import ABSENT, MAX_FINDINGS, Problem, Rule, quote_json, rule

_PARSER = "mlperf-logging 4.1.68, compliance_checker/mlp_parser"
_COMMON = "mlperf-logging 4.1.68, compliance_checker/training_6.x.0/common.yaml and closed_gpt_oss_20b.yaml"
_OWN = "this project"


def _defects(run: Run, rule_id: str) -> Iterator[Problem]:
    for defect in run.log.parse_errors:
        if defect.rule == rule_id:
            yield Problem(defect.message, defect.line, got=ABSENT if defect.got is None else defect.got)


@rule("file-empty", Severity.ERROR, _PARSER)
def file_empty(run: Run) -> Iterator[Problem]:
    """A log holds at least one `:::MLLOG` record."""
    yield from _defects(run, "file-empty")


@rule("file-encoding", Severity.ERROR, _PARSER)
def file_encoding(run: Run) -> Iterator[Problem]:
    """A log is ASCII or UTF-8; other bytes around the records are fine, UTF-16 is not."""
    yield from _defects(run, "file-encoding")


@rule("record-corrupt", Severity.ERROR, _PARSER)
def record_corrupt(run: Run) -> Iterator[Problem]:
    """Every `:::MLLOG` is followed by a whole JSON object with key, value, time_ms and metadata."""
    yield from _defects(run, "record-corrupt")


@rule("record-required", Severity.ERROR, _COMMON)
def record_required(run: Run) -> Iterator[Problem]:
    """Every record that the ruleset requires is there.

    6.1.0 adds precision, parallelism, micro batch and config_filename. Training is logged in blocks or epochs.
    """
    if not run.log.records and not run.log.train_losses:
        return  # file-empty or file-encoding has said so
    required = [*benchmark.DESCRIPTION, *benchmark.MILESTONES, "eval_start", "eval_accuracy", "eval_stop"]
    required += benchmark.DISCLOSURE if run.ruleset != "6.0.0" else ()
    missing = [key for key in required if not run.all(key)]
    if missing:
        message = f"ruleset {run.ruleset} requires records that the log does not have: {', '.join(missing)}"
        yield Problem(message)
    if not (run.all("block_start") or run.all("epoch_start")):
        yield Problem("neither block_start nor epoch_start; training is not logged", expected="block_start records")


@rule("record-conflict", Severity.ERROR, _COMMON)
def record_conflict(run: Run) -> Iterator[Problem]:
    """What describes the run is logged once, or again with the same value; never with two values.

    Two seeds in one run, of two ranks perhaps, are a warning, as the official seed checker has it.
    """
    for key in (*benchmark.DESCRIPTION, *benchmark.DISCLOSURE, *benchmark.OPTIONAL):
        records = run.all(key)
        severity = Severity.WARNING if key == "seed" else None
        for record in records[1:]:
            if comparison_key(record.value) != comparison_key(records[0].value):
                message = f"{key} is logged with another value than in line {records[0].line}"
                expected = quote_json(records[0].value)
                yield Problem(message, record.line, expected=expected, got=record.value, severity=severity)


@rule("record-metadata", Severity.ERROR, _COMMON)
def record_metadata(run: Run) -> Iterator[Problem]:
    """Blocks, epochs and evaluations carry `samples_count` (or `epoch_num`), and run_stop its `status`."""
    for key in (*benchmark.INTERVALS, *benchmark.INTERVALS.values(), "eval_accuracy"):
        names = ("samples_count",) if key == "eval_accuracy" else ("samples_count", "epoch_num")
        if key.startswith("block"):
            names = (*names, "epoch_count", "first_epoch_num")
        for record in run.all(key):
            if not any(name in record.metadata for name in names):
                yield Problem(f"{key} without samples_count in its metadata", record.line, expected="samples_count")
    if run.run_stop is not None and "status" not in run.run_stop.metadata:
        message = "run_stop without status in its metadata"
        yield Problem(message, run.run_stop.line, expected="status success or aborted")


@rule("time-unit", Severity.ERROR, _PARSER)
def time_unit(run: Run) -> Iterator[Problem]:
    """Times are milliseconds since 1970; seconds would make every duration a thousandth."""
    for record in run.log.records:
        if record.time_ms <= EARLIEST_MS:
            message = f"time_ms of {record.key} is no time in milliseconds since 1970; does the log count seconds?"
            yield Problem(message, record.line, expected=f"more than {EARLIEST_MS:.0f}", got=record.time_ms)
            return


@rule("train-loss-value", Severity.ERROR, _OWN)
def train_loss_value(run: Run) -> Iterator[Problem]:
    """Training losses are positive finite numbers; `lr` and `samples_count`, where logged, are not negative."""
    losses = run.log.train_losses
    # Absent is NaN, what is no number is infinite (`records.TrainLosses`).
    checks = (
        ("train_loss is not a positive finite number", losses.losses, lambda loss: ~((loss > 0) & np.isfinite(loss))),
        ("samples_count of a train_loss is not a number of samples", losses.samples, _no_amount),
        ("lr of a train_loss is not a learning rate", losses.rates, _no_amount),
    )
    for message, column, wrong in checks:
        for index in np.flatnonzero(wrong(np.asarray(column)))[: MAX_FINDINGS + 1]:
            yield Problem(message, losses.lines[index], expected="a finite number", got=column[index])


def _no_amount(numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (numbers < 0) | np.isinf(numbers)


@rule("seed", Severity.ERROR, "training rules, Random numbers; mlperf-logging 4.1.68, package_checker/seed_checker")
def seed(run: Run) -> Iterator[Problem]:
    """The seed is an integer. The same one may be logged by several ranks."""
    for record in run.all("seed"):
        if whole_number(record.value) is None:
            yield Problem("the seed is not an integer", record.line, expected="an integer", got=record.value)


RULES: tuple[Rule[Run], ...] = (
    file_empty,
    file_encoding,
    record_corrupt,
    record_required,
    record_conflict,
    record_metadata,
    time_unit,
    train_loss_value,
    seed,
)
