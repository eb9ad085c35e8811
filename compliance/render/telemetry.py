"""Picture and table of GPU telemetry. One run shows each of its GPUs, several runs each run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..findings import RunSummary
from ..telemetry import GpuTelemetry, RunTelemetry
from . import plot_parts as parts
from .formatting import NOTHING, count, energy_units, number
from .tables import Table

Floats = NDArray[np.float64]
MAX_BINS = 300  # more than a picture can show makes a larger file
MAX_LINES = 16  # of one panel; more become a band from the smallest to the largest
MAX_REASONS = 8
_GPU: dict[str, Any] = {"color": parts.BLUE}
_MEMORY: dict[str, Any] = {"color": parts.ORANGE}


@dataclass(frozen=True)
class MeasuredRun:
    """A run with telemetry, and its number in the report."""

    number: int
    run: RunSummary
    telemetry: RunTelemetry


@dataclass(frozen=True)
class _Grid:
    """Equal intervals of the time from run_start, in minutes."""

    edges: Floats

    @property
    def centres(self) -> Floats:
        return (self.edges[1:] + self.edges[:-1]) / 2

    def minutes(self, gpu: GpuTelemetry) -> Floats:
        return (gpu.times_ms[gpu.inside] - gpu.window[0]) / 60_000

    def means(self, gpu: GpuTelemetry, column: str) -> Floats:
        """Return the mean of each interval; NaN for one without a value."""
        values, minutes = gpu.values[column][gpu.inside], self.minutes(gpu)
        known = ~np.isnan(values)
        sums, _ = np.histogram(minutes[known], self.edges, weights=values[known])
        counts, _ = np.histogram(minutes[known], self.edges)
        means: Floats = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
        return means

    def bars(self, gpu: GpuTelemetry, reason: str) -> list[tuple[float, float]]:
        """Return the intervals with a reading at which the reason was active, as (start, length)."""
        active = gpu.throttled[reason][gpu.inside]
        counts, _ = np.histogram(self.minutes(gpu)[active], self.edges)
        return [(float(self.edges[n]), float(self.edges[n + 1] - self.edges[n])) for n in np.flatnonzero(counts)]


@dataclass(frozen=True)
class _Panel:
    """Lines of one quantity over time: values per interval, and the look of each."""

    title: str
    label: str
    lines: Sequence[tuple[Floats, dict[str, Any]]]
    inches: float = 1.3


def draw_telemetry(runs: Sequence[MeasuredRun], figure: Figure) -> str:
    """Draw power, clocks, temperatures and throttled intervals over the minutes of the runs."""
    gpus = [gpu for each in runs for gpu in each.telemetry.gpus]
    grid = _make_grid(gpus)
    panels = _panels_of_run(runs[0], grid) if len(runs) == 1 else _panels_of_set(runs, grid)
    panels = [panel for panel in panels if any(np.isfinite(values).any() for values, _ in panel.lines)]
    bars = _throttled_bars(gpus, grid)
    heights = [panel.inches for panel in panels] + ([0.25 + 0.22 * len(bars)] if bars else [])
    if not heights:
        return ""
    figure.set_size_inches(parts.WIDTH, 0.9 + sum(heights))
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, each in zip(panels, axes, strict=False):
        _draw_panel(each, panel, grid)
    if bars:
        _draw_bars(axes[-1], bars)
    axes[-1].set(xlabel="minutes from run_start", xlim=(0, grid.edges[-1]))
    axes[-1].xaxis.set_major_formatter(parts.PLAIN)
    if len(runs) > 1:
        parts.add_legend(figure, [(each.number, each.run) for each in runs], {})
    else:
        looks = {"GPU": _GPU, "memory": _MEMORY}
        entries = {name: Line2D([], [], **look) for name, look in looks.items()}
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=2)
    return _alternative(runs)


def _make_grid(gpus: Sequence[GpuTelemetry]) -> _Grid:
    """Return intervals that hold two readings or more."""
    length = max(gpu.window[1] - gpu.window[0] for gpu in gpus)
    steps = [np.diff(gpu.times_ms[gpu.inside]) for gpu in gpus]
    step = max((float(np.median(each)) for each in steps if len(each)), default=0.0)
    bins = MAX_BINS if step <= 0 else max(1, min(MAX_BINS, int(length / (2 * step))))
    return _Grid(np.linspace(0, max(length, 1.0) / 60_000, bins + 1))


def _panels_of_run(run: MeasuredRun, grid: _Grid) -> list[_Panel]:
    gpus = run.telemetry.gpus

    def lines(column: str, look: dict[str, Any]) -> list[tuple[Floats, dict[str, Any]]]:
        return [(grid.means(gpu, column), look) for gpu in gpus]

    total = np.sum([grid.means(gpu, "power_w") for gpu in gpus], axis=0)
    return [
        _Panel(f"power of {count(len(gpus), 'GPU')}", "kW", [(total / 1000, _GPU)]),
        _Panel("power of each GPU", "W", lines("power_w", _GPU)),
        _Panel("clock of each GPU", "MHz", lines("sm_clock_mhz", _GPU)),
        _Panel("clock of its memory", "MHz", lines("memory_clock_mhz", _MEMORY), 0.6),
        _Panel("temperatures", "°C", [*lines("temperature_c", _GPU), *lines("memory_temperature_c", _MEMORY)]),
    ]


def _panels_of_set(runs: Sequence[MeasuredRun], grid: _Grid) -> list[_Panel]:
    def lines(column: str, combine: Callable[[Floats], Floats]) -> list[tuple[Floats, dict[str, Any]]]:
        looks = [parts.STATUS_STYLES[each.run.status] for each in runs]
        values = [combine(np.array([grid.means(gpu, column) for gpu in each.telemetry.gpus])) for each in runs]
        return [
            (each, {"color": look["color"], "linestyle": look["linestyle"]})
            for each, look in zip(values, looks, strict=True)
        ]

    return [
        _Panel("power of all GPUs of a run", "kW", lines("power_w", lambda each: each.sum(axis=0) / 1000)),
        _Panel("clock of the slowest GPU", "MHz", lines("sm_clock_mhz", np.fmin.reduce)),
        _Panel("temperature of the hottest GPU", "°C", lines("temperature_c", np.fmax.reduce)),
    ]


def _draw_panel(axes: Axes, panel: _Panel, grid: _Grid) -> None:
    looks = {str(look): look for _, look in panel.lines}
    for key, look in looks.items():
        same = [values for values, each in panel.lines if str(each) == key and np.isfinite(values).any()]
        if len(same) > MAX_LINES:
            low, high = np.fmin.reduce(same), np.fmax.reduce(same)
            axes.fill_between(grid.centres, low, high, color=look["color"], alpha=0.4, linewidth=0)
            continue
        for values in same:
            # A marker shows a value whose neighbours are unknown.
            marker = "." if np.isfinite(values).sum() < 3 else None
            axes.plot(grid.centres, values, linewidth=0.8, alpha=0.8, marker=marker, **look)
    axes.set(title=panel.title, ylabel=panel.label)
    axes.yaxis.set_major_formatter(parts.PLAIN)


def _throttled_bars(gpus: Sequence[GpuTelemetry], grid: _Grid) -> dict[str, list[tuple[float, float]]]:
    """Return the intervals in which any GPU was throttled, by reason: those with the most intervals."""
    bars: dict[str, set[tuple[float, float]]] = {}
    for gpu in gpus:
        for reason in gpu.throttled:
            bars.setdefault(reason, set()).update(grid.bars(gpu, reason))
    longest = sorted(bars, key=lambda reason: (-len(bars[reason]), reason))
    return {reason: parts.merge_bars(sorted(bars[reason])) for reason in longest[:MAX_REASONS] if bars[reason]}


def _draw_bars(axes: Axes, bars: dict[str, list[tuple[float, float]]]) -> None:
    for row, intervals in enumerate(bars.values()):
        axes.broken_barh(intervals, (row - 0.3, 0.6), facecolor=parts.RED, linewidth=0)
    axes.set_yticks(range(len(bars)), [*bars], fontsize=7)
    axes.set(ylim=(len(bars) - 0.4, -0.6), title="throttled, any GPU")
    axes.tick_params(axis="y", length=0)


def _alternative(runs: Sequence[MeasuredRun]) -> str:
    gpus = [gpu for each in runs for gpu in each.telemetry.gpus]
    hottest = max((value for gpu in gpus if (value := gpu.highest("temperature_c")) is not None), default=None)
    watts = _total(gpu.mean_watts for gpu in runs[0].telemetry.gpus)
    throttled = _throttled_words(gpus)
    return (
        f"Power, clocks and temperatures of {count(len(gpus), 'GPU')} in {count(len(runs), 'run')}. "
        + (f"Mean power of run {runs[0].number}: {watts:,.0f} W. " if watts is not None else "")
        + (f"Highest temperature: {hottest:.0f} °C. " if hottest is not None else "")
        + f"Seconds throttled, over all GPUs: {throttled}."
    )


def telemetry_table(runs: Sequence[MeasuredRun]) -> Table | None:
    """Return the figures from run_start to run_stop: of each GPU of a single run, else of each run."""
    if not runs:
        return None
    if len(runs) == 1:
        gpus = runs[0].telemetry.gpus
        groups = [*((gpu.name, [gpu]) for gpu in gpus), ("all", [*gpus])]
    else:
        groups = [(str(each.number), [*each.telemetry.gpus]) for each in runs]
    columns = (
        "GPU" if len(runs) == 1 else "Run", "Mean W", "Highest W of a GPU", "kJ", "kWh", "Mean MHz", "Highest °C",
        "Memory, highest °C", "Longest gap, s", "Throttled, s",
    )  # fmt: skip
    return Table(columns, [(name, *_figures(gpus)) for name, gpus in groups], frozenset(range(1, len(columns) - 1)))


def _figures(gpus: Sequence[GpuTelemetry]) -> tuple[str, ...]:
    def highest(column: str) -> float | None:
        return max((value for gpu in gpus if (value := gpu.highest(column)) is not None), default=None)

    clocks = np.concatenate([gpu.known("sm_clock_mhz") for gpu in gpus])
    return (
        number(_total(gpu.mean_watts for gpu in gpus), 1),
        number(highest("power_w"), 1),
        *energy_units(_total(gpu.joules for gpu in gpus)),
        number(float(clocks.mean()) if len(clocks) else None),
        number(highest("temperature_c")),
        number(highest("memory_temperature_c")),
        number(max(gpu.longest_gap_s for gpu in gpus), 1),
        _throttled_words(gpus),
    )


def _total(values: Any) -> float | None:
    """Return the sum, None if one is unknown."""
    known = [*values]
    return None if None in known else sum(known)


def _throttled_words(gpus: Sequence[GpuTelemetry]) -> str:
    seconds: dict[str, float] = {}
    for gpu in gpus:
        for reason, value in gpu.throttled_seconds.items():
            seconds[reason] = seconds.get(reason, 0) + value
    longest = sorted(seconds, key=lambda reason: (-seconds[reason], reason))[:MAX_REASONS]
    return ", ".join(f"{reason} {number(seconds[reason])}" for reason in longest) or NOTHING
