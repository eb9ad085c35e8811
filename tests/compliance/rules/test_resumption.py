"""The rule on resumed runs: the record `resumed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compliance.findings import Severity, Status
from compliance.official import OfficialTools
from tests.support.judging import Change, drop_evaluation, fired, judged, set_value
from tests.support.made_logs import Event, MadeLog, compliant_log, event

GAP_MS = 90_000
# The checkpoint follows this train loss, a few losses after the second evaluation.
AT = 20


def resumed(samples: int, time_ms: int) -> Event:
    return event("resumed", samples, time_ms, {"samples_count": samples})


def interrupt(log: MadeLog, n: int = AT, gap_ms: int = GAP_MS) -> MadeLog:
    """Interrupt the run after the n-th train loss, and resume it later."""
    place = log.index("train_loss", n)
    before = log.events[place]
    log.shift(place + 1, gap_ms)
    log.events.insert(place + 1, resumed(before["metadata"]["samples_count"], before["time_ms"] + gap_ms))
    return log


def interrupted(**options: Any) -> MadeLog:
    return interrupt(compliant_log(**options))


@pytest.mark.parametrize("division", ["closed", "open"])
def test_a_resumed_run_is_valid_with_a_warning_and_the_gap_counts(division: str) -> None:
    whole, log = judged(compliant_log(division=division)), interrupted(division=division)
    found = judged(log, in_set=False)
    (finding,) = found.findings
    assert (finding.rule, finding.severity) == ("run-resumed", Severity.WARNING)
    assert finding.line == log.index("resumed") + 1
    assert f"{log.find('resumed')['value']:,}" in finding.message and "90.0 s" in finding.message
    assert found.summary.status is Status.CONVERGED
    assert found.summary.minutes is not None and whole.summary.minutes is not None
    assert found.summary.minutes == pytest.approx(whole.summary.minutes + GAP_MS / 60_000)


def test_the_official_checker_ignores_the_record(tmp_path: Path) -> None:
    path = interrupted().write(tmp_path / "result_0.txt")
    with OfficialTools("6.1.0") as official:
        official.check_files({path.name: path})
        (result,) = official.collect()
    assert (result.verdict, result.messages) == ("pass", ())


def test_every_interruption_is_reported() -> None:
    first, second = judged(interrupt(interrupted(), 40, 5_000)).findings
    assert "90.0 s" in first.message and "5.0 s" in second.message


def test_a_checkpoint_may_lie_between_two_logged_losses() -> None:
    log = interrupted()
    samples = log.find("train_loss", AT)["metadata"]["samples_count"] + 16
    log.set("resumed", samples).find("resumed")["metadata"]["samples_count"] = samples
    assert fired(judged(log).findings, Severity.ERROR) == set()


def test_a_checkpoint_may_follow_an_evaluation() -> None:
    log = compliant_log()
    block = log.find("block_start", 2)
    log.insert_after("block_start", 2, resumed(block["metadata"]["samples_count"], block["time_ms"]))
    findings = judged(log).findings
    assert fired(findings) == {"run-resumed"} and fired(findings, Severity.ERROR) == set()


def repeat_work(log: MadeLog) -> None:
    """Log a step after the checkpoint before the interruption, too."""
    lost = {**log.find("train_loss", AT + 1), "time_ms": log.find("train_loss", AT)["time_ms"] + 10}
    log.insert_before("resumed", 0, lost)


def repeat_last_step(log: MadeLog) -> None:
    """Log the step before the checkpoint after it, too."""
    log.insert_after("resumed", 0, {**log.find("train_loss", AT), "time_ms": log.find("resumed")["time_ms"]})


def resume_before_an_evaluation(log: MadeLog) -> None:
    """Resume at fewer samples than the last evaluation's; no loss tells how far training was."""
    log.set("resumed", 12_000).find("resumed")["metadata"]["samples_count"] = 12_000
    for record in log.all("train_loss")[: AT + 1]:
        record["metadata"].pop("samples_count")


def start_again(log: MadeLog) -> None:
    log.insert_after("resumed", 0, {**log.find("run_start"), "time_ms": log.find("resumed")["time_ms"]})


def move_before_run_start(log: MadeLog) -> None:
    start = log.find("run_start")["time_ms"]
    log.drop("resumed").insert_before("run_start", 0, resumed(0, start - 10))


def move_after_run_stop(log: MadeLog) -> None:
    stop = log.find("run_stop")
    log.drop("resumed").events.append(resumed(stop["metadata"]["samples_count"], stop["time_ms"]))


def set_both(value: Any, count: Any) -> Change:
    return lambda log: log.set("resumed", value).find("resumed")["metadata"].update(samples_count=count)


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("run-repeats-data", repeat_last_step),
        # The rules on all runs hold across the gap.
        ("eval-cadence", lambda log: drop_evaluation(log, 2)),
        ("schedule-rate", lambda log: log.find("train_loss", AT + 1)["metadata"].update(lr=1e-5)),
        ("clock-backwards", lambda log: log.shift(log.index("resumed"), -GAP_MS - 5_000)),
        ("clock-run-start", start_again),
        ("clock-run-start", move_before_run_start),
        ("clock-after-stop", move_after_run_stop),
    ],
)
def test_exactly_this_rule_reports_an_error(rule: str, change: Change) -> None:
    log = interrupted()
    change(log)
    assert fired(judged(log).findings, Severity.ERROR) == {rule}


def test_the_open_division_may_repeat_data() -> None:
    log = interrupted(division="open")
    repeat_last_step(log)
    assert fired(judged(log).findings) == {"run-resumed"}


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (set_value("resumed", None), "null"),
        (set_both(-16, -16), "-16"),
        (set_value("resumed", 0.5), "0.5"),
        (lambda log: log.find("resumed")["metadata"].update(samples_count="24"), None),
        (lambda log: log.find("resumed")["metadata"].update(samples_count=16), None),
        (repeat_work, None),
        (resume_before_an_evaluation, "24576"),
    ],
)
def test_a_doubtful_record_is_a_warning(change: Change, got: str | None) -> None:
    log = interrupted()
    change(log)
    findings = [each for each in judged(log).findings if each.expected is not None]
    assert [(each.rule, each.severity) for each in findings] == [("run-resumed", Severity.WARNING)]
    assert got in (None, findings[0].got)


@pytest.mark.parametrize("samples", [float("inf"), 10**400, "x", [], float("nan")])
def test_odd_counts_raise_no_exception(samples: object) -> None:
    log = interrupted()
    for record in (log.find("resumed"), log.find("train_loss", AT), log.find("eval_accuracy", 0)):
        record["metadata"]["samples_count"] = samples
    assert {"run-resumed", "train-loss-value"} <= fired(judged(log).findings, Severity.WARNING)


@pytest.mark.parametrize("samples", [float("inf"), 10**400, "x"])
def test_a_loss_without_a_count_before_the_record_is_ignored(samples: object) -> None:
    log = interrupted()
    log.find("train_loss", AT)["metadata"]["samples_count"] = samples
    assert fired(judged(log).findings, Severity.ERROR) == set()


def test_the_first_record_of_a_file_has_no_gap() -> None:
    content = MadeLog([interrupted().find("resumed")]).text().encode()
    found = [finding for finding in judged(content).findings if finding.rule == "run-resumed"]
    assert " 0.0 s" in found[0].message
