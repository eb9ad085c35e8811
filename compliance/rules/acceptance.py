"""Rules on the file of waivers itself (`compliance.waivers`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..findings import Severity
from .rule import OWN, Problem, rule

if TYPE_CHECKING:
    from ..waivers import Waivers


@rule("waiver-expired", Severity.WARNING, OWN)
def waiver_expired(waivers: Waivers) -> Iterator[Problem]:
    """Warn about a waiver whose last day is over: the findings that it accepted count again."""
    for number, entry in enumerate(waivers.entries, 1):
        if waivers.has_expired(entry):
            message = f"waiver {number} of {entry.rule} by {entry.who} has expired; fix the cause, or waive it anew"
            yield Problem(message, expected=f"until {waivers.today} or later", got=str(entry.until), file=waivers.file)


@rule("waiver-unused", Severity.INFO, OWN)
def waiver_unused(waivers: Waivers) -> Iterator[Problem]:
    """Report a waiver that accepts no finding, or only those of an earlier entry."""
    for index, entry in enumerate(waivers.entries):
        if index not in waivers.used and not waivers.has_expired(entry):
            message = f"waiver {index + 1} of {entry.rule} in {entry.path} accepts nothing; remove it"
            yield Problem(message, file=waivers.file)
