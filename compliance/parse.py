"""Bytes to typed records in one streaming pass with bounded memory. No content raises an exception.

A log may hold: records with a rank prefix (`0: :::MLLOG {...}`), several records on one line, the same line from
several ranks, any other text between them, CRLF, bytes that are not UTF-8, lines of any length, hundreds of megabytes.
Unreadable parts become a `ParseError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from .benchmark import JUDGED_KEYS
from .fast_path import LineTemplate, infer
from .json_values import finite_float
from .records import Log, ParseError, Record

_TOKEN = b":::MLLOG"
_CHUNK = 1 << 20
# Loggers write shorter lines. The limit keeps a file without line ends from filling the memory.
_MAX_LINE = 1 << 20
# A run has at most max_steps (1.2 million) losses. 512 ranks that all log write fewer than 100,000 records with keys
# that rules read. Records with other keys count only for their times; a few of them are enough.
_MAX_LOSSES = 1_500_000
_MAX_JUDGED = 100_000
_MAX_OTHERS = 10_000
_MAX_ERRORS = 1_000
# A log writes its losses in one form. A log that changes its form at every line is read by the JSON decoder.
_MAX_TEMPLATES = 16
_RANK = re.compile(rb"(?:^|[\s\[:])(?:rank)?(\d{1,6})\]?:\s*$")
_ABSENT = object()
_DECODER = json.JSONDecoder()
# The year 2286: larger times are not in milliseconds.
_MAX_TIME_MS = 1e13
# UTF-32 before UTF-16: its little-endian byte order mark begins with that of UTF-16.
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def parse(stream: BinaryIO, name: str) -> Log:
    """Return every record of a log from its decompressed bytes. Raise what reading the stream raises."""
    log = Log(name)
    reader = _Reader(log)
    first_line = b""
    for lines in _lines(stream, log):
        if log.lines == 0 and (encoding := _wide_encoding(lines)):
            message = f"the file is {encoding}; a log is ASCII or UTF-8. Convert it, e.g. with iconv -t UTF-8"
            log.parse_errors.append(ParseError("file-encoding", None, message))
            return log
        first_line = first_line or lines[0]
        reader.read(lines)
    if log.size == 0:
        log.parse_errors.append(ParseError("file-empty", None, "the file is empty; a log holds :::MLLOG records"))
    elif not log.records and not log.train_losses and not log.parse_errors:
        message = "no :::MLLOG record in the file; is this the output of a run?"
        log.parse_errors.append(ParseError("file-empty", None, message, _quote(first_line)))
    reader.report_dropped()
    return log


def _lines(stream: BinaryIO, log: Log) -> Iterator[list[bytes]]:
    """Yield the lines of each chunk without line ends. Cut and report lines that are too long."""
    rest = b""
    number = 1  # line number of `rest`
    while chunk := stream.read(_CHUNK):
        log.size += len(chunk)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if len(rest) > _MAX_LINE:
            # The cut part is still searched for records. The remainder of the line becomes a line, too.
            message = f"a line longer than {_MAX_LINE:,} bytes; a record across the cut is lost"
            log.parse_errors.append(ParseError("record-corrupt", number + len(lines), message, _quote(rest)))
            lines.append(rest)
            rest = b""
        number += len(lines)
        if lines:
            yield lines
    if rest:
        yield [rest]


class _Reader:
    """Sorts lines into records, losses and parse errors, up to a limit for each."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._room = {"losses": _MAX_LOSSES, "judged": _MAX_JUDGED, "others": _MAX_OTHERS, "errors": _MAX_ERRORS}
        self._template = LineTemplate(re.compile(rb"(?!)"), ())  # matches nothing
        self._templates_left = _MAX_TEMPLATES

    def read(self, lines: list[bytes]) -> None:
        """Read the next lines of the file."""
        match = self._template.pattern.fullmatch
        rows: list[tuple[bytes, ...]] = []
        numbers: list[int] = []
        for number, line in enumerate(lines, self._log.lines + 1):
            matched = match(line)
            if matched is not None:
                rows.append(matched.groups())
                numbers.append(number)
            elif _TOKEN in line:
                # Losses before this line go first: the columns are in file order.
                self._add_losses(rows, numbers)
                rows, numbers = [], []
                self._decode(line, number)
                match = self._template.pattern.fullmatch
        self._add_losses(rows, numbers)
        self._log.lines += len(lines)

    def _add_losses(self, rows: list[tuple[bytes, ...]], numbers: list[int]) -> None:
        """Add the losses matched by the template to the columns in bulk: half the time of one by one."""
        room = max(self._room["losses"], 0)
        self._room["losses"] -= len(rows)
        if not rows or not room:
            return
        groups = list(zip(*rows[:room], strict=True))
        losses = self._log.train_losses
        losses.lines.extend(numbers[:room])
        columns = (losses.times_ms, losses.losses, losses.samples, losses.learning_rates)
        for column, group in zip(columns, self._template.groups, strict=True):
            values = [math.nan] * len(rows[:room]) if group is None else list(map(float, groups[group]))
            if -math.inf in values:  # an overflow, for which `_column_value` gives the positive
                values = [math.inf if value == -math.inf else value for value in values]
            column.extend(values)

    def report_dropped(self) -> None:
        """Add a parse error for each kind of record past its limit."""
        for kind, noun, limit in (
            ("losses", "train_loss records", _MAX_LOSSES),
            ("judged", "records", _MAX_JUDGED),
            ("errors", "unreadable records", _MAX_ERRORS),
        ):
            if self._room[kind] < 0:
                dropped = f"{-self._room[kind]:,} {noun} past the first {limit:,}"
                message = f"{dropped} were not judged; the log of one run is shorter"
                self._log.parse_errors.append(ParseError("record-corrupt", None, message))

    def _has_room(self, kind: str) -> bool:
        """Count one more of a kind. Return False past its limit."""
        self._room[kind] -= 1
        return self._room[kind] >= 0

    def _decode(self, line: bytes, number: int) -> None:
        """Add the records of one line that the template does not match."""
        before, *pieces = line.split(_TOKEN)
        rank = _RANK.search(before)
        for piece in pieces:
            if piece and piece[:1] not in b" \t\r{":
                continue  # other text that mentions the token
            try:
                record = _record(piece.decode("utf-8", errors="replace"), number, int(rank[1]) if rank else None)
            except (ValueError, RecursionError) as error:
                if self._has_room("errors"):
                    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                    message = f"unreadable record ({reason}); is the line cut short or overwritten?"
                    self._log.parse_errors.append(ParseError("record-corrupt", number, message, _quote(piece)))
                continue
            self._add(record)
            if record.key == "train_loss" and self._templates_left and len(pieces) == 1:
                self._templates_left -= 1
                self._template = infer(piece) or self._template

    def _add(self, record: Record) -> None:
        if record.key != "train_loss":
            if self._has_room("judged" if record.key in JUDGED_KEYS else "others"):
                self._log.records.append(record)
        elif self._has_room("losses"):
            losses = self._log.train_losses
            losses.lines.append(record.line)
            losses.times_ms.append(record.time_ms)
            losses.losses.append(_column_value(record.value))
            losses.samples.append(_column_value(record.metadata.get("samples_count", _ABSENT)))
            losses.learning_rates.append(_column_value(record.metadata.get("lr", _ABSENT)))


