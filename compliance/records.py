"""Typed contents of one log: the output of `parse` and the input of the rules."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One `:::MLLOG` record. Lines count from 1.

    Attributes:
        rank: rank from the launcher's prefix (`3: :::MLLOG ...`), None without a prefix.
        time_ms: logged time in milliseconds since 1970.
        event: "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END", or "" if not logged.
        value: any JSON value.
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
        rule: id of the rule that reports it.
        line: line number, None for the whole file.
        got: beginning of the unreadable part.
    """

    rule: str
    line: int | None
    message: str
    got: str | None = None


@dataclass(slots=True)
class Log:
    """One parsed file: its `train_loss` records, all other records, and its unreadable parts, each in file order.

    ``size`` and ``lines`` count the bytes and lines read. ``name`` is for messages.
    """

    name: str
    records: list[Record] = field(default_factory=list)
    train_losses: TrainLosses = field(default_factory=TrainLosses)
    parse_errors: list[ParseError] = field(default_factory=list)
    size: int = 0
    lines: int = 0
