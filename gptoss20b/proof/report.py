"""A trace as tables, and as a page with the memory over the step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from .result import TraceReport

_GIB = 1 << 30
# Categories at the peak that a table names; the others are small.
_NAMED_CATEGORIES = 12
_WIDTH, _HEIGHT, _LEFT = 960, 320, 60

# Heading, columns and rows.
PlainTable = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def as_tables(report: TraceReport) -> Iterator[Table]:
    """Yield all figures."""
    for heading, columns, rows in _tables(report):
        table = Table(*columns, title=heading)
        for row in rows:
            table.add_row(*row)
        yield table


def as_page(report: TraceReport) -> str:
    """Return a self-contained HTML page."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    title = f"One rank's step on one {report.system}, traced without a GPU"
    return environment.from_string(template).render(title=title, picture=_picture(report), tables=_tables(report))


def _tables(report: TraceReport) -> list[PlainTable]:
    return [
        ("Memory, waits and collectives", ("figure", "value"), list(_figures(report))),
        (f"Work of the kernels, and its least time on one {report.system}", _WORK_COLUMNS, list(_work(report))),
    ]


def _figures(report: TraceReport) -> Iterator[tuple[str, str]]:
    trace = report.trace
    yield "configuration", report.configuration
    yield "imbalance of this rank", f"{trace.imbalance:g}"
    yield "peak live", _gib(trace.peak_live_bytes)
    yield "peak reserved, expandable segments", _gib(trace.peak_reserved_bytes)
    yield "peak reserved, default segments", _gib(trace.peak_reserved_bytes_without_expandable_segments)
    yield f"memory of one {report.system}", _gib(report.memory_bytes)
    survivable = report.survivable_imbalance
    text = f"up to {survivable:.1f}" if survivable >= 1 else "none: the step does not fit"
    yield "imbalance that fits", "any" if survivable >= report.largest_imbalance else text
    yield "alive between steps", _gib(trace.live_after_step_bytes)
    yield "peak of an evaluation", _gib(trace.evaluation_peak_live_bytes)
    categories = list(trace.at_peak_bytes.items())
    for name, size in categories[:_NAMED_CATEGORIES]:
        yield f"  at the peak: {name}", _gib(size)
    if rest := sum(size for _, size in categories[_NAMED_CATEGORIES:]):
        yield "  at the peak: everything else", _gib(rest)
    yield "waits of the host in a step", str(report.host_waits_per_step)
    for place, count in trace.host_waits.items():
        yield f"  {place}", str(count)
    yield "collectives in a step", str(report.collectives_per_step)
    for name, kind in trace.collectives.items():
        yield f"  {name}", f"{kind.count}, {_gib(kind.payload_bytes)}"
    yield "compiled versions of fused functions", str(sum(trace.compiled_versions.values()))
    yield "graph breaks of compiled modules", str(len(trace.graph_breaks))


_WORK_COLUMNS = ("part", "phase", "TFLOP", "GB", "ms")


def _work(report: TraceReport) -> Iterator[tuple[str, ...]]:
    def row(part: str, phase: str, flops: float, moved: int, seconds: float) -> tuple[str, ...]:
        return part, phase, f"{flops / 1e12:,.2f}", f"{moved / 1e9:,.1f}", f"{seconds * 1e3:,.2f}"

    for each in report.parts:
        yield row(each.part, each.phase, each.flops, each.bytes, each.roofline_seconds)
    yield row("all", "", report.flops_per_step, report.bytes_per_step, report.roofline_seconds)


def _picture(report: TraceReport) -> dict[str, Any]:
    """Return the coordinates of an SVG of live bytes over the step, with the GPU's memory as a line."""
    timeline = report.trace.timeline_bytes
    top = max(*timeline, report.memory_bytes) / _GIB
    across = (_WIDTH - _LEFT) / max(len(timeline) - 1, 1)

    def height(size: float) -> float:
        return round(_HEIGHT - 20 - size / _GIB / top * (_HEIGHT - 40), 1)

    points = (f"{_LEFT + index * across:.1f},{height(size)}" for index, size in enumerate(timeline))
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "labels": [(height(gib * _GIB), f"{gib:.0f} GiB") for gib in (0, top / 2, top)],
        "limit": height(report.memory_bytes),
        "points": " ".join(points),
    }


def _gib(size: int) -> str:
    return f"{size / _GIB:,.2f} GiB"
