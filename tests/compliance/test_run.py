"""Logs read as runs: JSON values, repeated records, evaluations."""

from __future__ import annotations

import math
from typing import Any

import pytest

from compliance.json_values import finite_float, whole_number
from compliance.records import Log, Record
from compliance.run import Run
from tests.support.judging import judged
from tests.support.made_logs import compliant_log


@pytest.mark.parametrize(
    ("value", "real", "integer"),
    [
        (16, 16.0, 16), (16.0, 16.0, 16), (0, 0.0, 0), (-3, -3.0, -3), (16.5, 16.5, None), (1e300, 1e300, int(1e300)),
        (2**64 - 1, float(2**64), 2**64 - 1), (10**400, None, None), (math.nan, None, None), (-math.inf, None, None),
        (True, None, None), (False, None, None), ("16", None, None), (None, None, None), ([16], None, None),
    ],
    ids=lambda value: str(value)[:8],
)  # fmt: skip
def test_json_numbers(value: object, real: float | None, integer: int | None) -> None:
    assert finite_float(value) == real
    assert whole_number(value) == integer and type(whole_number(value)) in (int, type(None))


# Time in ms, key, event, value, rank, metadata.
Row = tuple[float, str, str, object, int | None, dict[str, Any]]


def run_of(*rows: Row) -> Run:
    records = [
        Record(line, rank, 1.79e12 + time_ms, event_type, key, value, metadata)
        for line, (time_ms, key, event_type, value, rank, metadata) in enumerate(rows, 1)
    ]
    return Run(Log("x.txt", records), "6.1.0")


@pytest.mark.parametrize(
    ("second", "is_repeat"),
    [
        ((0, "k", "P", 1, None, {}), True),
        ((1000, "k", "P", 1, None, {}), True),
        ((1001, "k", "P", 1, None, {}), False),
        ((-1000, "k", "P", 1, None, {}), True),
        ((-1001, "k", "P", 1, None, {}), False),
        ((0, "k", "P", 1, 3, {}), True),
        ((0, "k", "P", 1, None, {"file": "y", "lineno": 5}), True),
        ((0, "other", "P", 1, None, {}), False),
        ((0, "k", "END", 1, None, {}), False),
        ((0, "k", "P", 1.0, None, {}), False),
        ((0, "k", "P", "1", None, {}), False),
        ((0, "k", "P", 1, None, {"samples_count": 5}), False),
    ],
)
def test_repeated_records_are_dropped(second: Row, is_repeat: bool) -> None:
    run = run_of((0, "k", "P", 1, None, {"file": "x", "lineno": 1}), second)
    assert len(run.records) == (1 if is_repeat else 2)


def test_a_record_is_compared_with_the_last_one_that_was_no_repeat() -> None:
    run = run_of(*((time, "k", "P", 1, None, {}) for time in (0, 900, 1500, 2400, 2600)))
    assert [record.line for record in run.all("k")] == [1, 3, 5]


@pytest.mark.parametrize(("rank", "later_ms", "starts"), [(None, 0, 1), (None, 1, 2), (1, 1000, 1), (1, 1001, 2)])
def test_the_clock_starts_once_or_once_per_rank(rank: int | None, later_ms: int, starts: int) -> None:
    run = run_of((0, "run_start", "START", None, 0, {}), (later_ms, "run_start", "START", None, rank, {}))
    assert len(run.all("run_start")) == starts
    assert run.run_start is not None and run.run_start.line == 1


def test_the_first_record_of_a_key_counts() -> None:
    run = run_of((0, "seed", "P", 7, None, {}), (0, "seed", "P", 8, None, {}))
    first = run.first("seed")
    assert first is not None and (first.line, run.value("seed"), run.count("seed")) == (1, 7, 7)
    assert (run.first("k"), run.value("k"), run.count("k"), run.number("k"), list(run.all("k"))) == (None,) * 4 + ([],)


def test_evaluations_have_a_readable_loss_and_count() -> None:
    log = compliant_log(64)
    log.set("eval_accuracy", "low", 2)
    log.find("eval_accuracy", 3)["metadata"]["samples_count"] = "many"
    log.find("eval_accuracy", 4)["metadata"]["samples_count"] = 1.5
    log.set("eval_accuracy", -1.0, 5)
    found = judged(log)
    assert [each.samples // 12_288 for each in found.summary.evaluations] == [1, 2, *range(6, 26)]
    assert found.run.passing_evaluation is not None and found.run.passing_evaluation.samples == 25 * 12_288
    assert [each.line for each in found.summary.evaluations][:2] == [log.index("eval_accuracy", n) + 1 for n in (0, 1)]


@pytest.mark.parametrize(("changes", "accelerators"), [({}, 8), ({"context_parallelism": 2}, 16)])
def test_the_logged_sizes_imply_the_accelerators(changes: dict[str, int], accelerators: int) -> None:
    log = compliant_log(16)
    for key, value in changes.items():
        log.set(key, value)
    assert judged(log).run.accelerators == accelerators
    log.set("global_batch_size", None)
    assert judged(log).run.accelerators is None
