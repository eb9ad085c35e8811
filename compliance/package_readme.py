"""README of a submission tree: facts of the report, and TODO where only the submitter knows the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .file_tree import printable
from .findings import Finding, Report, RunSummary, Severity
from .submission import SystemDescription

_TEMPLATE = Path(__file__).parent / "templates" / "package_readme.md.j2"


def package_readme(
    report: Report, system: SystemDescription, name: str, logs: dict[str, str], code: Sequence[str]
) -> str:
    """Return the README in Markdown. Every claim is from the report.

    ``name`` is the system's in the tree, ``logs`` the names in the tree by those in the report, ``code`` names files.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(finalize=_cell, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["number"] = lambda value, form: None if value is None else form.format(value)
    summaries = {run.file: run for run in report.sets[0].runs}
    runs = {name_in_tree: summaries[file] for file, name_in_tree in logs.items()}
    script = next((file for file in sorted(code, key=len) if file.rpartition("/")[2] == "run_and_time.sh"), None)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        failing=failing_findings(report),
        system=system,
        name=name,
        score=report.sets[0].score,
        runs=runs,
        command=Markup("TODO: the command" if script is None else f"`{printable(script)}`"),
        commits=_logged(runs.values(), "git_commit"),
        settings=_logged(runs.values(), "config_filename"),
        findings=_first_findings(report.findings, logs),
    )


def _logged(runs: Iterable[RunSummary], key: str) -> list[str]:
    """Return the distinct known values of a disclosed setting."""
    values = dict.fromkeys(run.disclosed.get(key, "unknown") for run in runs)
    return [value for value in values if value != "unknown"]


def failing_findings(report: Report) -> list[Finding]:
    """Return the findings that make a report fail: errors, or warnings if there are none (--strict)."""
    errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    return errors or [finding for finding in report.findings if finding.severity is Severity.WARNING]


def _first_findings(findings: Sequence[Finding], logs: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return (severity, rule, message) of the first finding of each rule, with the names of logs in the tree."""
    first: dict[str, tuple[str, str, str]] = {}
    for finding in findings:
        message = finding.message if finding.waived is None else f"{finding.message} ({finding.waived})"
        for file, name_in_tree in logs.items():
            message = message.replace(file, name_in_tree)
        first.setdefault(finding.rule, (finding.severity, finding.rule, message))
    return list(first.values())


def _cell(value: object) -> object:
    """Return a value as one line of escaped Markdown; "TODO" if it is unknown."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    if not isinstance(value, str | int | float):
        return "TODO"
    return re.sub(r"([\\`*\[\]<>|$])", r"\\\1", printable(str(value))[:300]) or "TODO"
