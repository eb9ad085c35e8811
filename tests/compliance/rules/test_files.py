"""Rules on file contents: each fires alone on a log that breaks it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from compliance.findings import Severity
from compliance.rules import files
from tests.support.judging import (
    LAST,
    Change,
    assert_fires_alone,
    drop_all,
    drop_metadata,
    findings_of,
    fired,
    judged,
    judged_after,
    line_number,
    repeat,
    rule_ids,
    set_metadata,
    set_value,
)  # fmt: skip
from tests.support.made_logs import DISCLOSURES, MadeLog, compliant_log, event


def cut(log: MadeLog) -> bytes:
    """Cut a record that no rule requires, as when the writer dies."""
    lines = log.text().splitlines(keepends=True)
    place = log.index("tracked_stats", 4)
    lines[place] = lines[place][:70] + "\n"
    return "".join(lines).encode()


def in_seconds(log: MadeLog) -> None:
    for record in log.events:
        record["time_ms"] //= 1000


def in_seconds_except(n: int) -> Change:
    def change(log: MadeLog) -> None:
        in_seconds(log)
        log.events[n]["time_ms"] *= 1000

    return change


def only_losses(log: MadeLog) -> None:
    log.events[:] = log.all("train_loss")


BREAKS: list[tuple[str, str, Change]] = [
    ("file-empty", "no bytes", lambda log: b""),
    ("file-empty", "no records", lambda log: b"Traceback (most recent call last):\n  nothing here\n"),
    ("file-encoding", "UTF-16", lambda log: log.text().encode("utf-16")),
    ("file-encoding", "UTF-16 without byte order mark", lambda log: log.text().encode("utf-16-le")),
    ("record-corrupt", "cut short", cut),
    ("record-corrupt", "no metadata", lambda log: log.find("tracked_stats", 2).pop("metadata")),
    ("record-corrupt", "no time", lambda log: log.find("tracked_stats", 2).update(time_ms="soon")),
    ("record-corrupt", "not an object", lambda log: log.text().encode() + b":::MLLOG [1, 2]\n"),
    ("record-required", "neither blocks nor epochs", lambda log: drop_all(log, "block_start", "block_stop")),
    ("record-required", "no evaluation starts or stops", lambda log: drop_all(log, "eval_start", "eval_stop")),
    ("record-required", "only losses", only_losses),
    *(("record-required", key, lambda log, key=key: log.drop(key))
      for key in ("opt_adamw_beta_2", "seed", "lowest_numerical_precision_in_comm", "cache_clear", "run_stop")),
    ("record-conflict", "two batch sizes", lambda log: repeat(log, "global_batch_size", value=32)),
    ("record-conflict", "two precisions", lambda log: repeat(log, DISCLOSURES[2], value="fp8")),
    ("record-conflict", "two checksums", lambda log: repeat(log, "eval_tokens_sha256", value="0" * 64)),
    ("record-metadata", "eval_accuracy", drop_metadata("eval_accuracy", 2, "samples_count")),
    ("record-metadata", "eval_accuracy by epoch", drop_metadata("eval_accuracy", 2, "samples_count", epoch_num=1)),
    ("record-metadata", "by first epoch", drop_metadata("eval_start", 2, "samples_count", first_epoch_num=1)),
    *(("record-metadata", key, drop_metadata(key, 2, "samples_count"))
      for key in ("block_start", "block_stop", "eval_start", "eval_stop")),
    ("record-metadata", "status", drop_metadata("run_stop", 0, "status")),
    ("time-unit", "seconds", in_seconds),
    ("time-unit", "one in seconds", lambda log: log.find("init_start").update(time_ms=1_790_000_000)),
    ("time-unit", "all but the first in seconds", in_seconds_except(0)),
    ("time-unit", "all but the last in seconds", in_seconds_except(-1)),
    *(("schedule-rate", f"lr {value}", set_metadata("train_loss", 7, lr=value))
      for value in (math.inf, "4e-4", None, [1], math.nan)),
    *(("seed", str(value)[:9], set_value("seed", value)) for value in ("x", "1.5", None, [1])),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "change"), [pytest.param(r, c, id=f"{r}: {name}") for r, name, c in BREAKS])
def test_exactly_this_rule_fires(rule: str, change: Change) -> None:
    assert_fires_alone(rule, change)


@pytest.mark.parametrize(
    "change",
    [
        *(set_value("train_loss", value, 7) for value in (math.nan, "low", -1.0, 0.0, math.inf, None)),
        *(set_metadata("train_loss", 7, samples_count=value) for value in (math.inf, "4e-4", None, [1])),
    ],
)
def test_a_train_loss_that_is_no_number_is_a_warning(change: Change) -> None:
    assert_fires_alone("train-loss-value", change, Severity.WARNING)


def test_every_rule_is_tested() -> None:
    assert {rule for rule, _, _ in BREAKS} - {"schedule-rate"} | {"train-loss-value"} == rule_ids(files)


OPTIONAL = ("train_loss", "tracked_stats", "eval_tokens_sha256", "target_accuracy", "block_stop")


@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
def test_every_key_is_required_except_these(ruleset: str) -> None:
    keys = dict.fromkeys(record["key"] for record in compliant_log(64).events)
    assert len(keys) == 47
    for key in keys:
        found = judged(drop_all(compliant_log(64), key), ruleset=ruleset).findings
        messages = [finding.message for finding in found if finding.rule == "record-required"]
        if key in OPTIONAL or (ruleset == "6.0.0" and key in DISCLOSURES):
            assert messages == []
        else:
            (message,) = messages
            assert key in message and (ruleset in message or key == "block_start")


def in_epochs(log: MadeLog, **metadata: object) -> MadeLog:
    """Log training in epochs instead of blocks."""
    for kind in ("start", "stop"):
        for number, record in enumerate(log.all(f"block_{kind}")):
            record["key"] = f"epoch_{kind}"
            del record["metadata"]["samples_count"]
            record["metadata"].update(metadata or {"epoch_num": number})
    return log


def test_training_may_be_logged_in_epochs() -> None:
    assert judged(in_epochs(compliant_log())).findings == ()
    assert judged(in_epochs(compliant_log()).drop("epoch_stop", LAST)).findings == ()  # the run ends within an epoch
    assert fired(judged(in_epochs(compliant_log()).drop("epoch_stop", 2)).findings) == {"eval-balance"}
    assert fired(judged(in_epochs(compliant_log(), epoch_count=1)).findings) == {"record-metadata"}
    one = drop_all(compliant_log(), "block_start", "block_stop")
    one.insert_after("run_start", 0, event("epoch_start", None, one.find("run_start")["time_ms"], {"epoch_num": 0}))
    assert judged(one).findings == ()


@pytest.mark.parametrize("name", ["epoch_num", "epoch_count", "first_epoch_num"])
def test_a_block_may_count_epochs(name: str) -> None:
    log = compliant_log()
    for record in [*log.all("block_start"), *log.all("block_stop")]:
        del record["metadata"]["samples_count"]
        record["metadata"][name] = 1
    assert judged(log).findings == ()


@pytest.mark.parametrize("key", ["eval_start", "eval_stop"])
def test_an_evaluation_may_start_and_stop_by_epoch(key: str) -> None:
    assert findings_of(drop_metadata(key, 2, "samples_count", epoch_num=1), "record-metadata") == []


def test_seeds_that_int_converts() -> None:
    assert judged_after(set_value("seed", " 4083")).findings == ()
    assert judged_after(set_value("seed", "4083")).summary.seed == 4083
    for value in (1.5, True, 10**400):
        assert_fires_alone("seed", set_value("seed", value), Severity.WARNING)


def test_two_seeds_in_one_run_are_a_warning() -> None:
    assert_fires_alone("record-conflict", lambda log: repeat(log, "seed", value=1), Severity.WARNING)
    log = compliant_log()
    seed = log.find("seed")["value"]
    for _ in range(7):  # the same seed of other ranks
        log.insert_after("seed", 0, dict(log.find("seed")))
    assert judged(log).findings == ()
    (finding,) = findings_of(lambda log: repeat(log, "seed", value=1), "record-conflict")
    assert (finding.line, finding.expected, finding.got) == (line_number(log, "seed") + 1, str(seed), "1")
    assert f"line {line_number(log, 'seed')}" in finding.message


def test_numbers_conflict_by_value_not_by_spelling() -> None:
    log = compliant_log()
    repeat(log, "opt_gradient_clip_norm", value=1)
    repeat(log, "global_batch_size", value=16.0)
    assert judged(log).findings == ()
    log = compliant_log().set("opt_adamw_epsilon", math.nan)
    repeat(log, "opt_adamw_epsilon", local_rank=1)
    assert fired(judged(log).findings) == {"hyperparameter-number"}


@pytest.mark.parametrize(
    ("change", "n", "expected", "got"),
    [
        (set_value("train_loss", -2.5), 0, "a finite number", "-2.5"),
        (set_value("train_loss", -2.5, 9), 9, "a finite number", "-2.5"),
        (set_metadata("train_loss", 9, samples_count=-1), 9, "a finite number", "-1.0"),
    ],
)
def test_a_wrong_train_loss_is_quoted_with_its_line(change: Change, n: int, expected: str, got: str) -> None:
    (finding,) = findings_of(change, "train-loss-value")
    place = line_number(compliant_log(), "train_loss", n)
    assert (finding.line, finding.expected, finding.got) == (place, expected, got)


def test_a_corrupt_record_is_quoted_with_its_line() -> None:
    (finding,) = findings_of(cut, "record-corrupt")
    assert finding.line == line_number(compliant_log(), "tracked_stats", 4)
    assert finding.got is not None and "namespace" in finding.got


def test_times_after_march_1973_are_milliseconds() -> None:
    assert judged(compliant_log(start_ms=100_000_000_001)).findings == ()
    found = judged(compliant_log(start_ms=100_000_000_000))
    (finding,) = found.findings
    assert (finding.rule, finding.line, finding.expected) == ("time-unit", 1, "more than 100000000000")
    assert found.summary.minutes is None
    assert judged_after(lambda log: log.find("train_loss").update(time_ms=10**9)).summary.minutes is None


def test_an_infinite_literal_is_no_number() -> None:
    log = compliant_log()
    loss = log.find("train_loss", 3)["value"]
    found = judged(log.text().replace(repr(loss), "1e999").encode()).findings
    assert "train-loss-value" in fired(found, Severity.WARNING)


def test_many_wrong_losses_are_twenty_findings_and_a_count() -> None:
    def negative(log: MadeLog) -> Any:
        return [record.update(value=-1.0) for record in log.all("train_loss")]

    assert len(findings_of(negative, "train-loss-value")) == 21
