"""The report as one self-contained document, HTML or Markdown: nothing in it is loaded from anywhere.

The HTML file embeds its pictures as SVG in data URIs and forbids every other load by a content security policy. The
Markdown file embeds them as PNG, because readers built on markdown-it refuse SVG in data URIs; VS Code, JupyterLab and
pandoc show them, GitHub does not show data URIs at all. Every number of a picture is in a table as well.

Text of logs is hostile until escaped: both templates escape every value that they print, so that `<script>`, `|` or
`[` stays text, and what no screen shows (control characters, lone surrogates, direction marks) becomes visible.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import benchmark
from ..findings import (
    Finding,
    Report,
    Score,
    SetResult,
    Severity,
    Status,
)
from . import figures, panels, tables
from .tables import NOTHING, Table, number, places

PICTURE_KINDS: dict[str, Literal["svg", "png"]] = {"html": "svg", "md": "png"}
SEVERITIES = {Severity.ERROR: "Errors", Severity.WARNING: "Warnings", Severity.INFO: "Notes"}
PICTURES: tuple[tuple[figures.Draw, str, str], ...] = (
    (
        figures.losses,
        "Evaluation loss",
        "Dashed: the target, which the first evaluation at or below it reaches. The right panel enlarges what happens "
        f"there; losses above {panels.MOST_LOSS:g} are off the left one.",
    ),
    (
        figures.samples,
        "Samples to target and the reference",
        "Each reference convergence point (RCP) runs from the smallest accepted mean (bar) to its own mean (dot). The "
        "olympic mean of the set, blue, must not lie left of the bar; the official package checker decides by the "
        "pruned test, whose minimum is dashed.",
    ),
    (
        figures.rates,
        "Learning rate",
        "Above: logged rates over those that the logged schedule gives for the same steps. Below: their difference "
        'relative to the larger of the two, on a logarithmic scale; "equal" is no difference at all.',
    ),
    (
        figures.timeline,
        "Timeline",
        "One bar per run in start order. The number at its end is the minutes from run_start to run_stop.",
    ),
    (
        figures.minutes,
        "Minutes per run",
        "Hollow marks do not count towards the olympic mean.",
    ),
)


def report_file(report: Report, kind: Literal["html", "md"], generated: str | None = None) -> str:
    """The report as one file's text; the same text for the same report.

    Args:
        report: what a check found.
        kind: "html" or "md".
        generated: date and time to print, none by default.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=_visible if kind == "html" else _markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    findings = {severity: _by_rule(report.findings, severity) for severity in Severity}
    return environment.get_template(f"report.{kind}.j2").render(
        benchmark=benchmark.NAME,
        verdict=report.verdict,
        summary=_summary(report),
        basis=_basis(report, generated),
        sets=[_set(result, report, PICTURE_KINDS[kind]) for result in report.sets],
        unproven=findings.pop(Severity.UNVERIFIABLE),
        findings=[(SEVERITIES[severity], rules) for severity, rules in findings.items() if rules],
        official=tables.official_tables(report.official) if report.official else None,
    )


def _visible(value: object) -> object:
    """A value as the HTML template prints it, before escaping: characters without a shape as their escapes."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)


def _markdown(value: object) -> object:
    """A value as the Markdown template prints it: nothing in it means anything to a reader of Markdown or HTML."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    # An underscore between letters is no mark, and file names are full of them.
    marked = re.sub(r"([\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", str(_visible(value)))
    return Markup(html.escape(marked, quote=False))


def _summary(report: Report) -> str:
    found = Counter(finding.severity for finding in report.findings)
    return ", ".join(
        (
            panels.count(found[Severity.ERROR], "error"),
            panels.count(found[Severity.WARNING], "warning"),
            panels.count(found[Severity.INFO], "note"),
            panels.count(found[Severity.UNVERIFIABLE], "point") + " that no log can prove",
        )
    )


