"""What the report's pictures have in common: styles, limits, labels, rows, and the numbers of a run as they show them.

Nothing here draws a whole picture; `figures` does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from .. import benchmark
from ..findings import Evaluation, RcpTest, RunSummary, SetResult, Status

WIDTH = 7.1  # inches: A4 less its margins
DARK, GREY, BLUE, ORANGE, RED = "#222222", "#b8b8b8", "#0072b2", "#e69f00", "#c44e00"  # after Okabe and Ito
LOOKS: dict[Status, dict[str, Any]] = {
    Status.CONVERGED: {"color": BLUE, "linestyle": "-", "marker": "o"},
    Status.NOT_CONVERGED: {"color": ORANGE, "linestyle": "--", "marker": "s"},
    Status.INVALID: {"color": RED, "linestyle": ":", "marker": "X"},
}
PHASES: dict[str, dict[str, Any]] = {
    "init": {"facecolor": "white", "edgecolor": "#777777", "hatch": "//////", "linewidth": 0.6},
    "training": {"facecolor": "#8ec9ee", "linewidth": 0},
    "evaluation": {"facecolor": "#08306b", "edgecolor": "#08306b", "linewidth": 0.4},
}
STYLE: dict[str, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same outlines on every machine
    "font.size": 8.5,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "compliance",
    "text.parse_math": False,  # a file name may hold dollar signs
}
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")
PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")
BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center_baseline"}
ON_WHITE: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
# A log may claim anything. What lies outside would squeeze the rest of a picture to nothing; the tables show it.
MOST_SAMPLES = 1e9
MOST_LOSS = 15.0  # the logarithm of a vocabulary of 201,088 is 12.2
MOST_MINUTES = 60 * 24 * 60.0
MOST_VALUE = 1e6  # a loss or a learning rate
MOST_TIME = 1e14  # milliseconds since 1970
# Below the resolution of a double: every difference that is not zero lies above.
RATE_FLOOR = 1e-17

Floats = NDArray[np.float64]


def span(chosen: Iterable[int]) -> str:
    """Numbers of runs as a person writes them.

    >>> span([4, 1, 2, 3, 9])
    '1-4, 9'
    """
    spans: list[list[int]] = []
    for number in sorted(chosen):
        if spans and spans[-1][-1] == number - 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ", ".join("-".join(map(str, ends)) for ends in spans)


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "run"), count(1200, "run")
    ('1 run', '1,200 runs')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def between(values: Collection[float], digits: int = 0) -> str:
    """The range of some figures.

    >>> between([1024, 96]), between([7.25, 7.25], 1)
    ('96 to 1,024', '7.2')
    """
    ends = sorted({min(values), max(values)})
    return " to ".join(f"{end:,.{digits}f}" for end in ends)


def legend(figure: Figure, runs: Sequence[tuple[int, RunSummary]], more: dict[str, Line2D]) -> None:
    """Above the axes: what became of which runs, then what else is drawn."""
    shown = dict(more)
    for status, look in reversed(LOOKS.items()):
        if chosen := [number for number, run in runs if run.status is status]:
            named = span(chosen) if len(span(chosen)) <= 30 else count(len(chosen), "run")
            shown = {f"{status.replace('_', ' ')}: {named}": Line2D([], [], mec="white", mew=0.5, **look), **shown}
    columns = len(shown) if sum(map(len, shown)) <= 70 else 2
    figure.legend(shown.values(), shown.keys(), loc="outside upper left", ncols=columns, columnspacing=1.4)


def run_rows(axes: Axes, runs: Sequence[RunSummary]) -> None:
    """A row for each run, the first on top, named by its number and the end of its file's name."""
    # The font lacks many scripts; pictures of what it lacks would be boxes.
    names = [
        "".join(c if c.isprintable() and c < "\u0250" else "?" for c in run.file.rpartition("/")[2]) for run in runs
    ]
    short = [name if len(name) <= 22 else f"{name[:9]}...{name[-10:]}" for name in names]
    axes.set_yticks(range(len(runs)), [f"{name}   {number}" for number, name in enumerate(short, 1)])
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def near_target(
    axes: Axes,
    runs: Sequence[tuple[int, RunSummary]],
    targets: Sequence[float],
    passes: dict[int, Evaluation],
    step: int,
) -> None:
    """Sets the limits to what happens around the first passes, and names the runs under each column of them.

    That is a few steps, or a few of 12,288 samples where the step is larger: every batch size is seen as near.
    """
    step = min(step, benchmark.EVAL_INTERVAL_SAMPLES)
    focus = list(passes.values()) or [min(run.evaluations, key=lambda point: point.loss) for _, run in runs]
    low, high = (end([*targets, *(point.loss for point in focus)]) for end in (min, max))
    tall = max(high - low, 0.015)
    axes.set_ylim(low - 1.3 * tall, high + 2.5 * tall)
    right = max(point.samples for point in focus) + 1.5 * step
    left = max(min(point.samples for point in focus) - 4 * step, right - 24 * step)
    axes.set_xlim(left, right)
    columns: dict[int, list[int]] = {}
    for number, point in passes.items():
        columns.setdefault(point.samples, []).append(number)
    fit = max(1, min(3, int(20 * step / (right - left))))  # numbers side by side in one column
    for x, names in columns.items():
        lines = [", ".join(map(str, names[i : i + fit])) for i in range(0, len(names), fit)]
        place: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "clip_on": True, "bbox": ON_WHITE}
        axes.text(x, 0.02, "\n".join(lines), transform=axes.get_xaxis_transform(), **place)
    for target in targets:
        axes.annotate(f"target\n{target:g}", (1, target), (4, 0), xycoords=axes.get_yaxis_transform(), **BESIDE)


