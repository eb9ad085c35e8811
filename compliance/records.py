"""Typed contents of one log: the output of `parse` and the input of the rules."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One `:::MLLOG` record.

    Attributes:
        line: line number, from 1.
        rank: rank from the launcher's prefix (`3: :::MLLOG ...`), None without a prefix.
        time_ms: logged time in milliseconds since 1970.
        event: "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END", or "" if not logged.
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
        """Return the metadata's `samples_count` of whatever type, None if not logged."""
        return self.metadata.get("samples_count")


def _float_column() -> array[float]:
    return array("d")


@dataclass(slots=True)
class TrainLosses:
    """All `train_loss` records of a log as columns: a log holds ten thousand and more.

    A missing field is NaN. A field that is not a finite number is infinite.
    """

    lines: array[int] = field(default_factory=lambda: array("q"))
    times_ms: array[float] = field(default_factory=_float_column)
    samples: array[float] = field(default_factory=_float_column)
    losses: array[float] = field(default_factory=_float_column)
    learning_rates: array[float] = field(default_factory=_float_column)

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True, slots=True)
class ParseError:
    """Part of a file that could not be read.

    Attributes:
        rule: id of the broken rule (`compliance.rules.files`).
        line: line number, None for the whole file.
        message: error and expected content.
        got: first bytes of the unreadable content.
    """

    rule: str
    line: int | None
    message: str
    got: str | None = None


@dataclass(slots=True)
class Log:
    """One parsed file.

    Attributes:
        name: file name for messages.
        records: all records except `train_loss`, in file order.
        train_losses: the `train_loss` records, in file order.
        parse_errors: unreadable parts, in file order.
        size: bytes read.
        lines: lines read.
    """

    name: str
    records: list[Record] = field(default_factory=list)
    train_losses: TrainLosses = field(default_factory=TrainLosses)
    parse_errors: list[ParseError] = field(default_factory=list)
    size: int = 0
    lines: int = 0
