"""Two sets side by side, as text for whoever tunes, and as JSON shaped by `compliance/comparison.schema.json`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from ..compare import Comparison, Setting, Side
from ..findings import Spread
from ..welch import Measure, Outcome, in_percent
from .json_report import dumps
from .terminal import Block, Line, Table, draw

SCHEMA_VERSION = 1

_STYLES = {
    Outcome.FEWER: "bold green",
    Outcome.MORE: "bold red",
    Outcome.NOT_TOLD: "bold",
    Outcome.UNTESTED: "bold yellow",
}
# Digits of a mean, and of a single run.
_DIGITS = {"samples": (1, 0), "minutes": (3, 3)}
# More files or values in a row tell a reader nothing; the JSON has all.
_MOST = 4


def comparison_json(comparison: Comparison) -> str:
    """The comparison as one JSON object in plain ASCII, ending in a newline; what is not finite is null."""
    body = {field.name: getattr(comparison, field.name) for field in fields(comparison)}
    return dumps({"schema_version": SCHEMA_VERSION, "command": "compare", **body})


def comparison_text(comparison: Comparison, width: int = 100, colour: bool = False) -> str:
    """The comparison for a terminal of this width, ending in a newline; with ANSI colours if wanted."""
    return draw(_blocks(comparison), width, colour)


def _blocks(compared: Comparison) -> Iterator[Block]:
    yield Line(f"A: {compared.a.name}")
    yield Line(f"B: {compared.b.name}")
    yield Line()
    for measure in (compared.samples, compared.minutes):
        yield Line(measure.verdict, style=_STYLES[measure.outcome])
    yield from _sentences("Warnings", compared.warnings, "bold yellow")
    yield from _sides(compared.a, compared.b)
    yield from _settings(compared.settings)
    yield from _measure("samples", compared.samples, compared.confidence)
    yield from _measure("minutes", compared.minutes, compared.confidence)
    yield from _sentences("Notes", compared.notes, "bold")


def _sentences(title: str, sentences: tuple[str, ...], style: str) -> Iterator[Block]:
    if sentences:
        yield Line()
        yield Line(title, style=style)
        yield from (Line(sentence, 2) for sentence in sentences)


def _sides(a: Side, b: Side) -> Iterator[Block]:
    yield Line()
    yield Line("Runs", style="bold")
    rows = tuple(
        (label, str(side.runs), str(side.converged), "-" if side.step is None else f"{side.step:,}")
        for label, side in (("A", a), ("B", b))
    )
    yield Table(("set", ">runs", ">met the target", ">evaluation interval"), rows)
    for label, side in (("A", a), ("B", b)):
        if side.left_out:
            yield Line(f"{label} without {_few(side.left_out)}", 2)
        broken = [f"{each.rule} ({_runs(len(each.files))})" for each in side.broken]
        rules = f"breaks {', '.join(broken)}; check-set says where" if broken else "breaks no rule"
        yield Line(f"{label} {rules}", 2, "red" if broken else "")


def _runs(files: int) -> str:
    if not files:
        return "the set"
    return f"{files} run" if files == 1 else f"{files} runs"


def _settings(settings: tuple[Setting, ...]) -> Iterator[Block]:
    yield Line()
    yield Line("Logged settings that differ", style="bold")
    if not settings:
        yield Line("none", 2)
        return
    for each in settings:
        yield Line(f"{each.key}: {_few(each.a) or 'not logged'} in A, {_few(each.b) or 'not logged'} in B", 2)


def _few(values: tuple[str, ...]) -> str:
    more = (f"and {len(values) - _MOST} more",) if len(values) > _MOST else ()
    return ", ".join((*values[:_MOST], *more))


def _measure(noun: str, measure: Measure, confidence: float) -> Iterator[Block]:
    yield Line()
    yield Line(f"{noun.capitalize()} to target", style="bold")
    sides = (("A", measure.a, measure.olympic_a), ("B", measure.b, measure.olympic_b))
    rows = tuple(_spread(label, spread, olympic, *_DIGITS[noun]) for label, spread, olympic in sides if spread)
    if rows:
        yield Table(("set", ">runs", ">mean", ">sd", ">CV %", ">olympic mean", ">least", ">most"), rows)
    digits = _DIGITS[noun][0]
    if measure.difference is not None and measure.difference_percent is not None:
        change = f"{measure.difference:+,.{digits}f} {noun} ({in_percent(measure.difference_percent)} %)"
        yield Line(f"B - A: {change}", 2)
    test = measure.test
    if test is None:
        return
    low, high = (f"{value:+,.{digits}f}" for value in (test.low, test.high))
    percents = f"{in_percent(test.low_percent)} to {in_percent(test.high_percent)} %"
    yield Line(f"{100 * confidence:g} % interval: {low} to {high} {noun} ({percents})", 2)
    yield Line(f"Welch's t = {test.t:.4g}, {test.df:.2f} degrees of freedom, two-sided p = {test.p:.3g}", 2)
    detectable = f"{test.detectable:,.{digits}f} {noun} ({in_percent(test.detectable_percent)} %)"
    yield Line(f"ten runs each would show a difference of {detectable} four times in five", 2)


def _spread(label: str, spread: Spread, olympic: float | None, digits: int, digits_of_one: int) -> tuple[str, ...]:
    return (
        label,
        str(spread.runs),
        f"{spread.mean:,.{digits}f}",
        f"{spread.sd:,.{digits}f}",
        f"{spread.cv_percent:.2f}",
        "-" if olympic is None else f"{olympic:,.{digits}f}",
        f"{spread.minimum:,.{digits_of_one}f}",
        f"{spread.maximum:,.{digits_of_one}f}",
    )