def grid(result: SetResult) -> int:
    """Samples between evaluations, to lay out a picture by; those of the rules where they are unknown."""
    return result.eval_interval_samples or benchmark.EVAL_INTERVAL_SAMPLES


def samples_range(step: int, shown: Sequence[float]) -> tuple[float, float]:
    """Limits with room for labels on both sides, both a multiple of the step."""
    low, high = min(shown) // step, -(-max(shown) // step)
    room = max(math.ceil(0.35 * (high - low)), 3)
    return max(low - room, 0) * step, (high + room) * step


def stack(places: dict[int, int], width: float) -> dict[int, int]:
    """Heights, from 1, at which dots of that width at those places lie on each other and not in each other."""
    heights: dict[int, int] = {}
    for number, x in places.items():
        under = [height for other, height in heights.items() if abs(places[other] - x) < width]
        heights[number] = max(under, default=0) + 1
    return heights


def rcp_rows(axes: Axes, olympic: float | None, tests: Sequence[tuple[str, RcpTest]]) -> None:
    """A row for the set's olympic mean and one for each test: a line from its smallest accepted mean to its mean."""
    text: dict[str, Any] = {"bbox": ON_WHITE, "zorder": 4, **BESIDE}
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


def usable_rates(run: RunSummary) -> tuple[Floats, Floats, Floats]:
    """Samples, logged and expected rates; NaN where no rate is expected. Absurd points are left out."""
    x, logged = np.array(run.logged_learning_rates.samples, float), np.array(run.logged_learning_rates.values, float)
    expected = np.full(len(x), np.nan)
    known = min(len(x), len(run.expected_learning_rates.values))
    expected[:known] = run.expected_learning_rates.values[:known]
    kept = (x >= 0) & (x <= MOST_SAMPLES) & (np.abs(logged) <= MOST_VALUE)
    return x[kept], logged[kept], expected[kept]


def rate_difference(logged: Floats, expected: Floats) -> Floats:
    """|logged - expected| over the larger of the two: 0 to 2, and never less than `RATE_FLOOR`, which means equal."""
    larger = np.maximum(np.abs(logged), np.abs(expected))
    share = np.divide(np.abs(logged - expected), larger, out=np.zeros_like(larger), where=larger != 0)
    return np.maximum(share, RATE_FLOOR)


def rate_summary(run: RunSummary) -> tuple[str, str]:
    """The largest logged rate, and the largest relative difference from the expected one or "equal"; "-" for none."""
    _, logged, expected = usable_rates(run)
    differences = rate_difference(logged, expected)[np.isfinite(expected)]
    largest = f"{logged.max():g}" if len(logged) else "-"
    if not len(differences):
        return largest, "-"
    return largest, f"{differences.max():.2g}" if differences.max() > RATE_FLOOR else "equal"


def phase_bars(run: RunSummary) -> dict[str, list[tuple[float, float]]]:
    """Phases as (start, length) in minutes from run_start, by name; without a run_start, from the first training."""
    zero = next((phase.start_ms for phase in run.phases if phase.name == "training"), None)
    zero = run.start_ms if run.start_ms is not None else zero
    bars: dict[str, list[tuple[float, float]]] = {}
    for phase in run.phases:
        start, stop = ((at - (zero or 0)) / 60_000 for at in (phase.start_ms, phase.stop_ms))
        if phase.name in PHASES and -MOST_MINUTES <= start <= stop <= MOST_MINUTES:
            bars.setdefault(phase.name, []).append((start, stop - start))
    return bars


def merged_bars(bars: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The bars; those closer than a picture can show are joined, so that a hundred thousand make no larger file."""
    gap = max(start + length for start, length in bars) / 2000
    merged: list[tuple[float, float]] = []
    for start, length in sorted(bars):
        before, width = merged[-1] if merged else (-math.inf, 0.0)
        if start - before - width < gap:
            merged[-1] = (before, max(width, start + length - before))
        else:
            merged.append((start, length))
    return merged
