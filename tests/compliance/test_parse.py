"""Accepted forms of logs, and parse errors for the rest."""

from __future__ import annotations

import io
import json
import math
import random
import tracemalloc
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import pytest

from compliance.parse import parse
from compliance.records import Log
from tests.support.judging import judged
from tests.support.made_logs import MadeLog, compliant_log, event, line

SEED, LOSS, OTHER = (
    line(event(key, value, 1_790_000_000_000)) for key, value in (("seed", 1), ("train_loss", 3.0), ("other", 1))
)


def parsed(content: bytes | str) -> Log:
    return parse(io.BytesIO(content.encode() if isinstance(content, str) else content), "x.txt")


def lines_of(log: MadeLog) -> list[str]:
    return log.text().splitlines()


def ranks(log: MadeLog) -> str:
    """Log every line from eight ranks with prefixes and different clocks."""
    return "\n".join(
        f"{rank}: {line({**record, 'time_ms': record['time_ms'] + rank})}" for record in log.events for rank in range(8)
    )


def noise(log: MadeLog) -> bytes:
    """Insert other text, progress bars, 30 kB lines and bytes that are no text around and within lines."""
    rng = random.Random(1)
    out = []
    for text in lines_of(log):
        out.append(rng.randbytes(200).replace(b"\n", b"").replace(b":::", b""))
        out.append(b"step 17 " + b"=" * 30_000)
        out.append(b"50%|#####     |\r" + text.encode() + b" <- \xff\xfe logged")
    return b"\n".join(out)


HARMLESS: dict[str, Callable[[MadeLog], str | bytes]] = {
    "CRLF": lambda log: log.text().replace("\n", "\r\n"),
    "rank prefix": lambda log: "".join(f"0: {text}\n" for text in lines_of(log)),
    "rank in brackets": lambda log: "".join(f"[rank3]: {text}\n" for text in lines_of(log)),
    "all on one line": lambda log: " ".join(lines_of(log)),
    "two on a line": lambda log: "\n".join(map("".join, zip_longest(*[iter(lines_of(log))] * 2, fillvalue=""))),
    "every line twice": lambda log: "".join(f"{text}\n{text}\n" for text in lines_of(log)),
    "eight ranks": ranks,
    "other text": noise,
    "bytes of another encoding first": lambda log: b"\xff\xfe\n" + log.text().encode(),
    "zeros first": lambda log: bytes(300) + log.text().encode(),
    "a shell's trace": lambda log: "+ grep ':::MLLOG' out.log\n" + log.text(),
    "no line end": lambda log: log.text().rstrip("\n"),
    "a mark of UTF-8": lambda log: "\ufeff" + log.text(),
    "compact JSON": lambda log: "\n".join(f":::MLLOG {json.dumps(each, separators=(',', ':'))}" for each in log.events),
    "other order of names": lambda log: "\n".join(
        f":::MLLOG {json.dumps(each, sort_keys=True)}" for each in log.events
    ),
}


@pytest.mark.parametrize("form", HARMLESS)
@pytest.mark.parametrize("convention", ["after", "before"])
def test_the_form_of_a_log_does_not_matter(form: str, convention: str) -> None:
    log = compliant_log(convention=convention)
    content = HARMLESS[form](log)
    found = judged(content.encode() if isinstance(content, str) else content)
    assert found.findings == ()
    assert found.summary.minutes == pytest.approx(judged(log).summary.minutes, rel=1e-6)


GOOD = {"key": "seed", "value": 1, "time_ms": 1_790_000_000_000, "metadata": {}}


def changed(**values: Any) -> str:
    """Return a record with other values, or without a value that is ``...``."""
    return json.dumps({name: value for name, value in {**GOOD, **values}.items() if value is not ...})


@pytest.mark.parametrize(
    "text",
    [
        ' {"namespace": "", "time_ms": 1, "event_type": "A", "key": "train_loss", "value": 1.0, "metadata": {}',
        ' {"namespace": "\\u0022", "time_ms": 17, "key": "train_loss", "value": 1e, "metadata": {}}',
        "", " {", " null", ' {"key": "seed"}',
        *(f" {changed(**{name: ...})}" for name in GOOD),
        *(f" {changed(key=value)}" for value in (5, "")),
        *(f" {changed(time_ms=value)}" for value in (True, math.nan, 1e99, 0, -1, 10_000_000_000_000)),
        f" {changed(metadata=None)}",
        f" {changed()}".replace("1,", "9" * 5000 + ",", 1),
        " " + "[" * 100_000,
    ],
    ids=lambda text: text[:60],
)  # fmt: skip
def test_an_unreadable_record_is_an_error_with_its_line(text: str) -> None:
    log = parsed(f"hello\n:::MLLOG{text}\n{SEED}\n")
    assert [(error.rule, error.line) for error in log.parse_errors] == [("record-corrupt", 2)]
    assert [record.key for record in log.records] == ["seed"]
    assert log.lines == 3


