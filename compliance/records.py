"""What a log holds, typed: the output of `parse`, the input of the rules."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One `:::MLLOG` record.

    Attributes:
        line: line of the file, from 1.
        rank: rank that a launcher prefixed to the line (`3: :::MLLOG ...`), None without one.
        time_ms: the record's own time, in milliseconds since 1970 as the log claims.
        event: "POINT_IN_TIME", "INTERVAL_START" or "INTERVAL_END"; "" if the record has none.
        key: the record's key.
        value: any JSON value.
        metadata: the record's metadata.
    """

    line: int
    rank: int | None
    time_ms: float
    event: str
    key: str
    value: Any
    metadata: dict[str, Any]

    @property
    def samples(self) -> Any:
        """`samples_count` of the metadata, whatever its type; None if it has none."""
        return self.metadata.get("samples_count")


@dataclass(slots=True)
class TrainLosses:
    """The `train_loss` records as columns, because a log has ten thousand of them and more.

    A field that a record lacks, or that is not a number, is NaN.
    """

    lines: array[int] = field(default_factory=lambda: array("q"))
    times_ms: array[float] = field(default_factory=lambda: array("d"))
    samples: array[float] = field(default_factory=lambda: array("d"))
    losses: array[float] = field(default_factory=lambda: array("d"))
    rates: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True, slots=True)
class ParseError:
    """Something that could not be read.

    Attributes:
        rule: id of the rule that it breaks (`compliance.rules.files`).
        line: line of the file, None if it concerns the whole file.
        message: what is wrong and what was expected.
        got: the beginning of what was found.
    """

    rule: str
    line: int | None
    message: str
    got: str | None = None


@dataclass(slots=True)
class Log:
    """One parsed file.

    Attributes:
        name: the file as the user named it.
        records: every record but `train_loss`, in file order.
        train_losses: the `train_loss` records, in file order.
        defects: what could not be read, in file order.
        size: bytes read.
        lines: lines read.
    """

    name: str
    records: list[Record] = field(default_factory=list)
    train_losses: TrainLosses = field(default_factory=TrainLosses)
    parse_errors: list[ParseError] = field(default_factory=list)
    size: int = 0
    lines: int = 0