def _column_value(value: Any) -> float:
    """Return a number as stored in a column: NaN if absent, infinite if not a finite number."""
    if value is _ABSENT:
        return math.nan
    number = finite_float(value)
    return math.inf if number is None else number


def _record(text: str, line: int, rank: int | None) -> Record:
    """Return the record at the beginning of the text after the token. Raise ValueError or RecursionError."""
    start = len(text) - len(text.lstrip(" \t"))
    content, _ = _DECODER.raw_decode(text, start)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    missing = [name for name in ("key", "value", "time_ms", "metadata") if name not in content]
    if missing:
        raise ValueError(f"without {', '.join(missing)}")
    key, time_ms, metadata = content["key"], content["time_ms"], content["metadata"]
    if not isinstance(key, str) or not key:
        raise ValueError("key is not a name")
    if isinstance(time_ms, bool) or not isinstance(time_ms, int | float) or not 0 < time_ms < _MAX_TIME_MS:
        raise ValueError("time_ms is not a time in milliseconds")
    if not isinstance(metadata, dict):
        raise ValueError("metadata is not an object")
    event = content.get("event_type")
    return Record(line, rank, float(time_ms), event if isinstance(event, str) else "", key, content["value"], metadata)


def _wide_encoding(lines: list[bytes]) -> str | None:
    """Return the name of a multi-byte encoding; None for others, and if the lines hold records."""
    if any(_TOKEN in line for line in lines):
        return None
    head = lines[0]
    named = next((name for mark, name in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    # ASCII text in UTF-16 is half zeros, in UTF-32 three quarters.
    zeros = head[:200].count(b"\0")
    return named or ("UTF-16 or UTF-32" if zeros > len(head[:200]) // 3 else None)


def _quote(piece: bytes) -> str:
    """Return the beginning of an unreadable part."""
    return piece[:80].decode("utf-8", errors="backslashreplace").strip()
