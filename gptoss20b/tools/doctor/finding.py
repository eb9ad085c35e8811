"""What one check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What a finding means for the run."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the answer.

    Attributes:
        name: the check.
        verdict: `WARN` slows or spoils a run, `FAIL` ends or prevents it; `SKIPPED` does not apply here.
        found: what is there and, where it is not as it should be, what was expected.
        fix: what to do; empty unless the verdict is `WARN` or `FAIL`.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def passed(name: str, found: str) -> Finding:
    """As it should be."""
    return Finding(name, Verdict.PASS, found)


def warned(name: str, found: str, fix: str) -> Finding:
    """The run can go on, slower or with something to know."""
    return Finding(name, Verdict.WARN, found, fix)


def failed(name: str, found: str, fix: str) -> Finding:
    """The run would fail, or not count."""
    return Finding(name, Verdict.FAIL, found, fix)


def skipped(name: str, why: str) -> Finding:
    """Nothing to check here."""
    return Finding(name, Verdict.SKIPPED, why)


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """`FAIL` if one finding does, else `PASS`: warnings are for people to weigh."""
    return Verdict.FAIL if any(finding.verdict is Verdict.FAIL for finding in findings) else Verdict.PASS


def as_document(findings: Iterable[Finding]) -> dict[str, Any]:
    """The answer for machines: `{"verdict": ..., "checks": [{"name", "verdict", "found", "fix"}]}`."""
    listed = list(findings)
    return {"verdict": verdict_of(listed), "checks": [asdict(finding) for finding in listed]}


def gib(size: float) -> str:
    """Bytes as GiB.

    >>> gib(3 * 2**29)
    '1.5 GiB'
    """
    return f"{size / 2**30:,.1f} GiB"
