"""Waivers: findings that a person accepts, each with a reason and a last day. Read from a TOML file, ``--waive FILE``.

TOML because people write and review this file: it has dates and comments. Entries look like this::

    [[waiver]]
    rule = "clock-stop-late"
    path = "results/big/gpt_oss_20b/*"  # a glob, matched from the right; "*" is everything
    reason = "the file server was slow; the score includes it"
    who = "A. Reviewer"
    until = 2027-03-31
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields, replace
from datetime import date
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal

from .file_tree import printable
from .findings import Finding, Severity, Waived
from .log_files import InputError
from .rules import ALL_RULES


@dataclass(frozen=True, slots=True)
class Waiver:
    """One entry of the file.

    Attributes:
        path: glob for the file of a finding.
        until: last day on which the waiver applies.

    Raises:
        ValueError: there is no such rule, or a text is empty.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    rule: str
    path: str
    reason: str
    who: str
    until: date

    def __post_init__(self) -> None:
        if self.rule not in {rule.id for rule in ALL_RULES}:
            raise ValueError(f"no rule {printable(self.rule)!r}; `python -m compliance rules` lists them")
        if not PurePath(self.path).parts:
            raise ValueError('path is empty; expected a glob like "result_3.txt", or "*" for everything')
        for name, text in (("reason", self.reason), ("who", self.who)):
            if not text.strip():
                raise ValueError(f"{name} is empty; expected a text")

    def matches(self, finding: Finding) -> bool:
        """Return whether the waiver is for this finding. Only "*" matches a finding without a file."""
        return self.rule == finding.rule and (self.path == "*" or PurePath(finding.file or "").match(self.path))


@dataclass
class Waivers:
    """The waivers of one check.

    Attributes:
        file: for messages.
        today: waivers whose last day is before it do not apply.
        used: indices of the entries that accepted a finding.
    """

    file: str
    entries: tuple[Waiver, ...]
    today: date
    used: set[int] = field(default_factory=set)

    def waive(self, finding: Finding) -> Finding:
        """Return the finding as waived, if it is an error or a warning and a waiver accepts it."""
        if finding.severity not in (Severity.ERROR, Severity.WARNING):
            return finding
        for index, entry in enumerate(self.entries):
            if not self.has_expired(entry) and entry.matches(finding):
                self.used.add(index)
                waived = Waived(finding.severity, entry.who, entry.reason, entry.until.isoformat())
                return replace(finding, severity=Severity.WAIVED, waived=waived)
        return finding

    def has_expired(self, entry: Waiver) -> bool:
        """Return whether the last day of a waiver is over."""
        return entry.until < self.today


def read_waivers(path: Path | None, today: date | None = None) -> Waivers:
    """Read a file of waivers; None is no waiver.

    Raises:
        InputError: the file cannot be read, or an entry is wrong. The message names both.
    """
    today = today or date.today()
    if path is None:
        return Waivers("", (), today)
    from pydantic import TypeAdapter, ValidationError

    name = printable(path)
    content = TypeAdapter(dict[Literal["waiver"], tuple[Waiver, ...]])
    try:
        entries = content.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{_place(each['loc'])}: {each['msg']}" for each in error.errors())
        expected = ", ".join(field.name for field in fields(Waiver))
        raise InputError(f"{name}: {wrong}; expected [[waiver]] with {expected}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise InputError(f"{name}: not a TOML file: {printable(str(error))}") from error
    return Waivers(name, entries.get("waiver", ()), today)


def _place(location: tuple[int | str, ...]) -> str:
    """Return the place of an error; entries count from 1.

    >>> _place(("waiver", 1, "until"))
    'waiver 2 until'
    """
    return " ".join(str(part + 1) if isinstance(part, int) else printable(part) for part in location)
