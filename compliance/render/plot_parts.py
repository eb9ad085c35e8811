"""Styles, limits, labels and rows that the pictures share, and the numbers of a run as the pictures show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from .. import benchmark
from ..findings import Evaluation, RcpTest, RunSummary, SetResult, Status
from .formatting import count, run_ranges

WIDTH = 7.1  # inches: A4 without its margins
# Colours that most colour-blind people can tell apart (Okabe and Ito).
DARK, GREY, BLUE, ORANGE, RED = "#222222", "#b8b8b8", "#0072b2", "#e69f00", "#c44e00"
STATUS_STYLES: dict[Status, dict[str, Any]] = {
    Status.CONVERGED: {"color": BLUE, "linestyle": "-", "marker": "o"},
    Status.NOT_CONVERGED: {"color": ORANGE, "linestyle": "--", "marker": "s"},
    Status.INVALID: {"color": RED, "linestyle": ":", "marker": "X"},
}
PHASE_STYLES: dict[str, dict[str, Any]] = {
    "init": {"facecolor": "white", "edgecolor": "#777777", "hatch": "//////", "linewidth": 0.6},
    "training": {"facecolor": "#8ec9ee", "linewidth": 0},
    "evaluation": {"facecolor": "#08306b", "edgecolor": "#08306b", "linewidth": 0.4},
}
STYLE: dict[str, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "font.family": "DejaVu Sans",  # part of matplotlib: the same outlines on every machine
    "font.size": 8.5,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "compliance",  # deterministic ids in the SVG
    "text.parse_math": False,  # a file name may hold dollar signs
}
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")
PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")
OFFSET_TEXT: dict[str, Any] = {"textcoords": "offset points", "va": "center_baseline"}
ON_WHITE: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
# A broken log may hold any number. Values beyond these limits would squeeze the rest of a picture; tables show them.
MAX_SAMPLES = 1e9
MAX_LOSS = 15.0  # a uniform guess over the vocabulary of 201,088 tokens has ln(201,088) = 12.2
MAX_MINUTES = 60 * 24 * 60.0
MAX_VALUE = 1e6  # a loss or a learning rate
MAX_TIME_MS = 1e14  # since 1970
# On a logarithmic axis "equal" needs a value. This one is below the resolution of a double.
RATE_FLOOR = 1e-17

Floats = NDArray[np.float64]


def add_legend(figure: Figure, runs: Sequence[tuple[int, RunSummary]], extra: dict[str, Line2D]) -> None:
    """Add a legend above the axes: the runs of each status, then the extra entries."""
    entries = dict(extra)
    for status, look in reversed(STATUS_STYLES.items()):
        if numbers := [number for number, run in runs if run.status is status]:
            names = run_ranges(numbers)
            names = names if len(names) <= 30 else count(len(numbers), "run")
            entries = {f"{status.replace('_', ' ')}: {names}": Line2D([], [], mec="white", mew=0.5, **look), **entries}
    columns = len(entries) if sum(map(len, entries)) <= 70 else 2
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns, columnspacing=1.4)


def label_run_rows(axes: Axes, runs: Sequence[RunSummary]) -> None:
    """Label a row for each run, the first on top, with its number and a shortened file name."""
    # DejaVu Sans lacks many scripts, and matplotlib would draw boxes for them.
    names = [
        "".join(c if c.isprintable() and c < "\u0250" else "?" for c in run.file.rpartition("/")[2]) for run in runs
    ]
    short = [name if len(name) <= 22 else f"{name[:9]}...{name[-10:]}" for name in names]
    axes.set_yticks(range(len(runs)), [f"{name}   {number}" for number, name in enumerate(short, 1)])
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def zoom_to_target(
    axes: Axes,
    runs: Sequence[tuple[int, RunSummary]],
    targets: Sequence[float],
    passes: dict[int, Evaluation],
    interval: int,
) -> None:
    """Set the limits around the first passes, and write the numbers of the runs below each column of passes.

    The width is a few intervals, and at most a few times 12,288 samples, so that every batch size has the same scale.
    """
    interval = min(interval, benchmark.EVAL_INTERVAL_SAMPLES)
    focus = list(passes.values()) or [min(run.evaluations, key=lambda point: point.loss) for _, run in runs]
    low, high = (end([*targets, *(point.loss for point in focus)]) for end in (min, max))
    height = max(high - low, 0.015)
    axes.set_ylim(low - 1.3 * height, high + 2.5 * height)
    right = max(point.samples for point in focus) + 1.5 * interval
    left = max(0, min(point.samples for point in focus) - 4 * interval, right - 24 * interval)
    axes.set_xlim(left, right)
    columns: dict[int, list[int]] = {}
    for number, point in passes.items():
        columns.setdefault(point.samples, []).append(number)
    per_line = max(1, min(3, int(20 * interval / (right - left))))  # numbers that fit side by side below a column
    for x, numbers in columns.items():
        lines = [", ".join(map(str, numbers[i : i + per_line])) for i in range(0, len(numbers), per_line)]
        place: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "clip_on": True, "bbox": ON_WHITE}
        axes.text(x, 0.02, "\n".join(lines), transform=axes.get_xaxis_transform(), **place)
    for target in targets:
        axes.annotate(f"target\n{target:g}", (1, target), (4, 0), xycoords=axes.get_yaxis_transform(), **OFFSET_TEXT)


def layout_interval(result: SetResult) -> int:
    """Return the samples between evaluations, or those of the rules where they are unknown."""
    return result.eval_interval_samples or benchmark.EVAL_INTERVAL_SAMPLES


def samples_limits(interval: int, values: Sequence[float]) -> tuple[float, float]:
    """Return axis limits with room for labels on both sides, both multiples of the interval."""
    low, high = min(values) // interval, -(-max(values) // interval)
    room = max(math.ceil(0.35 * (high - low)), 3)
    return max(low - room, 0) * interval, (high + room) * interval


def stack_dots(positions: dict[int, int], width: float) -> dict[int, int]:
    """Return heights, from 1, at which dots of this width at these positions do not overlap."""
    heights: dict[int, int] = {}
    for number, x in positions.items():
        below = [height for other, height in heights.items() if abs(positions[other] - x) < width]
        heights[number] = max(below, default=0) + 1
    return heights


def draw_rcp_rows(axes: Axes, olympic: float | None, tests: Sequence[tuple[str, RcpTest]]) -> None:
    """Draw a row for the set's olympic mean, and one per test from its smallest accepted mean to its mean."""
    text: dict[str, Any] = {"bbox": ON_WHITE, "zorder": 4, **OFFSET_TEXT}
    left = axes.get_yaxis_transform()
    axes.set_yticks(range(len(tests) + 1), ["this set", *(name for name, _ in tests)])
    axes.set_ylim(len(tests) + 0.6, -0.6)
    axes.tick_params(axis="y", length=0)
    if olympic is None:
        axes.annotate("no olympic mean", (0.02, 0), (0, 0), xycoords=left, **text)
    else:
        axes.plot(olympic, 0, "D", color=BLUE, markersize=7)
        axes.annotate(f"olympic mean {olympic:,.1f}", (olympic, 0), (9, 0), **text)
    for row, (_, test) in enumerate(tests, 1):
        if test.mean is None or test.minimum is None:
            axes.annotate("no RCP for this batch size", (0.02, row), (0, 0), xycoords=left, **text)
            continue
        axes.plot([test.minimum, test.mean], [row, row], color=DARK, linewidth=1.5)
        axes.plot(test.minimum, row, "|", color=DARK, markersize=12, mew=2)
        axes.plot(test.mean, row, "o", color=DARK, markersize=6)
        axes.annotate(f"minimum {test.minimum:,.1f}", (test.minimum, row), (-7, 0), ha="right", **text)
        axes.annotate(f"mean {test.mean:,.1f}", (test.mean, row), (7, 0), **text)


