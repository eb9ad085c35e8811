"""Reports, comparisons and plans for a terminal, at most ``width`` columns wide. `templates` holds their layout.

Without ``colour`` the text has no control character but newlines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from ..benchmark import NAME
from ..findings import Finding, OfficialResult, Report, Severity, Verdict
from ..welch import Outcome, format_percent
from .explanation import explain
from .formatting import common_folder, count, energy_units, group_by, number, places, system_name
from .terminal import draw, template_environment

if TYPE_CHECKING:
    from ..compare import Comparison
    from ..diff import FigureChange, TreeDiff
    from ..plan import Plan
    from ..rules.rule import Rule

# Entries shown of a longer list, and characters of a longer text. The JSON has all.
_MAX_ENTRIES = 20
_MAX_LENGTH = 500
_MAX_VALUES = 4
_MAX_EXPLANATION = 2000
# Decimals of the figures of a diff, by a part of their names.
_DIGITS = {"percent": 2, "minutes": 3, "factor": 6, "samples": 1}
_STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.ERROR: "bold magenta",
    Severity.ERROR: "bold red",
    Severity.WARNING: "bold yellow",
    Severity.WAIVED: "bold magenta",
    Severity.INFO: "bold cyan",
}
_OUTCOME_STYLES = {
    Outcome.FEWER: "bold green",
    Outcome.MORE: "bold red",
    Outcome.INCONCLUSIVE: "bold",
    Outcome.UNTESTED: "bold yellow",
}


def text_report(report: Report, width: int = 100, colour: bool = False) -> str:
    """Return verdict, findings by severity, figures of each set, and verdicts of the official tools."""
    counts = {severity: sum(each.severity is severity for each in report.findings) for severity in Severity}
    values = {"report": report, "explanation": explain(report)[:_MAX_EXPLANATION], "counts": counts, "benchmark": NAME}
    return draw("report.txt.j2", width, colour, _FILTERS, **_VALUES, **values)


def diff_text(diff: TreeDiff, width: int = 100, colour: bool = False) -> str:
    """Return verdicts, files, results and findings of two revisions of a tree."""
    return draw("diff.txt.j2", width, colour, _FILTERS, **_VALUES, diff=diff, figure=_figure)


def comparison_text(comparison: Comparison, width: int = 100, colour: bool = False) -> str:
    """Return two sets side by side."""
    values = _VALUES | {"styles": _OUTCOME_STYLES}
    return draw("comparison.txt.j2", width, colour, _FILTERS, **values, comparison=comparison)


def plan_text(plan: Plan, width: int = 100) -> str:
    """Return a plan with its tables."""
    return draw("plan.txt.j2", width, False, {}, plan=plan, number=number)


def rules_text(rules: Iterable[Rule[Any]], markdown: bool) -> str:
    """Return id, severity, requirement and source of each rule; in Markdown a table."""
    from markupsafe import Markup

    return template_environment(Markup).get_template(f"rules.{'md' if markdown else 'txt'}.j2").render(rules=rules)


def _first_values(values: Sequence[str]) -> str:
    more = [f"and {len(values) - _MAX_VALUES} more"] if len(values) > _MAX_VALUES else []
    return ", ".join([*values[:_MAX_VALUES], *more])


def _evidence(group: tuple[tuple[str | None, str | None], list[Finding]]) -> str:
    """Format expected and got, and the places where they are."""
    (expected, got), findings = group
    values = [f"{name} {_shortened(text)}" for name, text in (("expected", expected), ("got", got)) if text is not None]
    return ": ".join(filter(None, (", ".join(values), _places(each.place for each in findings if each.place))))


def _complaints(results: Iterable[OfficialResult]) -> list[tuple[tuple[str, ...], list[str]]]:
    """Return the messages of failed results by files; files with the same messages are listed once."""
    failed = [(text, each.subject) for each in results if each.verdict != "pass" for text in each.messages]
    subjects = [(text, tuple(file for _, file in pairs)) for text, pairs in group_by(failed, lambda each: each[0])]
    return [(files, [text for text, _ in same]) for files, same in group_by(subjects, lambda each: each[1])]


def _places(paths: Iterable[str]) -> str:
    return places(map(_shortened, paths), _MAX_ENTRIES)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_LENGTH else text[:_MAX_LENGTH] + "..."


def _figure(change: FigureChange, column: Literal["old", "new", "change"]) -> str:
    value = getattr(change, column)
    digits = next((digits for part, digits in _DIGITS.items() if part in change.figure), 0)
    return value if isinstance(value, str) else number(value, digits, "+" if column == "change" else "")


_FILTERS: dict[str, Callable[..., Any]] = {
    "group_by": lambda items, *names: group_by(items, attrgetter(*names)),
    "short": _shortened,
    "common_folder": common_folder,
    "seed": lambda seed: str(seed) if seed is not None and abs(seed) < 2**64 else number(seed),
    "evidence": _evidence,
    "places": _places,
    "complaints": _complaints,
    "energy": energy_units,
    "system_name": system_name,
    "percent": format_percent,
    "brief": _first_values,
}
_VALUES: dict[str, Any] = {"number": number, "count": count, "styles": _STYLES, "limit": _MAX_ENTRIES}
