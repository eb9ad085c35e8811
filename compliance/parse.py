"""Bytes to typed records, in one streaming pass and bounded memory. Whatever the bytes, no exception.

What a log may look like: records with a rank's prefix (`0: :::MLLOG {...}`), several on one line, the same line from
several ranks, any other text around, CRLF, bytes that are not UTF-8, lines of any length, hundreds of megabytes. What
cannot be read becomes a `ParseError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import repeat
from typing import Any, BinaryIO

from .benchmark import JUDGED_KEYS
from .fast_path import LineTemplate, infer
from .records import Log, ParseError, Record

_TOKEN = b":::MLLOG"
_CHUNK = 1 << 20
# No writer of logs makes longer ones; a file without line ends must not fill the memory.
_LONGEST_LINE = 1 << 20
# A run has at most max_steps (1.2 million) losses. 512 ranks that all log write fewer than 100,000 other records that
# rules read; of what no rule reads by its key, a few show where it lies in time.
_MOST_LOSSES = 1_500_000
_MOST_JUDGED = 100_000
_MOST_OTHERS = 10_000
_MOST_DEFECTS = 1_000
# A log writes its losses in one form; one that changes it at every line is read by the JSON decoder.
_MOST_SHAPES = 16
_RANK = re.compile(rb"(?:^|[\s\[:])(?:rank)?(\d{1,6})\]?:\s*$")
_ABSENT = object()
_DECODER = json.JSONDecoder()
# The year 2286; times past it are no milliseconds.
_LATEST = 1e13
_WIDE = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def parse(stream: BinaryIO, name: str) -> Log:
    """Every record of a log.

    Args:
        stream: the file's bytes, decompressed.
        name: the file as messages name it.

    Raises:
        OSError, EOFError, zlib.error: from reading the stream, which is the caller's.
    """
    log = Log(name)
    reader = _Reader(log)
    head = b""
    for lines in _lines(stream, log):
        if log.lines == 0 and (encoding := _wide_encoding(lines)):
            message = f"the file is {encoding}; a log is ASCII or UTF-8. Convert it, e.g. with iconv -t UTF-8"
            log.parse_errors.append(ParseError("file-encoding", None, message))
            return log
        head = head or lines[0]
        reader.read(lines)
    if log.size == 0:
        log.parse_errors.append(ParseError("file-empty", None, "the file is empty; a log holds :::MLLOG records"))
    elif not log.records and not log.train_losses and not log.parse_errors:
        message = "no :::MLLOG record in the file; is this the output of a run?"
        log.parse_errors.append(ParseError("file-empty", None, message, _quote(head)))
    reader.finish()
    return log


def _lines(stream: BinaryIO, log: Log) -> Iterator[list[bytes]]:
    """The lines of each chunk, without their ends. Too long a line is cut, and named."""
    rest = b""
    number = 1  # of the first line in `rest`
    while chunk := stream.read(_CHUNK):
        log.size += len(chunk)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if len(rest) > _LONGEST_LINE:
            # Its end is still to come, and becomes a line of its own: what is cut is searched for records nevertheless.
            message = f"a line longer than {_LONGEST_LINE:,} bytes; a record across the cut is lost"
            log.parse_errors.append(ParseError("record-corrupt", number + len(lines), message, _quote(rest)))
            lines.append(rest)
            rest = b""
        number += len(lines)
        if lines:
            yield lines
    if rest:
        yield [rest]


class _Reader:
    """Sorts lines into records, losses and defects."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._room = {"losses": _MOST_LOSSES, "judged": _MOST_JUDGED, "others": _MOST_OTHERS, "defects": _MOST_DEFECTS}
        self._shape = LineTemplate(re.compile(rb"(?!)"), ())  # matches nothing
        self._lessons = _MOST_SHAPES

    def read(self, lines: list[bytes]) -> None:
        """Reads the next lines of the file."""
        match, token = self._shape.pattern.fullmatch, _TOKEN
        rows: list[tuple[bytes, ...]] = []
        numbers: list[int] = []
        for number, line in enumerate(lines, self._log.lines + 1):
            found = match(line)
            if found is not None:
                rows.append(found.groups())
                numbers.append(number)
            elif token in line:
                self._add_losses(rows, numbers)
                rows, numbers = [], []
                self._decode(line, number)
                match = self._shape.pattern.fullmatch
        self._add_losses(rows, numbers)
        self._log.lines += len(lines)

    def _add_losses(self, rows: list[tuple[bytes, ...]], numbers: list[int]) -> None:
        """Adds losses of the present shape to the columns, all at once, which takes half the time of one by one."""
        room = max(self._room["losses"], 0)
        self._room["losses"] -= len(rows)
        if not rows or not room:
            return
        groups = list(zip(*rows[:room], strict=True))
        losses = self._log.train_losses
        losses.lines.extend(numbers[:room])
        columns = (losses.times_ms, losses.losses, losses.samples, losses.rates)
        for column, place in zip(columns, self._shape.places, strict=True):
            absent = repeat(math.nan, len(rows[:room]))
            column.extend(absent if place is None else map(float, groups[place]))

    def finish(self) -> None:
        """Says what was left out."""
        limits = {
            "losses": f"train_loss records past the first {_MOST_LOSSES:,}",
            "judged": f"records past the first {_MOST_JUDGED:,}",
            "defects": f"unreadable records past the first {_MOST_DEFECTS:,}",
        }
        for kind, what in limits.items():
            if self._room[kind] < 0:
                message = f"{-self._room[kind]:,} {what} were not judged; the log of one run is shorter"
                self._log.parse_errors.append(ParseError("record-corrupt", None, message))

    def _take(self, kind: str) -> bool:
        """Whether there is room for one more of a kind."""
        self._room[kind] -= 1
        return self._room[kind] >= 0

    def _decode(self, line: bytes, number: int) -> None:
        """The records of one line that is not a plain loss."""
        before, *pieces = line.split(_TOKEN)
        rank = _RANK.search(before)
        for piece in pieces:
            if piece and piece[:1] not in b" \t\r{":
                continue  # other text that mentions the token
            try:
                record = _record(piece.decode("utf-8", errors="replace"), number, int(rank[1]) if rank else None)
            except (ValueError, RecursionError) as error:
                if self._take("defects"):
                    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                    message = f"unreadable record ({reason}); is the line cut short or overwritten?"
                    self._log.parse_errors.append(ParseError("record-corrupt", number, message, _quote(piece)))
                continue
            self._keep(record)
            if record.key == "train_loss" and self._lessons and len(pieces) == 1:
                self._lessons -= 1
                self._shape = infer(piece) or self._shape

    def _keep(self, record: Record) -> None:
        if record.key != "train_loss":
            if self._take("judged" if record.key in JUDGED_KEYS else "others"):
                self._log.records.append(record)
        elif self._take("losses"):
            losses = self._log.train_losses
            losses.lines.append(record.line)
            losses.times_ms.append(record.time_ms)
            losses.losses.append(_column(record.value))
            losses.samples.append(_column(record.metadata.get("samples_count", _ABSENT)))
            losses.rates.append(_column(record.metadata.get("lr", _ABSENT)))


