"""The findings for people, as a table and a last line, and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from .finding import Finding, Verdict

_STYLES = {Verdict.PASS: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red", Verdict.SKIPPED: "dim"}


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
