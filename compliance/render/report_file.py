"""The report as one self-contained file, HTML or Markdown, which loads nothing else.

The HTML file embeds its pictures as SVG in data URIs, and its content security policy forbids every other load. The
Markdown file embeds PNG, because readers built on markdown-it refuse SVG in data URIs. VS Code, JupyterLab and pandoc
show them; GitHub shows no data URI at all. Every number of a picture is in a table as well.

A log is untrusted input. The templates escape every value, so that `<script>`, `|` or `[` stays text. Characters that
do not print (control characters, lone surrogates, direction marks) become visible escapes.
"""

from __future__ import annotations

import html
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from .. import benchmark
from ..file_tree import printable
from ..findings import Finding, Report, SetResult, Severity
from ..telemetry import RunTelemetry
from . import figures, tables
from .explanation import explain, headline, margin_in_words, reasons_without_score, required_runs
from .formatting import NOTHING, count, number, places
from .plot_parts import MAX_LOSS
from .tables import Table
from .telemetry import MeasuredRun, draw_telemetry, telemetry_table
from .terminal import template_environment

if TYPE_CHECKING:
    from jinja2 import Template

Picture = tuple[figures.DrawFunction, str, str]
PICTURE_KINDS: dict[str, Literal["svg", "png"]] = {"html": "svg", "md": "png"}
SEVERITY_TITLES = {
    Severity.ERROR: "Errors",
    Severity.WARNING: "Warnings",
    Severity.WAIVED: "Waived",
    Severity.INFO: "Notes",
}
PICTURES: tuple[Picture, ...] = (
    (
        figures.draw_losses,
        "Evaluation loss",
        f"Dashed: the target. Left: grey lines are training losses; losses above {MAX_LOSS:g} are cut off. Right: the "
        "region around the target, with the number of each run below its first evaluation that meets the target.",
    ),
    (
        figures.draw_samples,
        "Samples to target and the reference",
        "Each reference convergence point (RCP) runs from the smallest accepted mean (bar) to its own mean (dot). The "
        "olympic mean of the set, blue, must not lie left of the bar; the official package checker decides by the "
        "pruned test, whose minimum is dashed.",
    ),
    (
        figures.draw_learning_rates,
        "Learning rate",
        "Above: logged rates over those that the logged schedule gives for the same steps. Below: their difference "
        'relative to the larger of the two, on a logarithmic scale; "equal" is no difference at all.',
    ),
    (
        figures.draw_timeline,
        "Timeline",
        "One bar per run in start order. The number at its end is the minutes from run_start to run_stop.",
    ),
)


TELEMETRY = (
    "GPUs",
    "Means over short intervals, from the telemetry files beside the logs. Bars: times at which a GPU of these runs "
    "was throttled.",
)


def report_file(
    report: Report,
    kind: Literal["html", "md"],
    pictures: Sequence[Picture] | None = None,
    telemetry: Mapping[str, RunTelemetry] | None = None,
) -> str:
    """Return the text of the file: the same text for the same report.

    Args:
        report: result of a check.
        kind: format.
        pictures: all by default.
        telemetry: by log, of the runs that have any.
    """
    findings = {severity: _by_rule(report.findings, severity) for severity in Severity}
    return load_template(kind).render(
        benchmark=benchmark.NAME,
        verdict=report.verdict,
        summary=_summary(report),
        explanation=explain(report),
        basis=_basis(report),
        sets=[
            _set(result, report, PICTURES if pictures is None else pictures, PICTURE_KINDS[kind], telemetry or {})
            for result in report.sets
        ],
        unverifiable=findings.pop(Severity.UNVERIFIABLE),
        findings=[(SEVERITY_TITLES[severity], rules) for severity, rules in findings.items() if rules],
        official=tables.official_tables(report.official) if report.official else None,
    )


@cache
def load_template(kind: Literal["html", "md"]) -> Template:
    """Return the template of the file."""
    environment = template_environment(printed if kind == "html" else _printed_markdown)
    environment.filters["breakable"] = _breakable
    return environment.get_template(f"report.{kind}.j2")


def loss_curve(report: Report, kind: Literal["svg", "png"]) -> bytes:
    """Return the picture of the evaluation losses; empty without an evaluation."""
    drawn = figures.render_figure(figures.draw_losses, report.sets[0], kind) if report.sets else None
    return b64decode(drawn[1].partition(",")[2]) if drawn else b""


