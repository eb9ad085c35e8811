"""The answer for people: a table with a row for each check, and what to fix in the last line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from .finding import Finding, Verdict

_STYLES = {Verdict.PASS: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red", Verdict.SKIPPED: "dim"}


def as_table(findings: Sequence[Finding]) -> Table:
    """One row for each finding; what to do stands under what was found."""
    table = Table("check", "verdict", "found", title="doctor")
    for finding in findings:
        found = Text(finding.found)  # as it is: a path may hold what rich takes for its own marks
        if finding.fix:
            found.append(f"\nfix: {finding.fix}", style="bold")
        table.add_row(Text(finding.name), Text(finding.verdict, style=_STYLES[finding.verdict]), found)
    return table


def last_line(findings: Sequence[Finding]) -> str:
    """`pass`, with the number of warnings, or the checks to fix."""
    bad = dict.fromkeys(finding.name for finding in findings if finding.verdict is Verdict.FAIL)
    warnings = sum(finding.verdict is Verdict.WARN for finding in findings)
    noted = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    return f"to fix: {', '.join(bad)}{noted}" if bad else f"pass{noted}"
