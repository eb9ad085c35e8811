"""Rules on the clock: each fires alone on a log that breaks it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from compliance.findings import Severity
from compliance.rules import clock
from tests.support.judging import (
    LAST,
    Change,
    assert_fires_alone,
    findings_of,
    fired,
    judged,
    judged_after,
    line_number,
    move_time,
    repeat,
    rule_ids,
    set_metadata,
    set_value,
)  # fmt: skip
from tests.support.made_logs import MadeLog, compliant_log, event, line

HUNDRED_MINUTES = 6_000_000


def late_cache_clear(log: MadeLog) -> None:
    log.drop("cache_clear").insert_after("run_start", 0, event("cache_clear", True, log.find("run_start")["time_ms"]))


def cache_clear_late_by_its_time(log: MadeLog) -> None:
    record = {**log.find("cache_clear"), "time_ms": log.find("run_start")["time_ms"] + 1_400}
    log.drop("cache_clear").insert_before("run_start", 0, record)


def append_last(key: str, later_ms: int = 0) -> Change:
    """Append the last record of a key once more."""
    return lambda log: log.events.append({**log.find(key, LAST), "time_ms": log.events[-1]["time_ms"] + later_ms})


def second_init(log: MadeLog) -> None:
    """Start initialization 35 minutes before run_start, and again 5 minutes before it."""
    log.find("cache_clear")["time_ms"] -= 30 * 60_000
    first = {**log.find("init_start"), "time_ms": log.find("init_start")["time_ms"] - 30 * 60_000}
    log.insert_before("init_start", 0, first)


def gap_before_run_start(log: MadeLog) -> None:
    """Put init_stop after 5 minutes, which satisfies the official checker, and run_start after 35."""
    log.shift(log.index("run_start"), 30 * 60_000)


def creep_back(log: MadeLog) -> None:
    """Put each record less than a second before the one above it, the third over a second before the first."""
    place = log.index("tracked_stats", 3)
    now = log.events[place - 1]["time_ms"]
    for number, record in enumerate(log.events[place : place + 3], 1):
        record["time_ms"] = now - 600 * number


def before_run_start(key: str, early_ms: int = 0) -> Change:
    """Move a record before run_start, at its time or earlier."""

    def move(log: MadeLog) -> None:
        record = log.events.pop(log.index(key))
        record["time_ms"] = log.find("run_start")["time_ms"] - early_ms
        log.insert_before("run_start", 0, record)

    return move


def swap(first: str, second: str) -> Change:
    def change(log: MadeLog) -> None:
        one, other = log.index(first), log.index(second)
        events = log.events
        events[one], events[other] = events[other], events[one]
        events[one]["time_ms"], events[other]["time_ms"] = events[other]["time_ms"], events[one]["time_ms"]

    return change


def late_start(log: MadeLog) -> None:
    """Start the clock after the first training records."""
    start = log.events.pop(log.index("run_start"))
    start["time_ms"] = log.find("train_loss", 3)["time_ms"]
    log.insert_after("train_loss", 3, start)


def stop_after_the_pass(log: MadeLog, later_ms: int = 0) -> MadeLog:
    passed = log.find("eval_accuracy", LAST)["time_ms"]
    log.find("eval_stop", LAST)["time_ms"] = passed
    log.find("run_stop")["time_ms"] = passed + later_ms
    return log


def stop_the_clock(log: MadeLog) -> None:
    """Give everything from run_start on the time of run_start."""
    start = log.index("run_start")
    for record in log.events[start:]:
        record["time_ms"] = log.events[start]["time_ms"]


BREAKS: list[tuple[str, str, Change]] = [
    *(("cache-clear", str(value), set_value("cache_clear", value)) for value in (False, "true", 1, None)),
    ("cache-clear", "late", late_cache_clear),
    ("cache-clear", "late by its time", cache_clear_late_by_its_time),
    ("clock-order", "init_stop first", swap("init_start", "init_stop")),
    ("clock-order", "run_start first", swap("init_stop", "run_start")),
    ("clock-order", "run_start earlier", move_time("run_start", 0, -2000)),
    ("clock-init-limit", "35 minutes", gap_before_run_start),
    ("clock-init-limit", "from the first init_start", second_init),
    ("clock-run-start", "late", late_start),
    ("clock-run-start", "after throughput", before_run_start("tracked_stats", early_ms=5)),
    ("clock-run-start", "after a loss", before_run_start("train_loss")),
    ("clock-run-start", "after a block starts", before_run_start("block_start")),
    ("clock-run-start", "after data", before_run_start("eval_tokens_sha256")),
    ("clock-run-start", "later than the next record", move_time("eval_tokens_sha256", 0, -2000)),
    ("clock-run-start", "again", lambda log: repeat(log, "run_start", later_ms=700)),
    ("clock-run-stop", "before the pass", move_time("run_stop", 0, -30_000)),
    ("clock-run-stop", "a millisecond before the pass", lambda log: stop_after_the_pass(log, -1)),
    ("clock-run-stop", "before run_start", move_time("run_stop", 0, -100_000_000)),
    ("clock-run-stop", "at run_start", stop_the_clock),
    ("clock-run-stop", "again", append_last("run_stop", later_ms=5000)),
    ("clock-after-stop", "data", append_last("eval_tokens_sha256")),
    ("clock-after-stop", "a loss", append_last("train_loss")),
    ("clock-backwards", "a loss", move_time("train_loss", 30, -HUNDRED_MINUTES)),
    ("clock-backwards", "an evaluation", move_time("eval_stop", 3, -5_000)),
    ("clock-backwards", "step by step", creep_back),
    ("clock-backwards", "the same record again", lambda log: repeat(log, "tracked_stats", 3, later_ms=-5_000)),
    *(("run-status", str(status), set_metadata("run_stop", 0, status=status))
      for status in ("converged", "Success", ["success"], "failed")),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "change"), [pytest.param(r, c, id=f"{r}: {name}") for r, name, c in BREAKS])
def test_exactly_this_rule_fires(rule: str, change: Change) -> None:
    assert_fires_alone(rule, change)


def init_after_the_description(log: MadeLog) -> None:
    start = log.events.pop(log.index("init_start"))
    log.insert_before("init_stop", 0, {**start, "time_ms": log.find("seed")["time_ms"] + 1})


@pytest.mark.parametrize("change", [init_after_the_description, move_time("cache_clear", 0, -3_700_000)])
def test_an_init_start_that_may_be_late_is_a_warning(change: Change) -> None:
    assert_fires_alone("clock-init-measured", change, Severity.WARNING)
    assert "measured from init_start" in findings_of(change, "clock-init-measured")[0].message


def test_every_rule_is_tested() -> None:
    assert {*(rule for rule, _, _ in BREAKS), "clock-stop-late", "clock-init-measured"} == rule_ids(clock)


def test_a_wrong_status_is_quoted_with_its_line() -> None:
    (finding,) = findings_of(set_metadata("run_stop", 0, status="x"), "run-status")
    assert (finding.expected, finding.got) == ("success or aborted", '"x"')
    assert finding.line == line_number(compliant_log(), "run_stop")


@pytest.mark.parametrize(
    ("division", "value", "severity"),
    [
        ("closed", False, Severity.ERROR),
        ("open", False, Severity.WARNING),
        ("open", "no", Severity.ERROR),
        ("open", 0, Severity.ERROR),
    ],
)
def test_uncleared_caches_are_a_warning_in_the_open_division(division: str, value: object, severity: Severity) -> None:
    (finding,) = findings_of(set_value("cache_clear", value), "cache-clear", division=division)
    assert finding.severity is severity


@pytest.mark.parametrize(("key", "after"), [("init_stop", "run_start"), ("init_start", "init_stop")])
def test_a_second_of_disorder_is_jitter(key: str, after: str) -> None:
    for late_ms, is_valid in ((1000, True), (1001, False)):
        log = compliant_log()
        log.find(key)["time_ms"] = log.find(after)["time_ms"] + late_ms
        assert ("clock-order" not in fired(judged(log).findings)) is is_valid


@pytest.mark.parametrize(("division", "minutes"), [("closed", 30), ("open", 240)])
def test_the_limit_of_initialization_to_the_millisecond(division: str, minutes: int) -> None:
    for more, is_valid in ((0, True), (1, False)):
        log = compliant_log(division=division)
        took = log.find("run_start")["time_ms"] - log.find("init_start")["time_ms"]
        log.shift(log.index("run_start"), minutes * 60_000 - took + more)
        findings = judged(log).findings
        assert fired(findings) == (set() if is_valid else {"clock-init-limit"})
        for finding in findings:
            assert (finding.line, finding.expected) == (line_number(log, "run_start"), f"at most {minutes} minutes")


@pytest.mark.parametrize(
    "key",
    ["block_start", "block_stop", "eval_start", "eval_accuracy", "eval_stop", "eval_tokens_sha256", "tracked_stats"],
)
def test_timed_keys_come_after_run_start(key: str) -> None:
    assert len(findings_of(before_run_start(key), "clock-run-start")) == 1
    # Another rank's line may come first in the file if its time is later.
    assert findings_of(before_run_start(key, early_ms=-1), "clock-run-start") == []


def test_the_first_record_before_run_start_is_named() -> None:
    log = compliant_log()
    late_start(log)
    (finding,) = judged(log).findings
    assert finding.line == line_number(log, "eval_tokens_sha256")
    together = compliant_log()
    for key in ("eval_tokens_sha256", "block_start"):
        together.find(key)["time_ms"] = together.find("run_start")["time_ms"]
    assert judged(together).findings == ()


def test_run_stop_may_come_with_the_pass_and_60_seconds_after_it() -> None:
    for later_ms in (0, 60_000):
        assert judged(stop_after_the_pass(compliant_log(), later_ms)).findings == ()
    (finding,) = judged(stop_after_the_pass(compliant_log(), 60_001)).findings
    assert (finding.rule, finding.severity, finding.got) == ("clock-stop-late", Severity.WARNING, "60.0")
    assert_fires_alone("clock-stop-late", move_time("run_stop", 0, 61_000), Severity.WARNING)


def test_a_late_stop_is_measured_from_the_latest_evaluation() -> None:
    log = compliant_log().set("eval_accuracy", 3.3, LAST - 1)
    for key in ("eval_start", "eval_accuracy", "eval_stop"):
        log.find(key, LAST)["time_ms"] -= HUNDRED_MINUTES
    log.find("run_stop")["time_ms"] = log.find("eval_accuracy", LAST - 1)["time_ms"] + 60_000
    assert fired(judged(log).findings, Severity.WARNING) == set()


def test_an_aborted_run_stops_after_its_start_and_its_last_record() -> None:
    log = compliant_log(converged=False)
    log.find("run_stop")["time_ms"] -= 7_200_000
    assert fired(judged(log).findings) == {"clock-run-stop"}
    log.find("run_stop")["time_ms"] = log.find("run_start")["time_ms"] - 1
    assert fired(judged(log).findings) == {"clock-run-stop"}
    empty = compliant_log(converged=False)
    del empty.events[empty.index("run_start") + 1 : empty.index("run_stop")]
    empty.find("run_stop")["time_ms"] = empty.find("run_start")["time_ms"]
    assert "clock-run-stop" not in fired(judged(empty).findings)


def test_descriptions_after_run_stop_are_one_note() -> None:
    def describe(log: MadeLog) -> None:
        log.events.append(log.events.pop(log.index("train_samples")))
        for key in ("tracked_stats", "run_duration", "overall_throughput", "status", "cache_clear", "run_duration"):
            log.events.append(event(key, True, log.find("run_stop")["time_ms"] + 8_000))
        log.events[-8]["time_ms"] = log.events[-7]["time_ms"] = log.find("run_stop")["time_ms"]

    (finding,) = judged_after(describe).findings
    assert (finding.rule, finding.severity) == ("clock-after-stop", Severity.INFO)
    assert "train_samples, tracked_stats, run_duration, overall_throughput, status, cache_clear" in finding.message


@pytest.mark.parametrize(("back_ms", "is_valid"), [(999, True), (1000, True), (1001, False)])
@pytest.mark.parametrize("key", ["tracked_stats", "eval_start", "train_loss"])
def test_the_clock_may_jump_back_by_a_second(key: str, back_ms: int, is_valid: bool) -> None:
    log = compliant_log()
    place = log.index(key, 3)
    log.events[place]["time_ms"] = log.events[place - 1]["time_ms"] - back_ms
    assert fired(judged(log).findings) == (set() if is_valid else {"clock-backwards"})


@pytest.mark.parametrize("chunk", [3, 8, 1 << 16])
def test_one_jump_back_is_one_finding_at_its_line(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance.rules.clock._CHUNK", chunk)
    assert judged(compliant_log(64)).findings == ()
    log = compliant_log()
    log.shift(log.index("eval_start", 6), -HUNDRED_MINUTES)
    (finding,) = (each for each in judged(log).findings if each.rule == "clock-backwards")
    assert (finding.line, finding.got) == (line_number(log, "eval_start", 6), '"6000.0 s"')
    creeping = compliant_log()
    first = creeping.find("train_loss", 25)["time_ms"]
    for n in (1, 2, 3):
        creeping.find("train_loss", 25 + n)["time_ms"] = first - 600 * n
    (finding,) = judged(creeping).findings
    assert (finding.line, finding.got) == (line_number(creeping, "train_loss", 27), '"1.2 s"')
    several = compliant_log()
    places = (("tracked_stats", 2), ("train_loss", 60), ("block_stop", 9))
    for key, n in places:
        move_time(key, n, -HUNDRED_MINUTES)(several)
    lines = [each.line for each in judged(several).findings if each.rule == "clock-backwards"]
    assert lines == [line_number(several, key, n) for key, n in places]


# --- records of several ranks or loggers

EVALUATION = ("block_start", "eval_start", "eval_accuracy", "eval_stop", "block_stop")


def by_ranks(log: MadeLog, offsets_ms: Sequence[int], prefix: str, keys: Sequence[str] = ()) -> bytes:
    """Log every record, or those of some keys, from several ranks whose clocks differ by the offsets."""
    lines = []
    for record in log.events:
        for rank, offset in enumerate(offsets_ms):
            if rank == 0 or not keys or record["key"] in keys:
                lines.append(f"{prefix.format(rank)}{line({**record, 'time_ms': record['time_ms'] + offset})}\n")
    return "".join(lines).encode()


@pytest.mark.parametrize("prefix", ["{}: ", "{}:", " {}: ", "[{}]: ", "[rank{}]: ", "node1: {}: "])
@pytest.mark.parametrize("offsets_ms", [(0, 300, -300), (40, 0, -960)], ids=str)
def test_several_ranks_log_one_run(prefix: str, offsets_ms: tuple[int, ...]) -> None:
    log = compliant_log(64)
    found = judged(by_ranks(log, offsets_ms, prefix))
    assert found.findings == ()
    assert found.summary.seed == log.find("seed")["value"]
    assert len(found.summary.evaluations) == 25


def test_without_prefixes_a_second_run_start_is_a_second_run() -> None:
    assert fired(judged(by_ranks(compliant_log(64), (0, 300), "")).findings) == {"clock-run-start"}
    # The same line again is a copy of the output, and other keys may come from any rank.
    assert judged(by_ranks(compliant_log(64), (0, 0), "")).findings == ()
    assert judged(by_ranks(compliant_log(64), (0, 300), "", keys=EVALUATION)).findings == ()


@pytest.mark.parametrize(("later_ms", "is_valid"), [(1000, True), (1001, False), (-1000, True)])
def test_ranks_start_the_clock_within_a_second(later_ms: int, is_valid: bool) -> None:
    content = by_ranks(compliant_log(64), (0, later_ms), "{}: ", keys=("run_start",))
    assert fired(judged(content).findings) == (set() if is_valid else {"clock-run-start"})


def test_a_second_logger_repeats_records() -> None:
    log = compliant_log()
    for key in (*EVALUATION, "seed", "run_stop"):
        for n in reversed(range(len(log.all(key)))):
            repeat(log, key, n, later_ms=5, file="other.py", lineno=1)
    assert judged(log).findings == ()


@pytest.mark.parametrize(
    ("later_ms", "changes", "is_repeat"),
    [(0, {}, True), (999, {}, True), (1000, {}, True), (1001, {}, False), (0, {"samples_count": 7}, False)],
)
def test_an_evaluation_again_within_a_second_is_a_repeat(
    later_ms: int, changes: dict[str, int], is_repeat: bool
) -> None:
    found = findings_of(lambda log: repeat(log, "eval_accuracy", 3, later_ms, **changes), "samples-count")
    assert (found == []) is is_repeat


def test_two_losses_of_one_evaluation_are_two_evaluations() -> None:
    loss = compliant_log().find("eval_accuracy", 3)["value"] + 1e-7
    assert len(findings_of(lambda log: repeat(log, "eval_accuracy", 3, value=loss), "samples-count")) == 1


def test_records_with_other_samples_are_no_repeats_at_any_speed() -> None:
    def compress(log: MadeLog) -> None:
        start = log.find("run_start")["time_ms"]
        for record in log.events[log.index("run_start") :]:
            record["time_ms"] = start + (record["time_ms"] - start) // 1_000_000

    assert judged_after(compress, gbs=64).findings == ()
