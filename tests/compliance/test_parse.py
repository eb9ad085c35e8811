"""What a log may look like without being wrong, and what becomes of what cannot be read."""

from __future__ import annotations

import io
import json
import math
import random
import tracemalloc
from typing import Any

import pytest

from compliance import parse as parsing
from compliance.findings import Severity
from compliance.parse import parse
from compliance.records import Log
from tests.support.judging import fired, judged
from tests.support.made_logs import MadeLog, compliant_log, event


def parsed(content: bytes | str) -> Log:
    return parse(io.BytesIO(content.encode() if isinstance(content, str) else content), "x.txt")


def lines_of(log: MadeLog) -> list[str]:
    return log.text().splitlines()


def ranks(log: MadeLog) -> str:
    """Every line from eight ranks, each with its prefix and a clock of its own."""
    out = []
    for record in log.events:
        for rank in range(8):
            mine = {**record, "time_ms": record["time_ms"] + rank}
            out.append(f"{rank}: :::MLLOG {json.dumps(mine)}")
    return "\n".join(out)


def noise(log: MadeLog) -> bytes:
    """Other text, progress bars, 30 kB lines and bytes that are no text, around and within lines."""
    rng = random.Random(1)
    out = []
    for line in lines_of(log):
        out.append(rng.randbytes(200).replace(b"\n", b"").replace(b":::", b""))
        out.append(b"step 17 " + b"=" * 30_000)
        out.append(b"50%|#####     |\r" + line.encode() + b" <- \xff\xfe logged")
    return b"\n".join(out)


