"""Rules on evaluations: each fires alone on a log that breaks it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from compliance.findings import Severity, Status
from compliance.rules import evaluations
from tests.support.judging import (
    LAST,
    Change,
    assert_fires_alone,
    drop_all,
    drop_evaluation,
    drop_metadata,
    drop_rates,
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
from tests.support.made_logs import END, MadeLog, compliant_log, event

INTERVAL = 12_288


def set_samples(key: str, n: int, value: Any) -> Change:
    return set_metadata(key, n, samples_count=value)


def at_two_thirds(log: MadeLog) -> None:
    for key in ("eval_start", "eval_accuracy", "eval_stop", "run_stop"):
        for record in log.all(key):
            record["metadata"]["samples_count"] = record["metadata"]["samples_count"] * 2 // 3


def extra_evaluation(log: MadeLog) -> None:
    """Insert an evaluation in the middle of the fourth block."""
    block = log.index("block_start", 3) + 3
    now = log.events[block]["time_ms"]
    at = {"samples_count": log.find("eval_stop", 2)["metadata"]["samples_count"] + 4096}
    keys = ("block_stop", "eval_start", "eval_accuracy", "eval_stop", "block_start")
    log.events[block:block] = [event(key, 3.9 if key == "eval_accuracy" else None, now, at) for key in keys]


def evaluation_at_zero(log: MadeLog) -> None:
    """Insert an evaluation of the untrained model, after run_start."""
    now = log.find("block_start")["time_ms"]
    for key in ("eval_start", "eval_accuracy", "eval_stop"):
        log.insert_before("block_start", 0, event(key, 11.8, now, {"samples_count": 0}))


def evaluation_without_loss(log: MadeLog) -> None:
    """Insert eval_start and eval_stop in the middle of a block."""
    loss = log.find("train_loss", 30)
    for key in ("eval_stop", "eval_start"):
        at = {"samples_count": loss["metadata"]["samples_count"]}
        log.insert_after("train_loss", 30, event(key, None, loss["time_ms"], at))


def insert_block(log: MadeLog, samples: int, trained: int | None = None) -> None:
    """Insert a block after the passing evaluation, with a train loss at ``trained`` samples."""
    passed, now = log.find("eval_accuracy", LAST)["metadata"]["samples_count"], log.events[-1]["time_ms"]
    log.insert_before("run_stop", 0, event("block_start", None, now, {"samples_count": passed}))
    if trained is not None:
        rate = log.find("train_loss", LAST)["metadata"]["lr"]
        log.insert_before("run_stop", 0, event("train_loss", 3.3, now, {"samples_count": trained, "lr": rate}))
    log.insert_before("run_stop", 0, event("block_stop", None, now, {"samples_count": samples}, END))


def continue_training(log: MadeLog) -> None:
    samples = log.find("run_stop")["metadata"]["samples_count"]
    insert_block(log, samples, trained=samples + 16)


def continue_two_intervals(log: MadeLog) -> None:
    samples = log.find("run_stop")["metadata"]["samples_count"] + 2 * INTERVAL
    insert_block(log, samples, trained=samples)
    del log.find("train_loss", LAST)["metadata"]["lr"]


def continue_without_losses(log: MadeLog) -> None:
    insert_block(log, log.find("run_stop")["metadata"]["samples_count"] + INTERVAL)


def loss_without_samples(log: MadeLog) -> None:
    log.insert_before("run_stop", 0, event("train_loss", 3.3, log.find("run_stop")["time_ms"]))


def wrong_rate(log: MadeLog) -> None:
    log.find("train_loss", 20)["metadata"]["lr"] *= 1.001


def constant_rate(log: MadeLog) -> None:
    for record in log.all("train_loss"):
        record["metadata"]["lr"] = 4e-4


BREAKS: list[tuple[str, str, Change]] = [
    ("samples-count", "again", set_samples("eval_accuracy", 2, INTERVAL * 2)),
    ("samples-count", "backwards", set_samples("eval_accuracy", 2, INTERVAL)),
    ("samples-count", "too early", set_samples("eval_accuracy", 2, INTERVAL * 40)),
    ("samples-count", "true", set_samples("eval_accuracy", 2, True)),
    ("samples-count", "a fraction", set_samples("eval_accuracy", 2, INTERVAL * 3 + 0.5)),
    ("samples-count", "a string", set_samples("eval_accuracy", 2, "36864")),
    ("samples-count", "run_stop with fewer", set_samples("run_stop", 0, INTERVAL)),
    ("samples-count", "run_stop with more", set_samples("run_stop", 0, INTERVAL * 100)),
    ("samples-count", "run_stop with a string", set_samples("run_stop", 0, "196608")),
    ("samples-count", "block_stop a word", set_samples("block_stop", 3, "abc")),
    ("samples-count", "block_start a fraction", set_samples("block_start", 3, 1.5)),
    ("samples-count", "eval_stop null", set_samples("eval_stop", 3, None)),
    ("samples-count", "eval_start backwards", set_samples("eval_start", 3, 7)),
    ("eval-cadence", "one missing", drop_evaluation),
    ("eval-cadence", "the first missing", lambda log: drop_evaluation(log, 0)),
    ("eval-cadence", "at two thirds of the grid", at_two_thirds),
    ("eval-cadence", "one extra", extra_evaluation),
    ("eval-cadence", "off the grid", set_samples("eval_accuracy", 2, INTERVAL * 3 + 16)),
    ("eval-cadence", "before training", evaluation_at_zero),
    ("eval-size", "2,048", set_value("eval_samples", 2048)),
    ("eval-size", "of one evaluation", set_metadata("eval_start", 2, eval_samples=512)),
    ("eval-size", "of one loss", set_metadata("eval_accuracy", 2, eval_samples=2048)),
    ("eval-size", "of one stop", set_metadata("eval_stop", LAST, eval_samples=1023)),
    ("eval-size", "a word", set_metadata("eval_start", 2, eval_samples="all")),
    ("eval-balance", "a loss without evaluation", lambda log: log.drop("eval_start", 2).drop("eval_stop", 2)),
    ("eval-balance", "an evaluation without loss", evaluation_without_loss),
    ("eval-balance", "the last evaluation open", lambda log: log.drop("eval_stop", LAST)),
    ("eval-balance", "the last block open", lambda log: log.drop("block_stop", LAST)),
    *(("eval-balance", f"no {key}", lambda log, key=key: log.drop(key, 2))
      for key in ("eval_stop", "eval_start", "block_stop", "block_start")),
    *(("eval-loss", str(value)[:9], set_value("eval_accuracy", value, 2))
      for value in (math.nan, math.inf, None, "3.9", 0.0, -3.0, True, 10**400)),
    ("eval-after-target", "training", continue_training),
    ("eval-after-target", "two intervals of training", continue_two_intervals),
    ("eval-after-target", "only evaluations", lambda log: drop_all(log, "train_loss").set("eval_accuracy", 3.34, 5)),
    ("eval-after-target", "an early pass", set_value("eval_accuracy", 3.34, 5)),
    ("eval-after-target", "a block without losses", continue_without_losses),
    ("eval-after-target", "a loss without samples", loss_without_samples),
    ("eval-target", "the last does not pass", set_value("eval_accuracy", 3.3400001, LAST)),
    ("schedule-rate", "one record", wrong_rate),
    ("schedule-rate", "a constant", constant_rate),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "change"), [pytest.param(r, c, id=f"{r}: {name}") for r, name, c in BREAKS])
def test_exactly_this_rule_fires(rule: str, change: Change) -> None:
    assert_fires_alone(rule, change)


def test_every_rule_is_tested() -> None:
    assert {*(rule for rule, _, _ in BREAKS), "run-not-converged"} == rule_ids(evaluations)


# --- counts of samples


@pytest.mark.parametrize(
    ("change", "key", "n", "expected", "got"),
    [
        (set_samples("run_stop", 0, 5), "run_stop", 0, str(INTERVAL * 16), "5"),
        (set_samples("eval_accuracy", 2, 5), "eval_accuracy", 2, "more than 24576", "5"),
        (set_samples("eval_accuracy", 0, -INTERVAL), "eval_accuracy", 0, "a whole number", str(-INTERVAL)),
    ],
)
def test_a_wrong_count_is_quoted_with_its_line(change: Change, key: str, n: int, expected: str, got: str) -> None:
    (finding,) = findings_of(change, "samples-count")
    assert (finding.line, finding.expected, finding.got) == (line_number(compliant_log(), key, n), expected, got)


@pytest.mark.parametrize("value", [2**63, 10**300, 10**400, -(2**70), 1e308], ids=lambda value: f"{str(value)[:5]}...")
def test_huge_counts_raise_no_exception(value: float) -> None:
    for key, n in (("eval_accuracy", 2), ("run_stop", 0), ("block_stop", 2)):
        assert fired(judged_after(set_samples(key, n, value), gbs=64).findings) == {"samples-count"}, key
    found = judged_after(set_samples("train_loss", LAST, value), gbs=64).findings
    assert fired(found) & {"schedule-rate", "train-loss-value"}


@pytest.mark.parametrize(
    ("samples", "rules"),
    [(None, {"samples-count"}), ("many", {"samples-count"}), (12_288.5, {"samples-count"}), (INTERVAL * 21.0, set())],
)
def test_run_stop_of_an_aborted_run_counts_samples(samples: object, rules: set[str]) -> None:
    assert fired(judged_after(set_samples("run_stop", 0, samples), converged=False).findings) == rules


def test_run_stop_without_samples_is_a_warning() -> None:
    change = drop_metadata("run_stop", 0, "samples_count")
    assert_fires_alone("samples-count", change, Severity.WARNING)
    assert judged_after(change).summary.status is Status.CONVERGED


def test_counts_are_compared_across_unreadable_ones() -> None:
    log = compliant_log()
    set_samples("eval_accuracy", 3, "x")(log)
    set_samples("eval_accuracy", 4, INTERVAL * 3)(log)
    assert [each.got for each in judged(log).findings if each.rule == "samples-count"] == ['"x"', "36864"]


# --- the grid of evaluations


def test_missing_evaluations_in_a_row_are_one_finding() -> None:
    log = compliant_log()
    drop_evaluation(log, 5)
    drop_evaluation(log, 5)
    drop_evaluation(log, 9)
    findings = judged(log).findings
    assert [finding.message.split()[0] for finding in findings] == ["2", "1"]
    assert [finding.line for finding in findings] == [line_number(log, "eval_accuracy", n) for n in (5, 9)]
    assert (findings[0].expected, findings[0].got) == (str(INTERVAL * 6), str(INTERVAL * 8))


@pytest.mark.parametrize("key", ["block_stop", "epoch_stop", "run_stop", "train_loss"])
@pytest.mark.parametrize(("intervals", "is_valid"), [(1, True), (2, False)])
def test_any_count_shows_that_the_last_evaluation_is_missing(key: str, intervals: int, is_valid: bool) -> None:
    """An aborted run may end when its next evaluation is due, not later."""
    log = drop_rates(compliant_log(converged=False))
    if key == "epoch_stop":
        log.find("block_start", LAST)["key"], log.find("block_stop", LAST)["key"] = "epoch_start", "epoch_stop"
    last = log.find("run_stop")["metadata"]["samples_count"]
    set_samples(key, LAST, last + intervals * INTERVAL)(log)
    found = [finding.got for finding in judged(log).findings if finding.rule == "eval-cadence"]
    assert found == ([] if is_valid else [str(last)])


def test_the_open_division_keeps_the_interval_of_its_first_evaluation() -> None:
    log = drop_rates(compliant_log(32, division="open")).set("global_batch_size", 40)
    log.set("micro_batch_size", 1).set("gradient_accumulation_steps", 5)
    assert fired(judged(log).findings) == set()
    drop_evaluation(log)
    assert fired(judged(log).findings) == {"eval-cadence"}
    assert judged_after(evaluation_at_zero, division="open").run.eval_interval_samples is None


def test_the_open_division_declares_the_size_of_its_evaluations() -> None:
    log = compliant_log(division="open").set("eval_samples", 512)
    for record in log.all("eval_start"):
        record["metadata"]["eval_samples"] = 512
    assert judged(log).findings == ()
    log.find("eval_start", 3)["metadata"]["eval_samples"] = 1024
    (finding,) = judged(log).findings
    assert (finding.rule, finding.line) == ("eval-size", line_number(log, "eval_start", 3))
    assert (finding.expected, finding.got) == ("512", "1024")


def test_an_unbalanced_interval_is_named_by_both_lines() -> None:
    (finding,) = findings_of(lambda log: log.drop("block_stop", 2), "eval-balance")
    log = compliant_log()
    assert f"line {line_number(log, 'block_start', 2)}" in finding.message
    assert finding.line == line_number(log, "block_start", 3) - 1


# --- aborted runs


def test_an_aborted_run_fails_alone_and_not_in_a_set() -> None:
    log = compliant_log(converged=False)
    alone, in_set = judged(log, in_set=False), judged(log)
    assert fired(alone.findings) == {"run-not-converged"}
    assert fired(in_set.findings) == set()
    assert (in_set.summary.status, in_set.summary.samples_to_target) == (Status.NOT_CONVERGED, None)


def test_an_aborted_run_that_passed_did_not_converge() -> None:
    log = compliant_log()
    log.find("run_stop")["metadata"]["status"] = "aborted"
    (finding,) = judged(log, in_set=False).findings
    assert (finding.rule, finding.line) == ("run-not-converged", line_number(log, "run_stop"))
    assert finding.got == f"{log.find('eval_accuracy', LAST)['value']}"
    assert judged(log).findings == ()
    assert judged(log).summary.status is Status.NOT_CONVERGED
    del log.find("run_stop")["metadata"]["status"]  # unknown is not aborted
    assert fired(judged(log, in_set=False).findings) == {"record-metadata"}


def test_an_aborted_run_may_end_within_a_block_or_an_evaluation() -> None:
    for key in ("block_stop", "eval_stop"):
        assert fired(judged(compliant_log(converged=False).drop(key, LAST)).findings) == set()
    log = drop_all(compliant_log(converged=False), "eval_start", "eval_accuracy", "eval_stop")
    assert fired(judged(log, in_set=False).findings) == {"record-required", "eval-cadence", "run-not-converged"}


# --- the target


@pytest.mark.parametrize("division", ["closed", "open"])
def test_the_target_is_met_at_3_34_exactly(division: str) -> None:
    log = compliant_log(division=division).set("eval_accuracy", 3.34, LAST)
    assert judged(log).findings == ()
    log.set("target_accuracy", 3.3 if division == "open" else 3.4)
    assert "eval-target" in fired(judged(log.set("eval_accuracy", 3.34 if division == "open" else 3.39, LAST)).findings)


def test_training_after_the_target_is_named_from_its_first_record_to_its_last() -> None:
    log = compliant_log().set("eval_accuracy", 3.34, 5)
    (finding,) = judged(log).findings
    passed = line_number(log, "eval_accuracy", 5)
    losses = [n for n, record in enumerate(log.events, 1) if record["key"] == "train_loss" and n > passed]
    assert (finding.line, finding.got) == (losses[0], str(16 * INTERVAL))
    assert finding.expected is not None and str(6 * INTERVAL) in finding.expected
    drop_all(log, "train_loss")
    (finding, _) = judged(log).findings  # the other one: rates are unverifiable
    assert (finding.line, finding.got) == (line_number(log, "block_stop", 6), str(16 * INTERVAL))
    log = compliant_log()
    continue_training(log)
    first = line_number(log, "train_loss", LAST)
    repeat(log, "train_loss", LAST, samples_count=16 * INTERVAL + 32)
    (finding,) = (each for each in judged(log).findings if each.rule == "eval-after-target")
    assert (finding.line, finding.got) == (first, str(16 * INTERVAL + 32))


def test_a_late_repeat_of_the_last_evaluation_is_not_training() -> None:
    def late(log: MadeLog) -> None:
        log.find("run_stop")["time_ms"] += 5000
        repeat(log, "eval_accuracy", LAST, later_ms=1500)

    assert findings_of(late, "eval-after-target") == []
    assert len(findings_of(late, "samples-count")) == 1


def test_a_last_evaluation_that_fails_after_one_that_passed() -> None:
    log = compliant_log().set("eval_accuracy", 3.33, LAST - 1).set("eval_accuracy", 3.35, LAST)
    assert fired(judged(log).findings) == {"eval-after-target", "eval-target"}


def test_losses_logged_late_are_not_training() -> None:
    """Losses of earlier steps may be logged after the passing evaluation, and one may count too much before it."""
    log = compliant_log()
    for n in (LAST, 40):
        late = {**log.find("train_loss", n), "time_ms": log.find("run_stop")["time_ms"]}
        log.insert_before("run_stop", 0, late)
    assert judged(log).findings == ()
    drop_rates(log).find("train_loss", 20)["metadata"]["samples_count"] = 10**9
    assert fired(judged(log).findings) == set()


# --- the schedule


def test_a_run_without_logged_rates_is_unverifiable() -> None:
    found = judged(drop_rates(compliant_log())).findings
    assert fired(found) == set()
    assert fired(found, Severity.UNVERIFIABLE) == {"schedule-rate"}


def test_only_records_with_rate_and_samples_are_compared() -> None:
    log = compliant_log()
    for n in (0, 1, 5, 6):
        del log.find("train_loss", n)["metadata"]["lr"]
    del log.find("train_loss", 9)["metadata"]["samples_count"]
    assert judged(log).findings == ()
    wrong_rate(log)
    (finding,) = judged(log).findings
    assert (finding.rule, finding.line) == ("schedule-rate", line_number(log, "train_loss", 20))
    assert finding.expected == f"{log.find('train_loss', 20)['metadata']['lr'] / 1.001:.10g}"


def test_many_wrong_rates_are_twenty_findings_and_a_count() -> None:
    findings = findings_of(constant_rate, "schedule-rate")
    assert len(findings) == 21
    assert all(finding.line is not None for finding in findings[:20]) and findings[20].line is None
