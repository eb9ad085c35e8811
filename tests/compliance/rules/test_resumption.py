"""A run that was interrupted and went on from its checkpoint, under judgement: the record `resumed`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compliance.findings import Severity, Status
from compliance.official import OfficialTools
from tests.support.judging import fired, judged
from tests.support.made_logs import Event, MadeLog, compliant_log, event

GAP_MS = 90_000
# The checkpoint follows this one of the made log's losses, a few after the second evaluation.
AT = 20


def resumed(log: MadeLog, gap_ms: int = GAP_MS) -> Event:
    """Let the run have been interrupted, in the middle of a block; the record that says so."""
    place = log.index("train_loss", AT)
    before = log.events[place]
    log.shift(place + 1, gap_ms)
    samples = before["metadata"]["samples_count"]
    record = event("resumed", samples, before["time_ms"] + gap_ms, {"samples_count": samples})
    log.events.insert(place + 1, record)
    return record


def interrupted(gap_ms: int = GAP_MS, **options: Any) -> MadeLog:
    log = compliant_log(**options)
    resumed(log, gap_ms)
    return log


@pytest.mark.parametrize("division", ["closed", "open"])
def test_it_is_said_and_valid_and_the_gap_counts(division: str) -> None:
    whole, log = judged(compliant_log(division=division)), interrupted(division=division)
    found = judged(log, in_set=False)
    (finding,) = found.findings
    samples = log.find("resumed")["value"]
    assert (finding.rule, finding.severity) == ("run-resumed", Severity.WARNING)
    assert finding.line == log.index("resumed") + 1
    assert f"{samples:,}" in finding.message and "90.0 s" in finding.message
    assert found.summary.status is Status.CONVERGED
    assert found.summary.minutes is not None and whole.summary.minutes is not None
    assert found.summary.minutes == pytest.approx(whole.summary.minutes + GAP_MS / 60_000)


def test_the_official_checker_takes_it_and_does_not_see_it(tmp_path: Path) -> None:
    path = interrupted().write(tmp_path / "result_0.txt")
    with OfficialTools("6.1.0") as official:
        official.check_files({path.name: path})
        (result,) = official.collect()
    assert (result.verdict, result.messages) == ("pass", ())


def test_every_interruption_is_named() -> None:
    log = interrupted()
    later = log.index("train_loss", 40)
    before = log.events[later]
    log.shift(later + 1, 5_000)
    samples = before["metadata"]["samples_count"]
    log.events.insert(later + 1, event("resumed", samples, before["time_ms"] + 5_000, {"samples_count": samples}))
    messages = [finding.message for finding in judged(log).findings]
    assert ["90.0 s" in messages[0], "5.0 s" in messages[1], len(messages)] == [True, True, 2]


def test_a_checkpoint_between_two_logged_losses_is_as_good() -> None:
    log = interrupted()
    samples = log.find("train_loss", AT)["metadata"]["samples_count"] + 16
    log.set("resumed", samples).find("resumed")["metadata"]["samples_count"] = samples
    assert fired(judged(log).findings, Severity.ERROR) == set()


def test_right_after_an_evaluation() -> None:
    log = compliant_log()
    place = log.index("block_start", 2)
    before = log.events[place]
    samples = before["metadata"]["samples_count"]
    log.events.insert(place + 1, event("resumed", samples, before["time_ms"], {"samples_count": samples}))
    assert fired(judged(log).findings) == {"run-resumed"}
    assert fired(judged(log).findings, Severity.ERROR) == set()


Break = Callable[[MadeLog], object]


def drop_evaluation(log: MadeLog) -> None:
    """The evaluation after the gap, which was due."""
    for key in ("block_stop", "eval_start", "eval_accuracy", "eval_stop"):
        log.drop(key, 2)
    log.drop("block_start", 3)


def first_after(log: MadeLog, **change: Any) -> None:
    log.find("train_loss", AT + 1)["metadata"].update(change)


def work_stands_twice(log: MadeLog) -> None:
    """What came after the checkpoint was left in the log, and comes again."""
    lost = {**log.find("train_loss", AT + 1), "time_ms": log.find("train_loss", AT)["time_ms"] + 10}
    log.insert_before("resumed", 0, lost)


def comes_again(log: MadeLog) -> None:
    """The step before the checkpoint comes again after it."""
    log.insert_after("resumed", 0, {**log.find("train_loss", AT), "time_ms": log.find("resumed")["time_ms"]})


def evaluation_stands_before(log: MadeLog) -> None:
    """The record says less than what has been evaluated."""
    log.set("resumed", 12_000).find("resumed")["metadata"]["samples_count"] = 12_000
    for record in log.all("train_loss")[: AT + 1]:
        record["metadata"].pop("samples_count")


def back_in_time(log: MadeLog) -> None:
    log.shift(log.index("resumed"), -GAP_MS - 5_000)


def started_again(log: MadeLog) -> None:
    log.insert_after("resumed", 0, {**log.find("run_start"), "time_ms": log.find("resumed")["time_ms"]})


def moved_before_the_clock(log: MadeLog) -> None:
    record = {**log.find("resumed"), "value": 0, "time_ms": log.find("run_start")["time_ms"] - 10}
    record["metadata"] = {**record["metadata"], "samples_count": 0}
    log.drop("resumed").insert_before("run_start", 0, record)


def moved_after_the_end(log: MadeLog) -> None:
    stop = log.find("run_stop")
    samples = stop["metadata"]["samples_count"]
    log.drop("resumed").events.append(event("resumed", samples, stop["time_ms"], {"samples_count": samples}))


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("run-resumed", lambda log: log.set("resumed", None)),
        ("run-resumed", lambda log: log.set("resumed", -16).find("resumed")["metadata"].update(samples_count=-16)),
        ("run-resumed", lambda log: log.set("resumed", 0.5)),
        ("run-resumed", lambda log: log.find("resumed")["metadata"].update(samples_count="24")),
        ("run-resumed", lambda log: log.find("resumed")["metadata"].update(samples_count=16)),
        ("run-resumed", work_stands_twice),
        ("run-resumed", evaluation_stands_before),
        ("run-resumed", comes_again),
        # What holds for all runs holds across the gap.
        ("eval-cadence", drop_evaluation),
        ("schedule-rate", lambda log: first_after(log, lr=1e-5)),
        ("clock-backwards", back_in_time),
        ("clock-run-start", started_again),
        ("clock-run-start", moved_before_the_clock),
        ("clock-after-stop", moved_after_the_end),
    ],
)
def test_exactly_this_rule_finds_an_error(rule: str, change: Break) -> None:
    log = interrupted()
    change(log)
    assert fired(judged(log).findings, Severity.ERROR) == {rule}


@pytest.mark.parametrize("samples", [float("inf"), 10**400, "x", [], float("nan")])
def test_junk_around_it_is_no_traceback(samples: object) -> None:
    log = interrupted()
    for record in (log.find("resumed"), log.find("train_loss", AT), log.find("eval_accuracy", 0)):
        record["metadata"]["samples_count"] = samples
    assert "run-resumed" in fired(judged(log).findings, Severity.ERROR)


@pytest.mark.parametrize("samples", [float("inf"), 10**400, "x"])
def test_a_loss_without_a_count_before_it_says_nothing_of_it(samples: object) -> None:
    log = interrupted()
    log.find("train_loss", AT)["metadata"]["samples_count"] = samples
    assert fired(judged(log).findings, Severity.ERROR) == {"train-loss-value"}


def test_as_the_first_record_of_a_file_it_has_none_before_it() -> None:
    (line, *_) = MadeLog([interrupted().find("resumed")]).text().splitlines()
    found = [finding for finding in judged(line.encode()).findings if finding.rule == "run-resumed"]
    assert "0.0 s after" in found[0].message
