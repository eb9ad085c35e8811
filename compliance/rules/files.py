"""Rules on file contents: readable, complete, consistent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import benchmark
from ..findings import Severity
from ..json_values import comparison_key, seed_number
from ..run import EARLIEST_MS, Run
from .rule import (
    COMMON_YAML,
    MAX_FINDINGS,
    OFFICIAL,
    OWN,
    SEED_CHECKER,
    Problem,
    parse_problems,
    quote_json,
    rule,
    value_problem,
)

_PARSER = f"{OFFICIAL}compliance_checker/mlp_parser"
_COMMON = f"{COMMON_YAML} and closed_gpt_oss_20b.yaml"


@rule("file-empty", Severity.ERROR, _PARSER)
def file_empty(run: Run) -> Iterator[Problem]:
    """Require at least one `:::MLLOG` record in the file."""
    yield from parse_problems(run.log.parse_errors, "file-empty")


@rule("file-encoding", Severity.ERROR, _PARSER)
def file_encoding(run: Run) -> Iterator[Problem]:
    """Require ASCII or UTF-8. Other bytes around the records are allowed, UTF-16 is not."""
    yield from parse_problems(run.log.parse_errors, "file-encoding")


@rule("record-corrupt", Severity.ERROR, _PARSER)
def record_corrupt(run: Run) -> Iterator[Problem]:
    """Require a complete JSON object with key, value, time_ms and metadata after every `:::MLLOG`."""
    yield from parse_problems(run.log.parse_errors, "record-corrupt")


@rule("record-required", Severity.ERROR, _COMMON)
def record_required(run: Run) -> Iterator[Problem]:
    """Require every record of the ruleset.

    6.1.0 adds precision, parallelism, micro batch and config_filename. Training is logged in blocks or epochs.
    """
    if not run.log.records and not run.log.train_losses:
        return  # file-empty or file-encoding reports this
    required = [*benchmark.DESCRIPTION, *benchmark.MILESTONES, "eval_start", "eval_accuracy", "eval_stop"]
    required += benchmark.DISCLOSURE if run.ruleset != "6.0.0" else ()
    missing = [key for key in required if not run.all(key)]
    if missing:
        yield Problem(f"the log lacks records that ruleset {run.ruleset} requires: {', '.join(missing)}")
    if not (run.all("block_start") or run.all("epoch_start")):
        yield Problem("neither block_start nor epoch_start; training is not logged", expected="block_start records")


@rule("record-conflict", Severity.ERROR, _COMMON)
def record_conflict(run: Run) -> Iterator[Problem]:
    """Require one value for each record that describes the run, however often it is logged.

    Two seeds in one run, perhaps of two ranks, are a warning, as in the official seed checker.
    """
    for key in benchmark.SETTING_KEYS:
        records = run.all(key)
        severity = Severity.WARNING if key == "seed" else None
        for record in records[1:]:
            if comparison_key(record.value) != comparison_key(records[0].value):
                message = f"{key} has another value in line {records[0].line}"
                yield value_problem(record, message, quote_json(records[0].value), severity)


@rule("record-metadata", Severity.ERROR, _COMMON)
def record_metadata(run: Run) -> Iterator[Problem]:
    """Require `samples_count` (or `epoch_num`) in blocks, epochs and evaluations, and `status` in run_stop."""
    for key in benchmark.INTERVAL_KEYS:
        # The official rule files accept these names, which differ by key.
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
    """Require times in milliseconds since 1970. Times in seconds would divide every duration by 1,000."""
    # One finding per log: a wrong unit affects every record.
    for record in run.log.records:
        if record.time_ms <= EARLIEST_MS:
            message = f"time_ms of {record.key} is not in milliseconds since 1970; is it in seconds?"
            yield Problem(message, record.line, expected=f"more than {EARLIEST_MS:.0f}", got=record.time_ms)
            return


@rule("train-loss-value", Severity.WARNING, OWN)
def train_loss_value(run: Run) -> Iterator[Problem]:
    """Warn about training losses that are not positive and finite, and their `samples_count` if it is no amount.

    MLPerf knows no train_loss. `schedule-rate` requires its `lr` to be a number.
    """
    losses = run.log.train_losses
    # In these columns NaN stands for "not logged" and infinity for "not a number" (`records.TrainLosses`).
    loss, samples = np.asarray(losses.losses), np.asarray(losses.samples)
    checks = (
        ("train_loss is not a positive finite number", loss, ~((loss > 0) & np.isfinite(loss))),
        ("samples_count of a train_loss is not a number of samples", samples, (samples < 0) | np.isinf(samples)),
    )
    for message, column, is_wrong in checks:
        for index in np.flatnonzero(is_wrong)[: MAX_FINDINGS + 1]:
            yield Problem(message, losses.lines[index], expected="a finite number", got=float(column[index]))


@rule("seed", Severity.ERROR, SEED_CHECKER, official=("seeds",))
def seed(run: Run) -> Iterator[Problem]:
    """Require a seed that `int()` converts, text included.

    A fraction, a truth value or more than 64 bits is a warning: this project's judgement.
    """
    for record in run.all("seed"):
        number = seed_number(record.value)
        if number is None:
            yield value_problem(record, "the seed is not an integer", "an integer")
        elif isinstance(record.value, bool) or (isinstance(record.value, float) and number != record.value):
            yield value_problem(record, "int() changes this seed", "an integer", Severity.WARNING)
        elif abs(number) >= 1 << 64:
            yield value_problem(record, "the seed has more than 64 bits", "an integer", Severity.WARNING)