def plausible_rates(run: RunSummary) -> tuple[Floats, Floats, Floats]:
    """Return samples, logged and expected learning rates without implausible points.

    An expected rate is NaN where the logged schedule gives none.
    """
    x = np.array(run.logged_learning_rates.samples, float)
    logged = np.array(run.logged_learning_rates.values, float)
    expected = np.full(len(x), np.nan)
    known = min(len(x), len(run.expected_learning_rates.values))
    expected[:known] = run.expected_learning_rates.values[:known]
    kept = (x >= 0) & (x <= MAX_SAMPLES) & (np.abs(logged) <= MAX_VALUE)
    return x[kept], logged[kept], expected[kept]


def plausible_losses(run: RunSummary) -> tuple[Floats, Floats]:
    """Return samples and training losses without implausible points."""
    x, losses = np.array(run.train_loss.samples, float), np.array(run.train_loss.values, float)
    kept = (x >= 0) & (x <= MAX_SAMPLES) & (np.abs(losses) <= MAX_VALUE)
    return x[kept], losses[kept]


def relative_difference(logged: Floats, expected: Floats) -> Floats:
    """Return |logged - expected| / the larger of the two: 0 to 2, raised to `RATE_FLOOR` where they are equal."""
    larger = np.maximum(np.abs(logged), np.abs(expected))
    ratio = np.divide(np.abs(logged - expected), larger, out=np.zeros_like(larger), where=larger != 0)
    return np.maximum(ratio, RATE_FLOOR)


def rate_summary(run: RunSummary) -> tuple[str, str]:
    """Return the largest logged rate and the largest relative difference ("equal" for 0); "-" for none."""
    _, logged, expected = plausible_rates(run)
    differences = relative_difference(logged, expected)[np.isfinite(expected)]
    largest = f"{logged.max():g}" if len(logged) else "-"
    if not len(differences):
        return largest, "-"
    return largest, f"{differences.max():.2g}" if differences.max() > RATE_FLOOR else "equal"


def phase_bars(run: RunSummary) -> dict[str, list[tuple[float, float]]]:
    """Return the phases by name as (start, length) in minutes from run_start, or from the first training phase."""
    zero = next((phase.start_ms for phase in run.phases if phase.name == "training"), None)
    zero = run.start_ms if run.start_ms is not None else zero
    bars: dict[str, list[tuple[float, float]]] = {}
    for phase in run.phases:
        start, stop = ((at - (zero or 0)) / 60_000 for at in (phase.start_ms, phase.stop_ms))
        if phase.name in PHASE_STYLES and -MAX_MINUTES <= start <= stop <= MAX_MINUTES:
            bars.setdefault(phase.name, []).append((start, stop - start))
    return bars


def merge_bars(bars: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Join bars that are closer than a picture can show: 100,000 phases must not make a larger file."""
    gap = max(start + length for start, length in bars) / 2000
    merged: list[tuple[float, float]] = []
    for start, length in sorted(bars):
        before, width = merged[-1] if merged else (-math.inf, 0.0)
        if start - before - width < gap:
            merged[-1] = (before, max(width, start + length - before))
        else:
            merged.append((start, length))
    return merged