def _basis(report: Report, generated: str | None) -> list[tuple[str, str]]:
    """What the verdict rests on, as terms and their values."""
    chosen = {name.replace("_", "-"): value for name, value in sorted(report.options.items()) if value is not None}
    shown = {name: ("no", "yes")[value] if isinstance(value, bool) else value for name, value in chosen.items()}
    official = report.official
    divergences = f", {panels.count(len(official.divergences), 'divergence')} from ours" if official else ""
    basis = [
        ("Command", report.command),
        ("Ruleset", report.ruleset),
        ("Runs", number(sum(len(result.runs) for result in report.sets))),
        ("Official tools", f"{official.verdict}{divergences}" if official else "not run"),
        ("Options", ", ".join(f"{name} {value}" for name, value in shown.items()) or NOTHING),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(report.tool.items())) or NOTHING),
    ]
    return basis + ([("Generated", generated)] if generated else [])


def _by_rule(findings: Iterable[Finding], severity: Severity) -> list[tuple[str, str, int, Table]]:
    """Findings of one severity as (rule, citation, how many, table), in the order they come; equal ones in one row."""
    rules: dict[tuple[str, str], dict[tuple[str, str, str], list[str]]] = {}
    for finding in findings:
        if finding.severity is severity:
            line = "" if finding.line is None else f":{finding.line}"
            place = ("whole set" if finding.file is None else finding.file) + line
            said = (finding.message, finding.expected or NOTHING, finding.got or NOTHING)
            rules.setdefault((finding.rule, finding.citation), {}).setdefault(said, []).append(place)
    columns = ("Where", "What", "Expected", "Got")
    return [
        (rule, cited, sum(map(len, rows.values())), Table(columns, [(places(at), *said) for said, at in rows.items()]))
        for (rule, cited), rows in rules.items()
    ]


def _set(result: SetResult, report: Report, kind: Literal["svg", "png"]) -> dict[str, Any]:
    """Everything that the templates say of one set."""
    result = replace(result, runs=tuple(figures.start_order(result.runs)))
    drawn = [(title, caption, figures.picture(draw, result, kind)) for draw, title, caption in PICTURES]
    shared, runs = tables.runs_table(result.runs)
    return {
        "name": result.name,
        "headline": _headline(result.score),
        "reasons": _why_no_score(result, int(report.options.get("runs", benchmark.RUNS))),
        "score": tables.score_terms(result),
        "shared": shared,
        "runs": runs,
        "phases": tables.phases_table(result.runs),
        "evaluations": tables.evaluations_table(result.runs),
        "pictures": [(title, caption, *shown) for title, caption, shown in drawn if shown],
        "missing": [title for title, _, shown in drawn if not shown],
        "variance": tables.variance_table(result.variance),
        "definition": result.variance.definition if result.variance else None,
        "rcp": tables.rcp_table(result.rcp),
    }


def _headline(score: Score | None) -> str:
    scored = score is not None and score.valid and score.olympic_minutes is not None
    return f"{number(score.olympic_minutes, 2)} minutes" if score and scored else "No score"


def _why_no_score(result: SetResult, needed: int) -> list[str]:
    """What keeps the set from a score, as far as its runs and its RCP test tell; nothing if it has one."""
    if _headline(result.score) != "No score":
        return []
    by_status = {status: [n for n, run in enumerate(result.runs, 1) if run.status is status] for status in Status}
    invalid, failed = by_status[Status.INVALID], by_status[Status.NOT_CONVERGED]
    reasons = []
    if len(result.runs) < needed:
        reasons.append(f"{panels.count(len(result.runs), 'run')}; a score needs {needed}")
    if invalid:
        reasons.append(f"{panels.count(len(invalid), 'run')} invalid: {panels.span(invalid)}")
    if len(failed) > 1:
        reasons.append(f"{len(failed)} runs did not converge, at most one may: {panels.span(failed)}")
    if result.rcp and not result.rcp.pruned.passed:
        reasons.append("the RCP test is not passed")
    return reasons or ["the errors below"]
