"""A trace as a table, and as a page with the memory over the step."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from rich.table import Table

from .result import TraceReport

_GIB = 1 << 30
# Categories at the peak that a table names; the others are small.
_NAMED_CATEGORIES = 12
_WIDTH, _HEIGHT, _MARGIN = 960, 320, 60


def as_table(report: TraceReport) -> Table:
    """Return all figures."""
    table = Table("figure", "value", title=f"One rank's step, traced without a GPU, against one {report.system}")
    for name, value in _rows(report):
        table.add_row(name, value)
    return table


def as_page(report: TraceReport) -> str:
    """Return a self-contained HTML page."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in _rows(report))
    return (
        "<!doctype html><meta charset='utf-8'><title>Traced step</title>"
        "<style>body{font:16px sans-serif;max-width:1000px;margin:2em auto}td{padding:.2em 1em .2em 0}</style>"
        f"<h1>One rank's step on one {escape(report.system)}, traced without a GPU</h1>{_picture(report)}"
        f"<table>{rows}</table>\n"
    )


def _rows(report: TraceReport) -> Iterator[tuple[str, str]]:
    trace = report.trace
    yield "imbalance of this rank", f"{trace.imbalance:g}"
    yield "peak live", _gib(trace.peak_live_bytes)
    yield "peak reserved, expandable segments", _gib(trace.peak_reserved_bytes)
    yield "peak reserved, default segments", _gib(trace.peak_reserved_bytes_without_expandable_segments)
    yield f"memory of one {report.system}", _gib(report.memory_bytes)
    survivable = "any" if report.survivable_imbalance is None else f"{report.survivable_imbalance:.2f}"
    yield "imbalance that fits", survivable
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


def _picture(report: TraceReport) -> str:
    """Return an SVG of live bytes over the step, with the GPU's memory as a line."""
    timeline = report.trace.timeline_bytes
    top = max(*timeline, report.memory_bytes) / _GIB
    across = (_WIDTH - _MARGIN) / max(len(timeline) - 1, 1)

    def height(size: float) -> float:
        return _HEIGHT - 20 - size / _GIB / top * (_HEIGHT - 40)

    points = " ".join(f"{_MARGIN + index * across:.1f},{height(size):.1f}" for index, size in enumerate(timeline))
    limit = height(report.memory_bytes)
    label = f"<text x='{_MARGIN - 8}' text-anchor='end' font-size='13'"
    labels = "".join(f"{label} y='{height(gib * _GIB) + 5:.1f}'>{gib:.0f} GiB</text>" for gib in (0, top / 2, top))
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'><title>Live bytes over one step</title>{labels}"
        f"<line x1='{_MARGIN}' x2='{_WIDTH}' y1='{limit:.1f}' y2='{limit:.1f}' stroke='#c00' stroke-dasharray='6 4'/>"
        f"<polyline points='{points}' fill='none' stroke='#06c' stroke-width='1.5'/></svg>"
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:,.2f} GiB"