HARMLESS = {
    "CRLF": lambda log: log.text().replace("\n", "\r\n"),
    "rank prefix": lambda log: "".join(f"0: {line}\n" for line in lines_of(log)),
    "rank in brackets": lambda log: "".join(f"[rank3]: {line}\n" for line in lines_of(log)),
    "all on one line": lambda log: " ".join(lines_of(log)),
    "two on a line": lambda log: "\n".join(map("".join, zip(lines_of(log)[::2], lines_of(log)[1::2], strict=True))),
    "every line twice": lambda log: "".join(f"{line}\n{line}\n" for line in lines_of(log)),
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
    if form == "two on a line" and len(log.events) % 2:
        log.events.append(log.events.pop())
        log.insert_after("seed", 0, dict(log.find("seed")))
    content = HARMLESS[form](log)
    found = judged(content.encode() if isinstance(content, str) else content)
    assert found.findings == ()
    assert found.summary.minutes == pytest.approx(judged(log).summary.minutes, rel=1e-6)


@pytest.mark.parametrize(
    "line",
    [
        ':::MLLOG {"namespace": "", "time_ms": 1, "event_type": "A", "key": "train_loss", "value": 1.0, "metadata": {}',
        ':::MLLOG {"namespace": "\\u0022", "time_ms": 17, "key": "train_loss", "value": 1e, "metadata": {}}',
        ":::MLLOG",
        ":::MLLOG {",
        ":::MLLOG null",
        ':::MLLOG {"key": "seed"}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": 1790000000000}',
        ':::MLLOG {"key": 5, "value": 1, "time_ms": 1790000000000, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": true, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": NaN, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": 1e99, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": 1790000000000, "metadata": null}',
        ':::MLLOG {"key": "seed", "time_ms": 1790000000000, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "metadata": {}}',
        ':::MLLOG {"value": 1, "time_ms": 1790000000000, "metadata": {}}',
        ':::MLLOG {"key": "", "value": 1, "time_ms": 1790000000000, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": 0, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": -1, "metadata": {}}',
        ':::MLLOG {"key": "seed", "value": 1, "time_ms": 10000000000000, "metadata": {}}',
        f':::MLLOG {{"key": "seed", "value": {"9" * 5000}, "time_ms": 1, "metadata": {{}}}}',
        ":::MLLOG " + "[" * 100_000,
    ],
    ids=range(21),
)  # fmt: skip
def test_what_cannot_be_read_is_a_finding_with_its_line(line: str) -> None:
    log = parsed(f"hello\n{line}\n:::MLLOG {json.dumps(event('seed', 1, 1_790_000_000_000))}\n")
    assert [(defect.rule, defect.line) for defect in log.parse_errors] == [("record-corrupt", 2)]
    assert [record.key for record in log.records] == ["seed"]
    assert log.lines == 3


def test_an_unreadable_record_is_quoted_by_its_beginning() -> None:
    (defect,) = parsed(":::MLLOG   {" + "x" * 500 + "\n").parse_errors
    assert defect.got == "{" + "x" * 76  # 80 bytes with the blanks
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
def test_what_a_record_holds(changes: dict[str, Any], field: str, expected: object) -> None:
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
def test_the_rank_that_a_launcher_names(before: str, rank: int | None) -> None:
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


def test_absent_and_wrong_numbers_of_a_loss_are_told_apart() -> None:
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
def test_what_is_no_finite_number_is_infinite_in_every_column(value: object) -> None:
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


SEED = f":::MLLOG {json.dumps(event('seed', 1, 1_790_000_000_000))}"
LOSS = f":::MLLOG {json.dumps(event('train_loss', 3.0, 1_790_000_000_000))}"


@pytest.mark.parametrize(
    ("content", "defects"),
    [
        ("", [("file-empty", None)]),
        ("\n", [("file-empty", None)]),
        ("Traceback (most recent call last):\n  nothing here\n", [("file-empty", None)]),
        (":::MLLOG {\n", [("record-corrupt", 1)]),  # something is there
        (LOSS, []),
        (SEED, []),
    ],
)
def test_a_file_without_records_is_empty(content: str, defects: list[tuple[str, int | None]]) -> None:
    log = parsed(content)
    assert [(defect.rule, defect.line) for defect in log.parse_errors] == defects
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
    (defect,) = parsed(mark + f"{SEED}\n".encode(encoding)).parse_errors
    assert defect.rule == "file-encoding" and name in defect.message


@pytest.mark.parametrize("line", [b"\xff\xfe", b"\xfe\xff" + b"\0" * 60, b"ab\0" * 60, b"\0" + b"x" * 100])
def test_a_few_zeros_or_a_mark_further_on_are_other_text(line: bytes) -> None:
    """The second line reaches into the second chunk and is the first that comes with it."""
    content = b"ab\0" * 60 + b"\n" + line + b"x" * (1 << 20) + b"\n" + SEED.encode()
    log = parsed(content)
    assert log.parse_errors == []
    assert [(record.key, record.line) for record in log.records] == [("seed", 3)]


def test_too_long_a_line_is_named_and_what_follows_is_read() -> None:
    text = "x" * (5 << 20)
    log = parsed(f"one\ntwo\n{SEED} {text}\n{SEED}\n")
    assert {defect.rule for defect in log.parse_errors} == {"record-corrupt"}
    assert log.parse_errors[0].line == 3 and "longer than 1,048,576 bytes" in log.parse_errors[0].message
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
    assert [defect.line for defect in log.parse_errors] == [3001]
    assert [record.line for record in log.records] == [3002]
    assert list(log.train_losses.lines) == [3003]
    assert log.lines == 3003
    long = parsed(noise * 3000 + "x" * (3 << 20) + "\n")
    assert [defect.line for defect in long.parse_errors][:1] == [3001]


def test_memory_is_bounded_whatever_the_file_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MAX_LOSSES", "_MAX_JUDGED", "_MAX_OTHERS", "_MAX_ERRORS"):
        monkeypatch.setattr(parsing, name, 100)
    loss = event("train_loss", 3.0, 1_790_000_000_000, {"samples_count": 16, "lr": 1e-4})
    kinds = [loss, event("seed", 1, 1_790_000_000_000), event("my_own", 1, 1_790_000_000_000)]
    content = "".join(f":::MLLOG {json.dumps(each)}\n" * 150 for each in kinds) + ":::MLLOG {\n" * 150
    log = parsed(content)
    assert len(log.train_losses) == 100
    assert len(log.records) == 200
    messages = [defect.message for defect in log.parse_errors[100:]]
    assert len(messages) == 3 and all(message.startswith("50 ") for message in messages)


@pytest.mark.parametrize("count", [99, 100, 101, 250])
def test_what_fits_is_kept_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for name in ("_MAX_LOSSES", "_MAX_JUDGED", "_MAX_ERRORS"):
        monkeypatch.setattr(parsing, name, 100)
    # Losses come a few at a time, as in a log with other records between them.
    log = parsed("".join(f"{LOSS}\n{LOSS}\n:::MLLOG {{\n{SEED}\n" for _ in range(count)))
    kept = min(count, 100)
    assert (len(log.records), len(log.train_losses)) == (kept, min(2 * count, 100))
    assert len([defect for defect in log.parse_errors if defect.line is not None]) == kept
    left_out = {"train_loss": 2 * count - 100, "records past": count - 100, "unreadable": count - 100}
    said = [defect.message for defect in log.parse_errors if defect.line is None]
    expected = [(what, more) for what, more in left_out.items() if more > 0]
    for message, (what, more) in zip(said, expected, strict=True):
        assert message.startswith(f"{more} ") and what in message


def test_a_large_file_is_not_held_in_memory() -> None:
    line = f":::MLLOG {json.dumps(event('train_loss', 3.0, 1_790_000_000_000, {'samples_count': 16, 'lr': 1e-4}))}\n"

    class Endless(io.RawIOBase):
        """Sixteen megabytes of losses, made as they are read."""

        left = 16 << 20

        def read(self, size: int = -1) -> bytes:
            block = (line * (size // len(line))).encode() if self.left > 0 else b""
            self.left -= len(block)
            return block

    tracemalloc.start()
    log = parse(Endless(), "x.txt")  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert log.size > 15 << 20
    # Forty bytes a loss, and a few chunks of a megabyte with their lines.
    assert peak < 40 * len(log.train_losses) * 1.3 + (8 << 20)


def test_an_infinity_is_no_number() -> None:
    line = f":::MLLOG {json.dumps(event('train_loss', 1.5, 1_790_000_000_000, {'samples_count': 16, 'lr': 1e-4}))}"
    log = compliant_log()
    text = log.text().replace(lines_of(log)[log.index("train_loss", 3)], line.replace("1.5", "1e999"))
    found = judged(text.encode()).findings
    assert "train-loss-value" in fired(found, Severity.ERROR)