def test_an_unreadable_record_is_quoted_by_its_beginning() -> None:
    (error,) = parsed(":::MLLOG   {" + "x" * 500 + "\n").parse_errors
    assert error.got == "{" + "x" * 76  # 80 bytes with the blanks
    (binary,) = parsed(b":::MLLOG {\xff\n").parse_errors
    assert binary.got == "{\\xff"


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"time_ms": 1_790_000_000_000.5}, "time_ms", 1_790_000_000_000.5),
        ({"time_ms": 9_999_999_999_999}, "time_ms", 9_999_999_999_999.0),
        ({"event_type": "INTERVAL_END"}, "event", "INTERVAL_END"),
        ({"event_type": 5}, "event", ""),
        ({"event_type": None}, "event", ""),
        ({"value": None}, "value", None),
        ({"value": 2**64 - 1}, "value", 2**64 - 1),
        ({"metadata": {}}, "samples", None),
        ({"metadata": {"samples_count": "many"}}, "samples", "many"),
    ],
)
def test_the_fields_of_a_record(changes: dict[str, Any], field: str, expected: object) -> None:
    log = parsed(f":::MLLOG\t{json.dumps({**event('seed', 1, 1_790_000_000_000), **changes})}\n")
    assert log.parse_errors == []
    assert getattr(log.records[0], field) == expected
    without = event("seed", 1, 1_790_000_000_000)
    del without["event_type"]
    assert parsed(f":::MLLOG {json.dumps(without)}").records[0].event == ""


@pytest.mark.parametrize(
    ("before", "rank"),
    [
        ("", None), ("0: ", 0), ("0:", 0), ("12: ", 12), (" 3: ", 3), ("[3]: ", 3), ("[rank3]:", 3), ("rank3: ", 3),
        ("node-7: 3: ", 3), ("node-7: [3]: ", 3), ("node-7:3: ", 3), ("3 ", None), ("loss 0.3: ", None),
        ("epoch3: ", None), ("1234567: ", None), ("3: saved; ", None),
    ],
)  # fmt: skip
def test_the_rank_of_a_launcher_s_prefix(before: str, rank: int | None) -> None:
    text = json.dumps(event("seed", 1, 1_790_000_000_000))
    log = parsed(f"{before}:::MLLOG {text} {before}:::MLLOG {text}\n")
    assert [record.rank for record in log.records] == [rank, rank]


def test_a_record_cut_by_another_costs_only_itself() -> None:
    whole = f":::MLLOG {json.dumps(event('seed', 1, 1_790_000_000_000))}"
    log = parsed(f"{whole[:40]}{whole}\n")
    assert len(log.parse_errors) == 1
    assert [record.value for record in log.records] == [1]


def test_strings_keep_their_meaning_whatever_their_spelling() -> None:
    log = parsed(
        ':::MLLOG {"k\\u0065y": "s\\u0065ed", "value": 7, "time_ms": 1790000000000, "metadata": {}, "value": 8}'
    )
    assert [(record.key, record.value) for record in log.records] == [("seed", 8)]


def test_absent_and_wrong_numbers_of_a_loss_differ() -> None:
    absent = event("train_loss", 3.0, 1_790_000_000_000)
    wrong = event("train_loss", "3.0", 1_790_000_000_000, {"samples_count": True, "lr": 10**400})
    log = parsed("\n".join(f":::MLLOG {json.dumps(each)}" for each in (absent, wrong)))
    assert math.isnan(log.train_losses.samples[0]) and math.isnan(log.train_losses.learning_rates[0])
    assert [log.train_losses.losses[1], log.train_losses.samples[1], log.train_losses.learning_rates[1]] == [
        math.inf
    ] * 3


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "3.0", True, [3.0], {}, 10**400], ids=lambda value: str(value)[:8]
)
def test_wrong_numbers_are_infinite_in_every_column(value: object) -> None:
    wrong = event("train_loss", value, 1_790_000_000_000, {"samples_count": value, "lr": value})
    losses = parsed(f":::MLLOG {json.dumps(wrong)}").train_losses
    assert [losses.losses[0], losses.samples[0], losses.learning_rates[0]] == [math.inf] * 3


def test_losses_keep_the_order_of_the_file_however_they_are_read() -> None:
    plain, other = (event("train_loss", 3.0, time, {"samples_count": 16, "lr": 1e-4}) for time in (2000, 1000))
    forms = [json.dumps(plain), json.dumps(other, separators=(",", ":")), json.dumps(plain, sort_keys=True)]
    kinds = [*forms * 3, json.dumps(event("seed", 1, 1)), *forms]
    losses = parsed("".join(f":::MLLOG {form}\n" for form in kinds)).train_losses
    assert list(losses.lines) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13]
    assert list(losses.times_ms) == [2000, 1000, 2000] * 4
    assert len(losses) == 12


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        ("", [("file-empty", None)]),
        ("\n", [("file-empty", None)]),
        ("Traceback (most recent call last):\n  nothing here\n", [("file-empty", None)]),
        (":::MLLOG {\n", [("record-corrupt", 1)]),  # something is there
        (LOSS, []),
        (SEED, []),
    ],
)
def test_a_file_without_records_is_empty(content: str, errors: list[tuple[str, int | None]]) -> None:
    log = parsed(content)
    assert [(error.rule, error.line) for error in log.parse_errors] == errors
    if content.startswith("Traceback"):
        assert log.parse_errors[0].got == "Traceback (most recent call last):"


