"""The list of rules, as text and as the Markdown table of the README."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..rules.rule import Rule


def rules_text(rules: Iterable[Rule[Any]]) -> str:
    """Return a paragraph per rule: id, severity, requirement and source."""
    return "\n\n".join(
        f"{rule.id} ({rule.severity}{_divisions(rule)})\n  {rule.description}\n  [{rule.citation}]" for rule in rules
    )


def rules_table(rules: Iterable[Rule[Any]]) -> str:
    """Return the rules as a Markdown table."""
    rows = [f"| `{rule.id}` | {rule.severity} | {rule.description} |" for rule in rules]
    return "\n".join(["| rule | severity | requirement |", "|---|---|---|", *rows])


def _divisions(rule: Rule[Any]) -> str:
    return "" if len(rule.divisions) > 1 else f", {next(iter(rule.divisions))} division only"