def printed(value: object) -> object:
    """Return a value with visible characters only. Jinja escapes it for HTML afterwards."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)


def _breakable(value: str) -> Markup:
    """Return a text escaped for HTML that may break in paths: after a slash, and in long names after an underscore."""
    escaped = html.escape(printable(value)).replace("/", "/<wbr/>")
    return Markup(re.sub(r"[\w.-]{25,}", lambda name: name[0].replace("_", "_<wbr/>"), escaped))


def _printed_markdown(value: object) -> object:
    """Return a value escaped for Markdown and for HTML."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    # An underscore between letters is no markup, and file names are full of them.
    escaped = re.sub(r"([\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", printable(value))
    return Markup(html.escape(escaped, quote=False))


def _summary(report: Report) -> str:
    found = Counter(finding.severity for finding in report.findings)
    return ", ".join(
        (
            count(found[Severity.ERROR], "error"),
            count(found[Severity.WARNING], "warning"),
            *([f"{found[Severity.WAIVED]:,} waived"] if found[Severity.WAIVED] else []),
            count(found[Severity.INFO], "note"),
            count(found[Severity.UNVERIFIABLE], "point") + " that no log can prove",
        )
    )


def _basis(report: Report) -> list[tuple[str, str]]:
    """Return the inputs of the verdict as (term, value)."""
    chosen = {name.replace("_", "-"): value for name, value in sorted(report.options.items()) if value is not None}
    shown = {name: ("no", "yes")[value] if isinstance(value, bool) else value for name, value in chosen.items()}
    official = report.official
    divergences = f", {count(len(official.divergences), 'divergence')} from ours" if official else ""
    return [
        ("Command", report.command),
        ("Ruleset", report.ruleset),
        ("Runs", number(sum(len(result.runs) for result in report.sets))),
        ("Official tools", f"{official.verdict}{divergences}" if official else "not run"),
        ("Options", ", ".join(f"{name} {value}" for name, value in shown.items()) or NOTHING),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(report.tool.items())) or NOTHING),
    ]


def _by_rule(findings: Iterable[Finding], severity: Severity) -> list[tuple[str, str, int, Table]]:
    """Return (rule, citation, number of findings, table) per rule. Findings that differ in place only share a row."""
    rules: dict[tuple[str, str], dict[tuple[str, ...], list[str]]] = {}
    is_waived = severity is Severity.WAIVED
    for finding in findings:
        if finding.severity is severity:
            waiver = (str(finding.waived),) if is_waived else ()
            cells = (finding.message, finding.expected or NOTHING, finding.got or NOTHING, *waiver)
            rules.setdefault((finding.rule, finding.citation), {}).setdefault(cells, []).append(
                finding.place or "whole set"
            )
    columns = ("Where", "What", "Expected", "Got", *(("Waiver",) if is_waived else ()))
    tables_by_rule = []
    for (rule, citation), rows in rules.items():
        table = Table(columns, [(places(where), *cells) for cells, where in rows.items()])
        tables_by_rule.append((rule, citation, sum(map(len, rows.values())), table))
    return tables_by_rule


def _set(
    result: SetResult,
    report: Report,
    pictures: Sequence[Picture],
    kind: Literal["svg", "png"],
    telemetry: Mapping[str, RunTelemetry],
) -> dict[str, Any]:
    """Return the values of one set for the templates."""
    result = replace(result, runs=tuple(figures.sort_by_start(result.runs)))
    measured = [
        MeasuredRun(n, run, telemetry[run.file]) for n, run in enumerate(result.runs, 1) if run.file in telemetry
    ]
    if measured:
        pictures = [*pictures, (lambda figure, _: draw_telemetry(measured, figure), *TELEMETRY)]
    drawn = [(title, caption, figures.render_figure(draw, result, kind)) for draw, title, caption in pictures]
    shared, runs = tables.runs_table(result.runs)
    return {
        "name": result.name,
        "headline": headline(result.score),
        "reasons": reasons_without_score(result, required_runs(report)),
        "margin": margin_in_words(result.rcp, result),
        "score": tables.score_terms(result),
        "shared": shared,
        "runs": runs,
        "phases": tables.phases_table(result.runs),
        "evaluations": tables.evaluations_table(result.runs),
        "pictures": [(title, caption, *shown) for title, caption, shown in drawn if shown],
        "no_rates": bool(result.runs) and not any(run.logged_learning_rates.samples for run in result.runs),
        "missing": [title for title, _, shown in drawn if not shown],
        "variance": tables.variance_table(result.variance),
        "definition": result.variance.definition if result.variance else None,
        "rcp": tables.rcp_table(result.rcp),
        "energy": tables.energy_table(result),
        "telemetry": telemetry_table(measured),
    }
