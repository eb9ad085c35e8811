"""Telemetry in the report: a picture and a table, of the GPUs of one run or of several runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from compliance.findings import Status
from compliance.render import plot_parts
from compliance.render import report_file as report_file_module
from compliance.render.report_file import report_file
from compliance.render.telemetry import MAX_LINES, MeasuredRun, draw_telemetry, telemetry_table
from compliance.telemetry import GpuTelemetry, RunTelemetry
from tests.support.commands import command
from tests.support.made_logs import compliant_log
from tests.support.made_reports import made_report, made_run, made_set
from tests.support.made_telemetry import line, made_telemetry, write_lines

MINUTES = 10.0


def measured(count: int = 1, gpus: int = 8, **reasons: tuple[int, int]) -> list[MeasuredRun]:
    runs = [made_run(n, minutes=MINUTES + n) for n in range(count)]
    return [MeasuredRun(n, run, made_telemetry(run, gpus, **reasons)) for n, run in enumerate(runs, 1)]


def drawn(runs: list[MeasuredRun]) -> dict[str, Axes]:
    """Return the panels of the picture by title, laid out."""
    with style.context(["default", plot_parts.STYLE]):
        figure = Figure(layout="constrained")
        assert draw_telemetry(runs, figure)
        FigureCanvasAgg(figure).draw()
    return {axes.get_title("left"): axes for axes in figure.axes}


def heights(axes: Axes) -> list[float]:
    """Return the constant value of each line."""
    values = [np.asarray(each.get_ydata(), float) for each in axes.get_lines()]
    assert all(np.ptp(each) < 1e-6 for each in values)
    return [round(float(each[0]), 6) for each in values]


def test_one_run_shows_each_gpu_and_their_sum() -> None:
    panels = drawn(measured(hw_slowdown=(500, 600)))
    assert [*panels] == [
        "power of 8 GPUs", "power of each GPU", "clock of each GPU", "clock of its memory", "temperatures",
        "throttled, any GPU",
    ]  # fmt: skip
    assert heights(panels["power of 8 GPUs"]) == [5.628]  # kW
    assert heights(panels["power of each GPU"]) == [700.0 + n for n in range(8)]
    assert heights(panels["temperatures"]) == [60.0 + n for n in range(8)]
    bars = panels["throttled, any GPU"]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["hw_slowdown"]
    assert bars.dataLim.intervalx == pytest.approx((5, 6), abs=0.1)  # minutes
    assert bars.get_xlim() == (0, MINUTES)


def test_several_runs_show_a_line_each() -> None:
    panels = drawn(measured(3))
    assert [*panels] == ["power of all GPUs of a run", "clock of the slowest GPU", "temperature of the hottest GPU"]
    (power, clock, temperature) = panels.values()
    assert [len(axes.get_lines()) for axes in (power, clock, temperature)] == [3, 3, 3]
    first, *_, last = (np.asarray(each.get_ydata(), float) for each in power.get_lines())
    assert np.isnan(first[-1]) and last[-1] == pytest.approx(5.628)  # the last run is the longest
    assert np.nanmax(np.asarray(temperature.get_lines()[0].get_ydata(), float)) == 67


def test_many_gpus_are_a_band() -> None:
    panels = drawn(measured(gpus=MAX_LINES + 1))
    power = panels["power of each GPU"]
    assert (len(power.get_lines()), len(power.collections)) == (0, 1)
    low, high = power.dataLim.intervaly
    assert (low, high) == (700, 700 + MAX_LINES)


def test_the_table_of_a_run_has_its_gpus_and_their_sum() -> None:
    table = telemetry_table(measured(gpus=2, hw_slowdown=(500, 600), sw_power_cap=(0, 10)))
    assert table is not None
    first, second, both = table.rows
    assert first == ("GPU 0", "700.0", "700.0", "420.0", "0.117", "1,980", "60", "-", "0.6", "-")
    assert second[-1] == "hw_slowdown 60, sw_power_cap 5"
    assert (both[0], both[1], both[3], both[-1]) == ("all", "1,401.0", "840.6", second[-1])
    sets = telemetry_table(measured(2))
    assert sets is not None
    assert [row[0] for row in sets.rows] == ["1", "2"]
    assert telemetry_table([]) is None


def test_the_least_that_can_be_drawn() -> None:
    (run,) = measured(gpus=1)
    one = {name: np.array([np.nan]) for name in run.telemetry.gpus[0].values}
    times = np.array([run.telemetry.window[0] + 1000])
    for values, panels in (({}, 0), ({"power_w": np.array([700.0])}, 2)):
        gpu = GpuTelemetry("GPU 0", times, one | values, {}, run.telemetry.window)
        alone = MeasuredRun(1, run.run, RunTelemetry(run.run.file, run.telemetry.window, (gpu,)))
        figure = Figure()
        assert bool(draw_telemetry([alone], figure)) is bool(panels)
        assert len(figure.axes) == panels
        table = telemetry_table([alone])
        assert table is not None and table.rows[0][1] == "-"  # one reading covers no time


def test_the_report_has_picture_and_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_file_module, "PICTURES", ())
    result = made_set()
    telemetry = {run.file: made_telemetry(run, hw_slowdown=(1, 2)) for run in result.runs[2:4]}
    for kind in ("html", "md"):
        plain = report_file(made_report(result), kind)
        text = report_file(made_report(result), kind, telemetry=telemetry)
        assert (text.count("data:image/"), plain.count("data:image/")) == (1, 0)
        assert ("hw_slowdown" in text, "hw_slowdown" in plain, "GPU" in plain) == (True, False, False)
        assert len(text) < 300_000
    assert text == report_file(made_report(result), "md", telemetry=telemetry)


def test_the_command_reads_the_files_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = compliant_log(32)
    start, stop = (log.find(key)["time_ms"] for key in ("run_start", "run_stop"))
    path = log.write(tmp_path / "result_0.txt")
    lines = [line(time, gpu) for time in range(start - 60_000, stop + 60_000, 30_000) for gpu in range(2)]
    write_lines(tmp_path / "telemetry.csv", [*lines, "damaged"])
    done = command(capsys, "report", path, "--out", tmp_path / "report.md", "--no-official")
    assert (done.status, len(done.err.splitlines())) == (0, 1)
    assert str(tmp_path / "telemetry.csv") in done.err
    kilojoules = f"{2 * 700 * (stop - start) / 1e6:,.1f}"
    assert f"| all | 1,400.0 | 700.0 | {kilojoules} |" in (tmp_path / "report.md").read_text()


def test_statuses_have_their_looks() -> None:
    runs = measured(2)
    runs[1] = MeasuredRun(2, made_run(1, status=Status.INVALID, minutes=MINUTES), runs[1].telemetry)
    styles = [each.get_linestyle() for each in drawn(runs)["clock of the slowest GPU"].get_lines()]
    assert styles == ["-", ":"]
