"""Two sets side by side, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from ..compare import Comparison, Setting, Side
from ..findings import Spread
from ..welch import MetricComparison, Outcome, format_percent
from .terminal import Block, Line, Table, draw

_STYLES = {
    Outcome.FEWER: "bold green",
    Outcome.MORE: "bold red",
    Outcome.INCONCLUSIVE: "bold",
    Outcome.UNTESTED: "bold yellow",
}
# Decimals of a mean, and of a single run.
_DECIMALS = {"samples": (1, 0), "minutes": (3, 3)}
# Files or values shown of a longer list; the JSON document has all.
_MAX_SHOWN = 4


def comparison_text(comparison: Comparison, width: int = 100, colour: bool = False) -> str:
    """Return the comparison as lines of at most ``width`` columns, ending in a newline."""
    return draw(_blocks(comparison), width, colour)


def _blocks(comparison: Comparison) -> Iterator[Block]:
    yield Line(f"A: {comparison.a.name}")
    yield Line(f"B: {comparison.b.name}")
    yield Line()
    for metric in (comparison.samples, comparison.minutes):
        yield Line(metric.verdict, style=_STYLES[metric.outcome])
    yield from _sentences("Warnings", comparison.warnings, "bold yellow")
    yield from _sides(comparison.a, comparison.b)
    yield from _settings(comparison.settings)
    yield from _metric("samples", comparison.samples, comparison.confidence)
    yield from _metric("minutes", comparison.minutes, comparison.confidence)
    yield from _sentences("Notes", comparison.notes, "bold")


def _sentences(title: str, sentences: tuple[str, ...], style: str) -> Iterator[Block]:
    if sentences:
        yield Line()
        yield Line(title, style=style)
        yield from (Line(sentence, 2) for sentence in sentences)


def _sides(a: Side, b: Side) -> Iterator[Block]:
    yield Line()
    yield Line("Runs", style="bold")
    rows = []
    for label, side in (("A", a), ("B", b)):
        interval = "-" if side.eval_interval_samples is None else f"{side.eval_interval_samples:,}"
        rows.append((label, str(side.runs), str(side.converged), interval))
    yield Table(("set", ">runs", ">met the target", ">evaluation interval"), tuple(rows))
    for label, side in (("A", a), ("B", b)):
        if side.left_out:
            yield Line(f"{label} without {_shortened(side.left_out)}", 2)
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
    for each in settings:
        a, b = (_shortened(values) or "not logged" for values in (each.a, each.b))
        yield Line(f"{each.key}: {a} in A, {b} in B", 2)


def _shortened(values: tuple[str, ...]) -> str:
    more = (f"and {len(values) - _MAX_SHOWN} more",) if len(values) > _MAX_SHOWN else ()
    return ", ".join((*values[:_MAX_SHOWN], *more))


def _metric(noun: str, metric: MetricComparison, confidence: float) -> Iterator[Block]:
    yield Line()
    yield Line(f"{noun.capitalize()} to target", style="bold")
    sides = (("A", metric.a, metric.olympic_a), ("B", metric.b, metric.olympic_b))
    rows = tuple(_row(label, spread, olympic, *_DECIMALS[noun]) for label, spread, olympic in sides if spread)
    if rows:
        yield Table(("set", ">runs", ">mean", ">sd", ">CV %", ">olympic mean", ">least", ">most"), rows)
    decimals = _DECIMALS[noun][0]
    if metric.difference is not None and metric.difference_percent is not None:
        change = f"{metric.difference:+,.{decimals}f} {noun} ({format_percent(metric.difference_percent)} %)"
        yield Line(f"B - A: {change}", 2)
    test = metric.test
    if test is None:
        return
    low, high = (f"{value:+,.{decimals}f}" for value in (test.low, test.high))
    percents = f"{format_percent(test.low_percent)} to {format_percent(test.high_percent)} %"
    yield Line(f"{100 * confidence:g} % interval: {low} to {high} {noun} ({percents})", 2)
    yield Line(f"Welch's t = {test.t:.4g}, {test.df:.2f} degrees of freedom, two-sided p = {test.p:.3g}", 2)
    detectable = f"{test.detectable:,.{decimals}f} {noun} ({format_percent(test.detectable_percent)} %)"
    yield Line(f"ten runs each would show a difference of {detectable} four times in five", 2)


def _row(label: str, spread: Spread, olympic: float | None, decimals: int, decimals_of_run: int) -> tuple[str, ...]:
    return (
        label,
        str(spread.runs),
        f"{spread.mean:,.{decimals}f}",
        f"{spread.sd:,.{decimals}f}",
        f"{spread.cv_percent:.2f}",
        "-" if olympic is None else f"{olympic:,.{decimals}f}",
        f"{spread.minimum:,.{decimals_of_run}f}",
        f"{spread.maximum:,.{decimals_of_run}f}",
    )
