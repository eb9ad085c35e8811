"""Pictures of the report: true to the runs, legible, and robust against broken logs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from compliance.findings import Curve, Evaluation, Phase, Rcp, RunSummary, SetResult, Status
from compliance.render import figures, plot_parts
from tests.support.made_reports import (
    FULL,
    GBS,
    INTERVAL,
    LENGTHS,
    MISSING,
    NO_CURVE,
    PRUNED,
    START_MS,
    TARGET,
    made_run,
    made_set,
    mixed_set,
)

DRAWINGS = (
    figures.draw_losses,
    figures.draw_samples,
    figures.draw_learning_rates,
    figures.draw_timeline,
)


def drawn(draw: figures.DrawFunction, result: SetResult) -> Figure:
    """Return one picture as matplotlib's objects, laid out."""
    with style.context(["default", plot_parts.STYLE]):
        figure = Figure(layout="constrained")
        assert draw(figure, figures.drop_implausible(result))
        FigureCanvasAgg(figure).draw()
    return figure


def one_run(**changes: object) -> SetResult:
    """Return a set of one run without figures."""
    return SetResult("", (replace(made_run(0), **changes),), None, None, None)  # type: ignore[arg-type]


def xs(line: Line2D) -> list[float]:
    return list(np.asarray(line.get_xdata(), float))


def ys(line: Line2D) -> list[float]:
    return list(np.asarray(line.get_ydata(), float))


