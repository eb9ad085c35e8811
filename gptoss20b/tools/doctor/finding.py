"""Result of one check, and all results for people, as a table and a last line, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from rich.table import Table
from rich.text import Text


class Verdict(StrEnum):
    """Meaning of a finding for the run."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


_STYLES = {Verdict.PASS: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red", Verdict.SKIPPED: "dim"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the answer: the state of the node and, where the check does not pass, the expected state and a fix.

    `WARN` slows or spoils a run, `FAIL` ends or prevents it, `SKIPPED` does not apply here.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def judged(name: str, found: str, fix: str, *, fails: bool = False, warns: bool = False) -> Finding:
    """Return a finding that fails, warns or else passes. The fix is for the first two."""
    if fails:
        return failed(name, found, fix)
    return warned(name, found, fix) if warns else passed(name, found)


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


def overall_verdict(findings: Iterable[Finding]) -> Verdict:
    """Return `FAIL` if one finding fails, else `PASS`. People decide about warnings."""
    return Verdict.FAIL if any(finding.verdict is Verdict.FAIL for finding in findings) else Verdict.PASS


def as_document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the answer for programs: ``{"verdict": ..., "checks": [{"name", "verdict", "found", "fix"}]}``."""
    return {"verdict": overall_verdict(findings), "checks": [asdict(finding) for finding in findings]}


def as_table(findings: Sequence[Finding]) -> Table:
    """Return a table with one row per finding, and its fix below what was found."""
    table = Table("check", "verdict", "found", title="doctor")
    for finding in findings:
        # Text, because rich would take square brackets in a path for its markup.
        found = Text(finding.found)
        if finding.fix:
            found.append(f"\nfix: {finding.fix}", style="bold")
        table.add_row(Text(finding.name), Text(finding.verdict, style=_STYLES[finding.verdict]), found)
    return table


def summary_line(findings: Sequence[Finding]) -> str:
    """Return ``pass`` or the names of the failed checks, with the number of warnings."""
    failures = dict.fromkeys(finding.name for finding in findings if finding.verdict is Verdict.FAIL)
    warnings = sum(finding.verdict is Verdict.WARN for finding in findings)
    noted = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    return f"to fix: {', '.join(failures)}{noted}" if failures else f"pass{noted}"