@pytest.mark.parametrize(
    ("encoding", "mark", "name"),
    [
        ("utf-16-le", b"\xff\xfe", "is UTF-16;"),
        ("utf-16-be", b"\xfe\xff", "is UTF-16;"),
        ("utf-32-le", b"\xff\xfe\x00\x00", "is UTF-32;"),
        ("utf-32-be", b"\x00\x00\xfe\xff", "is UTF-32;"),
        ("utf-16-le", b"", "is UTF-16 or UTF-32;"),
        ("utf-16-be", b"", "is UTF-16 or UTF-32;"),
    ],
)
def test_a_wide_encoding_is_named(encoding: str, mark: bytes, name: str) -> None:
    (error,) = parsed(mark + f"{SEED}\n".encode(encoding)).parse_errors
    assert error.rule == "file-encoding" and name in error.message


@pytest.mark.parametrize("second", [b"\xff\xfe", b"\xfe\xff" + b"\0" * 60, b"ab\0" * 60, b"\0" + b"x" * 100])
def test_a_few_zeros_or_a_later_byte_order_mark_are_other_text(second: bytes) -> None:
    """The second line ends in the second chunk and is its first line."""
    content = b"ab\0" * 60 + b"\n" + second + b"x" * (1 << 20) + b"\n" + SEED.encode()
    log = parsed(content)
    assert log.parse_errors == []
    assert [(record.key, record.line) for record in log.records] == [("seed", 3)]


def test_a_line_that_is_too_long_is_an_error_and_the_rest_is_read() -> None:
    text = "x" * (5 << 20)
    log = parsed(f"one\ntwo\n{SEED} {text}\n{SEED}\n")
    assert {error.rule for error in log.parse_errors} == {"record-corrupt"}
    assert log.parse_errors[0].line == 3 and "1,048,576" in log.parse_errors[0].message
    assert [record.line for record in log.records][:1] == [3]
    assert len(log.records) == 2


def test_a_line_of_a_megabyte_is_not_too_long() -> None:
    log = parsed(SEED.ljust(1 << 20) + f"\n{SEED}\n")
    assert log.parse_errors == []
    assert [record.line for record in log.records] == [1, 2]
    assert (log.lines, log.size) == (2, (1 << 20) + len(SEED) + 2)


def test_lines_are_counted_over_all_chunks() -> None:
    noise = "x" * 999 + "\n"
    log = parsed(noise * 3000 + ":::MLLOG {\n" + SEED + "\n" + LOSS)
    assert [error.line for error in log.parse_errors] == [3001]
    assert [record.line for record in log.records] == [3002]
    assert list(log.train_losses.lines) == [3003]
    assert log.lines == 3003
    long = parsed(noise * 3000 + "x" * (3 << 20) + "\n")
    assert [error.line for error in long.parse_errors][:1] == [3001]


@pytest.mark.parametrize("count", [99, 100, 101, 250])
def test_records_past_a_limit_are_counted(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for name in ("_MAX_LOSSES", "_MAX_JUDGED", "_MAX_OTHERS", "_MAX_ERRORS"):
        monkeypatch.setattr(f"compliance.parse.{name}", 100)
    # Losses come a few at a time, as in a log with other records between them.
    log = parsed("".join(f"{LOSS}\n{LOSS}\n:::MLLOG {{\n{SEED}\n{OTHER}\n" for _ in range(count)))
    kept = min(count, 100)
    assert (len(log.records), len(log.train_losses)) == (2 * kept, min(2 * count, 100))
    assert len([error for error in log.parse_errors if error.line is not None]) == kept
    left_out = {"train_loss": 2 * count - 100, "records past": count - 100, "unreadable": count - 100}
    messages = [error.message for error in log.parse_errors if error.line is None]
    expected = [(what, more) for what, more in left_out.items() if more > 0]
    for message, (what, more) in zip(messages, expected, strict=True):
        assert message.startswith(f"{more} ") and what in message


@pytest.mark.slow
def test_a_large_file_is_not_held_in_memory() -> None:
    text = line(event("train_loss", 3.0, 1_790_000_000_000, {"samples_count": 16, "lr": 1e-4})) + "\n"

    class LargeFile(io.RawIOBase):
        left = 16 << 20

        def read(self, size: int = -1) -> bytes:
            block = (text * (size // len(text))).encode() if self.left > 0 else b""
            self.left -= len(block)
            return block

    tracemalloc.start()
    log = parse(LargeFile(), "x.txt")  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert log.size > 15 << 20
    # Forty bytes a loss, and a few chunks of a megabyte with their lines.
    assert peak < 40 * len(log.train_losses) * 1.3 + (8 << 20)