def curves_by_run(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    lines = [line for line in axes.get_lines() if str(line.get_label()).isdigit()]
    return {str(line.get_label()): (xs(line), ys(line)) for line in lines}


def vertical_lines(axes: Axes) -> list[float]:
    return [xs(line)[0] for line in axes.get_lines() if ys(line) == [0, 1]]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_loss_curves_show_evaluations_target_and_first_passes() -> None:
    result = made_set()
    trained_on = (*result.runs[0].evaluations, Evaluation(20 * INTERVAL, 3.32, 0.0, 1))
    runs = (replace(result.runs[0], evaluations=trained_on), *result.runs[1:])
    whole, near = drawn(figures.draw_losses, replace(result, runs=runs)).axes
    for panel in (whole, near):
        curves = curves_by_run(panel)
        assert len(curves) == 10
        for number, run in enumerate(runs, 1):
            assert curves[str(number)] == ([e.samples for e in run.evaluations], [e.loss for e in run.evaluations])
        flat = [line for line in panel.get_lines() if xs(line) == [0, 1]]
        assert [ys(line) for line in flat] == [[TARGET, TARGET]]
        marks = {(xs(line)[0], ys(line)[0]) for line in panel.get_lines() if len(xs(line)) == 1}
        assert marks == {(n * INTERVAL, run.evaluations[n - 1].loss) for n, run in zip(LENGTHS, runs, strict=True)}
    assert near.get_ylim()[0] < 3.32 < TARGET < near.get_ylim()[1] < 3.45
    assert near.get_xlim()[0] < 17 * INTERVAL < 21 * INTERVAL < near.get_xlim()[1]
    below = {text.get_position()[0]: text.get_text() for text in near.texts if "target" not in text.get_text()}
    assert below == {n * INTERVAL: names for n, names in
                     ((17, "10"), (18, "2, 7"), (19, "1, 4\n6, 8"), (20, "3, 9"), (21, "5"))}  # fmt: skip
    assert "target\n3.34" in texts(near)


def test_no_panel_begins_below_zero_samples() -> None:
    early = (Evaluation(INTERVAL, 3.33, 0.0, 1),)
    near = drawn(figures.draw_losses, one_run(evaluations=early)).axes[1]
    assert near.get_xlim() == (0, 2.5 * INTERVAL)


def test_loss_curves_show_the_status_without_colour() -> None:
    figure = drawn(figures.draw_losses, mixed_set())
    lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    kinds = {lines[str(number)].get_linestyle() for number in (1, 4, 6)}
    assert len(kinds) == 3
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["converged: 1-3, 5, 7, 9-12", "not converged: 4", "invalid: 6, 8", "first pass"]


def test_samples_are_dots_in_columns_above_the_rcps() -> None:
    dots, rows = drawn(figures.draw_samples, made_set()).axes
    at = {text.get_text(): text.get_position() for text in dots.texts}
    assert {name: x for name, (x, _) in at.items()} == {str(i): n * INTERVAL for i, n in enumerate(LENGTHS, 1)}
    assert sorted(at[name] for name in ("1", "4", "6", "8")) == [(233_472, n) for n in (1, 2, 3, 4)]
    bars = [tuple(xs(line)) for line in rows.get_lines() if len(xs(line)) == 2]
    assert (PRUNED.minimum, PRUNED.mean) in bars
    assert (FULL.minimum, FULL.mean) in bars
    for panel in (dots, rows):
        assert vertical_lines(panel) == [233_472.0, PRUNED.minimum]
    assert [tick.get_text() for tick in rows.get_yticklabels()] == ["this set", "RCP, pruned", "RCP, full"]
    assert texts(rows) == ["olympic mean 233,472.0", "minimum 222,720.8", "mean 230,058.7", "minimum 229,258.6",
                           "mean 234,837.3"]  # fmt: skip
    assert all(tick % INTERVAL == 0 for tick in rows.get_xticks())


def shrunk(result: SetResult, by: int, interval: int | None) -> SetResult:
    """Return a set of the open division with the same losses at a fraction of the samples."""

    def shrink(run: RunSummary) -> RunSummary:
        points = tuple(replace(each, samples=each.samples // by) for each in run.evaluations)
        return replace(run, evaluations=points, samples_to_target=points[-1].samples, division="open")

    runs = tuple(map(shrink, result.runs))
    return replace(result, runs=runs, rcp=None, score=None, eval_interval_samples=interval)


def test_the_interval_of_the_logs_sets_the_scale() -> None:
    _, rows = drawn(figures.draw_samples, made_set()).axes
    assert rows.get_xlabel() == "training samples (an evaluation every 12,288)"
    small = shrunk(made_set(), 128, 96)
    _, rows = drawn(figures.draw_samples, small).axes
    assert rows.get_xlabel() == "training samples (an evaluation every 96)"
    assert rows.get_xlim() == (14 * 96, 24 * 96)
    assert all(tick % 96 == 0 for tick in rows.get_xticks())
    _, near = drawn(figures.draw_losses, small).axes
    assert near.get_xlim() == (13 * 96, 22.5 * 96)
    for interval in (INTERVAL, 12_320, 2 * INTERVAL):
        large = made_set(eval_interval_samples=interval)
        assert drawn(figures.draw_losses, large).axes[1].get_xlim() == (13 * INTERVAL, 22.5 * INTERVAL)
        assert f"(an evaluation every {interval:,})" in drawn(figures.draw_samples, large).axes[1].get_xlabel()


@pytest.mark.parametrize("interval", [None, 10**11])
def test_an_unknown_or_implausible_interval_is_on_no_picture(interval: int | None) -> None:
    for result in (shrunk(made_set(), 128, interval), made_set(eval_interval_samples=interval)):
        _, rows = drawn(figures.draw_samples, result).axes
        assert rows.get_xlabel() == "training samples"
        _, near = drawn(figures.draw_losses, result).axes
        low, high = near.get_xlim()
        assert low < min(run.samples_to_target or 0 for run in result.runs) < high < 30 * INTERVAL


def test_an_impossible_loss_is_no_pass() -> None:
    impossible = (Evaluation(INTERVAL, 0.0, 0.0, 1), Evaluation(2 * INTERVAL, -1.0, 0.0, 1))
    whole, _ = drawn(figures.draw_losses, one_run(evaluations=(*impossible, *made_run(0).evaluations[2:]))).axes
    assert [xs(line) for line in whole.get_lines() if len(xs(line)) == 1] == [[19 * INTERVAL]]


def test_the_samples_axis_starts_at_zero_and_dots_do_not_overlap() -> None:
    dots, rows = drawn(figures.draw_samples, CASES["far apart"]()).axes
    assert rows.get_xlim() == (0, 80 * INTERVAL)
    assert {text.get_text(): text.get_position()[1] for text in dots.texts} == {
        str(n): 2 if n == 2 else 1 for n in range(1, 11)
    }
    assert "square" not in dots.get_title("left")
    assert drawn(figures.draw_samples, mixed_set()).axes[0].get_title("left").endswith("; square: not valid")


def test_samples_without_a_reference_or_a_score() -> None:
    _, rows = drawn(figures.draw_samples, made_set(rcp=Rcp(96, MISSING, MISSING))).axes
    assert texts(rows) == ["olympic mean 233,472.0", *["no RCP for this batch size"] * 2]
    assert vertical_lines(rows) == [233_472.0]
    _, rows = drawn(figures.draw_samples, made_set(rcp=None, score=None)).axes
    assert texts(rows) == ["no olympic mean"]


def test_learning_rates_show_logged_expected_and_difference() -> None:
    samples, values = made_run(1).logged_learning_rates.samples, made_run(1).logged_learning_rates.values
    wrong = tuple(v * 1.25 if x > 1e5 else v for x, v in zip(samples, values, strict=True))
    runs = [made_run(0), made_run(1, logged_learning_rates=Curve(samples, wrong))]
    warm_up, whole, warm_up_difference, difference = drawn(figures.draw_learning_rates, made_set(runs)).axes
    assert warm_up.get_xlim() == (0, 2 * 128 * GBS)
    assert whole.get_xlim() == (0, 233_472)
    assert curves_by_run(whole)["2"] == (list(samples), list(wrong))
    expected = [line for line in whole.get_lines() if not str(line.get_label()).isdigit()]
    assert [ys(line) for line in expected] == [list(values)] * 2
    assert set(curves_by_run(difference)["1"][1]) == {plot_parts.RATE_FLOOR}
    assert {round(y, 12) for y in curves_by_run(difference)["2"][1]} == {0.0, 0.2}
    assert max(curves_by_run(warm_up_difference)["2"][0]) <= 2 * 128 * GBS
    low, high = difference.get_ylim()
    assert low < plot_parts.RATE_FLOOR and high > 2
    assert warm_up_difference.get_yticklabels()[0].get_text() == "equal"
    assert difference.get_yscale() == "log"


def test_the_floor_is_below_every_difference() -> None:
    at, expected = (32.0, 64.0, 96.0), (8e-4, 8e-4, 0.0)
    logged = (8e-4, math.nextafter(8e-4, 1), 5e-324)
    one = one_run(logged_learning_rates=Curve(at, logged), expected_learning_rates=Curve(at, expected))
    (_, difference) = drawn(figures.draw_learning_rates, one).axes
    equal, smallest, beside_zero = curves_by_run(difference)["1"][1]
    assert equal == plot_parts.RATE_FLOOR < smallest / 10
    assert beside_zero == 1


def test_learning_rates_without_a_logged_schedule() -> None:
    figure = Figure()
    alternative = figures.draw_learning_rates(figure, one_run(expected_learning_rates=NO_CURVE))
    assert alternative.endswith("by run: - in 1.")
    assert np.isnan(curves_by_run(figure.axes[-1])["1"][1]).all()


def test_the_timeline_shows_the_phases_in_minutes_from_run_start() -> None:
    first = made_run(0)
    (axes,) = drawn(figures.draw_timeline, made_set(made_set().runs[::-1])).axes
    bars = [patch.get_extents() for bar in axes.collections[:3] for patch in bar.get_paths()]
    expected = [((p.start_ms - START_MS) / 6e4, (p.stop_ms - START_MS) / 6e4) for p in first.phases]
    assert np.allclose(sorted((bar.x0, bar.x1) for bar in bars), sorted(expected))
    marks = {(line.get_marker(), xs(line)[0], ys(line)[0]) for line in axes.get_lines()}
    for row, run in enumerate(made_set().runs):
        assert ("|", run.minutes, row) in marks
        assert ("D", run.minutes_to_target, row) in marks
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"result_{n}.txt   {n + 1}" for n in range(10)]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_the_timeline_omits_implausible_phases() -> None:
    odd = [Phase("training", 1.0, 2.0), Phase("evaluation", START_MS + 9e4, START_MS), Phase("x", START_MS, START_MS)]
    run = made_run(0, phases=(*odd, Phase("training", START_MS, START_MS + 6e4)))
    assert plot_parts.phase_bars(run) == {"training": [(0.0, 1.0)]}
    assert plot_parts.phase_bars(made_run(0, start_ms=None))["training"][0][0] == 0.0


def shown_boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Return every visible text with its box in pixels. Ticks outside the limits of an axis are not visible."""
    hidden = {
        id(label)
        for axis in itertools.chain.from_iterable((axes.xaxis, axes.yaxis) for axes in figure.axes)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    boxes = []
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        box = text.get_window_extent()
        clipped = text.get_clip_on() and text.axes and not text.axes.bbox.overlaps(box)
        if text.get_visible() and text.get_text() and id(text) not in hidden and not clipped:
            boxes.append((text.get_text(), box))
    return boxes


CASES: dict[str, Callable[[], SetResult]] = {
    "ten": made_set,
    "mixed": mixed_set,
    "one": one_run,
    "same column": lambda: made_set([made_run(i) for i in range(12)]),
    "far apart": lambda: made_set([made_run(i, n) for i, n in enumerate((3, 5, 9, 14, 19, 24, 30, 36, 44, 60))]),
    "none passes": lambda: made_set([made_run(i, status=Status.NOT_CONVERGED) for i in range(10)]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draw", DRAWINGS)
def test_no_text_is_cut_or_overlaps_another(draw: figures.DrawFunction, case: str) -> None:
    result = CASES[case]()
    if draw is figures.draw_samples and case == "none passes":
        assert draw(Figure(), result) == ""
        return
    figure = drawn(draw, result)
    boxes = shown_boxes(figure)
    width, height = figure.bbox.width, figure.bbox.height
    for name, box in boxes:
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, name
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), (one, other)


def test_implausible_points_are_not_drawn() -> None:
    absurd = (Evaluation(10**15, 3.5, 0.0, 1), Evaluation(-1, 3.5, 0.0, 1), Evaluation(INTERVAL, 1e9, 0.0, 1))
    rates = Curve((32.0, 1e15, 64.0), (1e-4, 1e-4, 1e12))
    result = one_run(evaluations=(*made_run(0).evaluations, *absurd), logged_learning_rates=rates)
    curves = curves_by_run(drawn(figures.draw_losses, result).axes[0])
    assert curves["1"][0] == [n * INTERVAL for n in range(1, 20)]
    assert curves_by_run(drawn(figures.draw_learning_rates, result).axes[0])["1"][0] == [32.0]
    high = tuple(Evaluation(n * INTERVAL, 20.0 + n, 0.0, 1) for n in range(3))
    low, top = drawn(figures.draw_losses, one_run(evaluations=high)).axes[0].get_ylim()
    assert low < TARGET < top == plot_parts.MAX_LOSS
    low, top = drawn(figures.draw_losses, one_run(evaluations=high, target=18.0)).axes[0].get_ylim()
    assert low < 18
    assert top > 22


def test_runs_without_a_start_come_last() -> None:
    runs = [made_run(0, start_ms=None), made_run(1, start_ms=math.nan), made_run(3), made_run(2)]
    assert [run.file[-5] for run in figures.sort_by_start(runs)] == ["2", "3", "0", "1"]
