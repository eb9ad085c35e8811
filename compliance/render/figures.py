"""Pictures of the report, drawn with matplotlib's objects: no pyplot, no window, no changed global setting.

Each ``draw_`` function fills the given figure with one picture of a set that `drop_implausible` has prepared. It
returns the alternative text with the key numbers, or "" if the set has nothing to draw. Every picture and table numbers
the runs from 1 in order of their start. The status of a run shows in line and marker as well as in colour, for prints
in grey.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Iterable
from dataclasses import replace
from io import BytesIO
from typing import Any, Literal, TypeVar

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, MultipleLocator, NullLocator

from ..findings import Evaluation, RunSummary, SetResult
from . import plot_parts as parts
from .formatting import count, run_ranges, value_range

Number = TypeVar("Number", int, float)
DrawFunction = Callable[[Figure, SetResult], str]


def render_figure(draw: DrawFunction, result: SetResult, kind: Literal["svg", "png"]) -> tuple[str, str] | None:
    """Return (alternative text, data URI), the same bytes for the same set; None if there is nothing to draw."""
    with style.context(["default", parts.STYLE]):
        figure = Figure(layout="constrained")
        alternative = draw(figure, drop_implausible(result))
        if not alternative:
            return None
        # None removes date and version of matplotlib, which would change the bytes.
        removed = ("Creator", "Date", "Format", "Type") if kind == "svg" else ("Software",)
        image = BytesIO()
        figure.savefig(image, format=kind, dpi=160, metadata=dict.fromkeys(removed))
    media = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return alternative, f"data:{media};base64,{b64encode(image.getvalue()).decode('ascii')}"


def sort_by_start(runs: Iterable[RunSummary]) -> list[RunSummary]:
    """Sort runs by start; runs without a plausible start come last, in the given order."""
    return sorted(
        runs, key=lambda run: math.inf if (start := _within(run.start_ms, parts.MAX_TIME_MS)) is None else start
    )


def drop_implausible(result: SetResult) -> SetResult:
    """Return the set sorted by start, without values that no picture can show: not finite, or implausibly large."""

    def clean(run: RunSummary) -> RunSummary:
        return replace(
            run,
            evaluations=tuple(
                e for e in run.evaluations if 0 <= e.samples <= parts.MAX_SAMPLES and abs(e.loss) <= parts.MAX_VALUE
            ),
            samples_to_target=_within(run.samples_to_target, parts.MAX_SAMPLES),
            minutes=_within(run.minutes, parts.MAX_MINUTES),
            minutes_to_target=_within(run.minutes_to_target, parts.MAX_MINUTES),
            start_ms=_within(run.start_ms, parts.MAX_TIME_MS),
        )

    runs = tuple(clean(run) for run in sort_by_start(result.runs))
    return replace(result, runs=runs, eval_interval_samples=_within(result.eval_interval_samples, parts.MAX_SAMPLES))


def draw_losses(figure: Figure, result: SetResult) -> str:
    """Draw evaluation loss against training samples, whole and near the target, and mark first passes."""
    runs = [(number, run) for number, run in enumerate(result.runs, 1) if run.evaluations]
    if not runs:
        return ""
    figure.set_size_inches(parts.WIDTH, 3.5)
    whole, near = figure.subplots(1, 2, width_ratios=[2, 3])
    targets = sorted({run.target for _, run in runs if abs(run.target) <= parts.MAX_VALUE})
    passes = {number: point for number, run in runs if (point := _first_pass(run))}
    for panel in (whole, near):
        for target in targets:
            panel.axhline(target, color=parts.DARK, linewidth=1, dashes=(5, 2))
        for number, run in runs:
            look = parts.STATUS_STYLES[run.status]
            x, y = [point.samples for point in run.evaluations], [point.loss for point in run.evaluations]
            panel.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=1, label=str(number))
            if number in passes:
                mark = {"marker": look["marker"], "color": look["color"], "markersize": 6}
                panel.plot(passes[number].samples, passes[number].loss, mec="white", mew=0.5, **mark)
        panel.set_xlabel("training samples")
        panel.xaxis.set_major_formatter(parts.THOUSANDS)
        panel.xaxis.set_major_locator(MaxNLocator(3 if panel is whole else 4))
    whole.set(title="whole run", ylabel="evaluation loss (nats per token)", xlim=(0, None))
    if whole.get_ylim()[0] < parts.MAX_LOSS:
        whole.set_ylim(top=min(whole.get_ylim()[1], parts.MAX_LOSS))
    for _, run in runs:
        whole.plot(*parts.plausible_losses(run), color=parts.GREY, linewidth=0.6, zorder=1, scalex=False, scaley=False)
    near.set_title("near the target, with numbers of the runs" if passes else "lowest losses")
    parts.zoom_to_target(near, runs, targets, passes, parts.layout_interval(result))
    first_pass = Line2D([], [], color=parts.DARK, marker="o", linestyle="", markersize=6)
    parts.add_legend(figure, runs, {"first pass": first_pass} if passes else {})
    reached = [point.samples for point in passes.values()]
    lowest = min(point.loss for _, run in runs for point in run.evaluations)
    return (
        f"Evaluation loss against training samples of {count(len(runs), 'run')}. "
        f"Target {', '.join(f'{target:g}' for target in targets)} nats per token, reached by {len(reached)}"
        + (f", at {value_range(reached)} samples" if reached else "")
        + f". Lowest loss {lowest:.4f}."
    )


def draw_samples(figure: Figure, result: SetResult) -> str:
    """Draw samples to target, a dot per run in the column of its evaluation, above the RCPs and their minima."""
    reached = {n: run.samples_to_target for n, run in enumerate(result.runs, 1) if run.samples_to_target is not None}
    if not reached:
        return ""
    tests = [("RCP, pruned", result.rcp.pruned), ("RCP, full", result.rcp.full)] if result.rcp else []
    olympic = result.score.olympic_samples if result.score else None
    known = [x for _, test in tests for x in (test.minimum, test.mean) if x is not None]
    interval = parts.layout_interval(result)
    low, high = parts.samples_limits(interval, [*reached.values(), *known])
    heights = parts.stack_dots(reached, (high - low) / 27)  # 27 dots side by side fill the axis
    tallest = max(3, *heights.values())
    dots_height = 0.3 + 0.23 * min(tallest, 30)
    figure.set_size_inches(parts.WIDTH, 1.75 + dots_height)
    dots, rows = figure.subplots(2, 1, sharex=True, height_ratios=[dots_height, 1.0])
    for number, x in reached.items():
        look = parts.STATUS_STYLES[result.runs[number - 1].status]
        marker = "o" if look["marker"] == "o" else "s"  # with room for the number
        dots.plot(x, heights[number], marker, color=look["color"], markersize=13)
        dots.text(x, heights[number], str(number), color="white", fontsize=7.5, ha="center", va="center_baseline")
    squares = any(parts.STATUS_STYLES[result.runs[number - 1].status]["marker"] != "o" for number in reached)
    title = "samples to target, one dot per run with its number" + ("; square: not valid" if squares else "")
    dots.set(ylim=(0.3, tallest + 0.7), yticks=[], title=title)
    dots.spines["left"].set_visible(False)
    every = f" (an evaluation every {result.eval_interval_samples:,})" if result.eval_interval_samples else ""
    rows.set(xlim=(low, high), xlabel=f"training samples{every}")
    columns = (high - low) / interval
    rows.xaxis.set_major_locator(MultipleLocator(math.ceil(columns / 7) * interval))
    rows.xaxis.set_minor_locator(MultipleLocator(interval) if columns <= 40 else NullLocator())
    rows.xaxis.set_major_formatter(parts.THOUSANDS)
    parts.draw_rcp_rows(rows, olympic, tests)
    for panel in (dots, rows):
        if olympic is not None:
            panel.axvline(olympic, color=parts.BLUE, linewidth=1.2, zorder=0)
        if tests and tests[0][1].minimum is not None:
            panel.axvline(tests[0][1].minimum, color=parts.DARK, linewidth=0.9, dashes=(4, 3), zorder=0)
    rows_read = [f"{name}: mean {t.mean:,.1f}, minimum {t.minimum:,.1f}." for name, t in tests if t.mean and t.minimum]
    return (
        f"Training samples to target of {count(len(reached), 'run')}: {value_range(reached.values())}. "
        + (f"Olympic mean {olympic:,.1f}. " if olympic is not None else "")
        + (" ".join(rows_read) or "No RCP for this batch size.")
    )


def draw_learning_rates(figure: Figure, result: SetResult) -> str:
    """Draw logged learning rates over those of the logged schedule, in the warm-up and overall, and the difference."""
    runs = [(number, run, *parts.plausible_rates(run)) for number, run in enumerate(result.runs, 1)]
    runs = [entry for entry in runs if len(entry[2])]
    if not runs:
        return ""
    last = max(1.0, *(float(x.max()) for _, _, x, *_ in runs))
    early = 2 * max((run.warmup_steps or 0) * (run.global_batch_size or 0) for _, run, *_ in runs)
    panels = [("warm-up", early), ("whole run", last)] if 0 < early < last / 2 else [("whole run", last)]
    figure.set_size_inches(parts.WIDTH, 4.2)
    axes = figure.subplots(
        2, len(panels), sharex="col", sharey="row", squeeze=False, width_ratios=[2, 3][: len(panels)]
    )
    for (title, right), (upper, lower) in zip(panels, axes.T, strict=True):
        for number, run, x, logged, expected in runs:
            shown = x <= right
            look = parts.STATUS_STYLES[run.status]
            line = {"color": look["color"], "linestyle": look["linestyle"], "label": str(number)}
            upper.plot(x[shown], expected[shown], color=parts.GREY, linewidth=4, solid_capstyle="butt", zorder=1)
            upper.plot(x[shown], logged[shown], linewidth=1, **line)
            lower.plot(x[shown], parts.relative_difference(logged, expected)[shown], linewidth=0.8, **line)
        upper.set_title(title)
        lower.set(xlabel="training samples", xlim=(0, right), yscale="log", ylim=(parts.RATE_FLOOR / 20, 4))
        lower.xaxis.set_major_locator(MaxNLocator(3))
        lower.xaxis.set_major_formatter(parts.THOUSANDS)
    upper, lower = axes[:, 0]
    upper.set_ylabel("learning rate")
    upper.yaxis.set_major_formatter(parts.PLAIN)
    lower.set_ylabel("relative difference")
    lower.yaxis.set_major_locator(FixedLocator([parts.RATE_FLOOR, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1]))
    lower.yaxis.set_major_formatter(FixedFormatter(["equal", "1e-15", "1e-12", "1e-9", "1e-6", "0.001", "1"]))
    lower.yaxis.set_minor_locator(NullLocator())
    parts.add_legend(figure, [entry[:2] for entry in runs], {"expected by the logged schedule": upper.get_lines()[0]})
    by_outcome: dict[str, list[int]] = {}
    for number, run, *_ in runs:
        by_outcome.setdefault(parts.rate_summary(run)[1], []).append(number)
    outcomes = "; ".join(f"{outcome} in {run_ranges(chosen)}" for outcome, chosen in by_outcome.items())
    return (
        f"Learning rate against training samples of {count(len(runs), 'run')}, at most "
        f"{max(float(logged.max()) for _, _, _, logged, _ in runs):g}. Largest relative difference from the logged "
        f"schedule, by run: {outcomes}."
    )


def draw_timeline(figure: Figure, result: SetResult) -> str:
    """Draw initialisation, training and evaluation of each run as bars, in minutes from its run_start."""
    bars = [parts.phase_bars(run) for run in result.runs]
    if not any(bars):
        return ""
    figure.set_size_inches(parts.WIDTH, 1.15 + 0.27 * len(bars))
    axes = figure.add_subplot()
    seen: dict[str, Any] = {}
    for row, (run, phases) in enumerate(zip(result.runs, bars, strict=True)):
        for name, intervals in phases.items():
            seen[name] = axes.broken_barh(parts.merge_bars(intervals), (row - 0.3, 0.6), **parts.PHASE_STYLES[name])
        if run.minutes_to_target is not None:
            mark: dict[str, Any] = {"color": parts.ORANGE, "markersize": 5, "mec": parts.DARK, "mew": 0.8, "zorder": 3}
            seen["first passing evaluation"] = axes.plot(run.minutes_to_target, row, "D", **mark)[0]
        if run.minutes is not None:
            seen["run_stop"] = axes.plot(run.minutes, row, "|", color=parts.DARK, markersize=15, mew=1.6, zorder=3)[0]
            axes.annotate(f"{run.minutes:,.1f}", (run.minutes, row), (6, 0), **parts.OFFSET_TEXT)
    parts.label_run_rows(axes, result.runs)
    axes.axvline(0, color=parts.DARK, linewidth=0.8)
    low, high = axes.dataLim.intervalx
    wide = max(high - low, 1e-3)
    axes.set(xlabel="minutes from run_start", xlim=(low - 0.01 * wide, high + 0.1 * wide))
    axes.xaxis.set_major_formatter(parts.THOUSANDS)
    figure.legend(seen.values(), seen.keys(), loc="outside upper left", ncols=5, columnspacing=1.2, handlelength=1.2)
    evaluations = value_range([len(phases.get("evaluation", ())) for phases in bars])
    longest = max((run.minutes for run in result.runs if run.minutes is not None), default=None)
    return (
        f"Timeline of {count(len(bars), 'run')} in start order: initialisation, training and evaluations, "
        f"{evaluations} in each run."
        + (f" The longest takes {longest:,.1f} minutes from run_start to run_stop." if longest is not None else "")
    )


def _within(value: Number | None, limit: float) -> Number | None:
    """Return the value, or None if it is NaN or larger than the limit."""
    return value if value is not None and abs(value) <= limit else None


def _first_pass(run: RunSummary) -> Evaluation | None:
    return next((point for point in run.evaluations if 0 < point.loss <= run.target), None)