def _column(value: Any) -> float:
    """A number as a column holds it: absent is NaN, what is no finite number is infinite."""
    if value is _ABSENT:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.inf
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    return number if math.isfinite(number) else math.inf


def _record(text: str, line: int, rank: int | None) -> Record:
    """One record from the text after the token; whatever follows its JSON object is other text.

    Raises:
        ValueError: it is no record.
        RecursionError: it is nested more deeply than any record.
    """
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
    if isinstance(time_ms, bool) or not isinstance(time_ms, int | float) or not 0 < time_ms < _LATEST:
        raise ValueError("time_ms is not a time in milliseconds")
    if not isinstance(metadata, dict):
        raise ValueError("metadata is not an object")
    event = content.get("event_type")
    return Record(line, rank, float(time_ms), event if isinstance(event, str) else "", key, content["value"], metadata)


def _wide_encoding(lines: list[bytes]) -> str | None:
    """The name of an encoding with more than one byte per character; None for all others, and where records show."""
    if any(_TOKEN in line for line in lines):
        return None
    head = lines[0]
    named = next((name for mark, name in _WIDE.items() if head.startswith(mark)), None)
    zeros = head[:200].count(b"\0")
    return named or ("UTF-16 or UTF-32" if zeros > len(head[:200]) // 3 else None)


def _quote(piece: bytes) -> str:
    """The beginning of what could not be read."""
    return piece[:80].decode("utf-8", errors="backslashreplace").strip()
