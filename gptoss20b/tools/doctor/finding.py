"""Result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Meaning of a finding for the run."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the answer.

    Attributes:
        name: name of the check.
        verdict: `WARN` slows or spoils a run, `FAIL` ends or prevents it, `SKIPPED` does not apply here.
        found: state of the node and, where the check does not pass, the expected state.
        fix: advice; empty unless the verdict is `WARN` or `FAIL`.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def passed(name: str, found: str) -> Finding:
    """Return a finding of the expected state."""
    return Finding(name, Verdict.PASS, found)


def warned(name: str, found: str, fix: str) -> Finding:
    """Return a finding with which the run is slower, or a person should know something."""
    return Finding(name, Verdict.WARN, found, fix)


def failed(name: str, found: str, fix: str) -> Finding:
    """Return a finding with which the run would fail or not count."""
    return Finding(name, Verdict.FAIL, found, fix)


def skipped(name: str, why: str) -> Finding:
    """Return a finding of a check that does not apply here."""
    return Finding(name, Verdict.SKIPPED, why)


def gib(size: float) -> str:
    """Format bytes as GiB.

    >>> gib(3 * 2**29)
    '1.5 GiB'
    """
    return f"{size / 2**30:,.1f} GiB"
