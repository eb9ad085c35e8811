"""Telemetry beside a log: energy and throttled time of the run, and files that hold anything."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance import telemetry as module
from compliance.findings import RunSummary
from compliance.telemetry import LIMITS, RunTelemetry, TelemetryReader
from gptoss20b.telemetry.csv_file import COLUMNS
from tests.support.made_reports import START_MS, made_run
from tests.support.made_telemetry import HEADER, line, write_lines
from tests.support.paths import ROOT

SECOND = 1000.0


def run_in(folder: Path, **changes: Any) -> RunSummary:
    """Return a run of a minute whose log is in the folder."""
    return made_run(0, file=str(folder / "result_0.txt"), **{"start_ms": START_MS, "minutes": 1.0, **changes})


def read(folder: Path, **changes: Any) -> tuple[RunTelemetry, list[str]]:
    reader = TelemetryReader()
    found = reader.read(run_in(folder, **changes))
    assert found is not None
    return found, reader.warnings


def seconds(first: int, last: int, **values: Any) -> list[str]:
    """Return a reading at each second from run_start."""
    return [line(START_MS + n * SECOND, **values) for n in range(first, last + 1)]


def test_the_energy_is_each_reading_times_the_time_since_the_one_before(tmp_path: Path) -> None:
    lines = [*seconds(-10, 29, watts=100), line(START_MS + 32 * SECOND, watts=500), *seconds(33, 80, watts=200)]
    write_lines(tmp_path / "telemetry.csv", lines[::-1])
    found, warnings = read(tmp_path)
    (gpu,) = found.gpus
    assert (gpu.name, warnings) == ("GPU 0", [])
    joules = 29 * 100 + 3 * 500 + 28 * 200
    assert (gpu.joules, gpu.mean_watts) == pytest.approx((joules, joules / 60))
    assert (gpu.highest("power_w"), gpu.longest_gap_s) == (500.0, 3.0)


def test_throttled_time_by_reason(tmp_path: Path) -> None:
    lines = (
        seconds(-5, 9) + seconds(10, 19, reasons="sw_power_cap") + seconds(20, 24, reasons="hw_slowdown|sw_power_cap")
    )
    write_lines(tmp_path / "telemetry.csv", lines + seconds(25, 58) + seconds(59, 90, reasons="hw_slowdown"))
    assert read(tmp_path)[0].gpus[0].throttled_seconds == pytest.approx({"hw_slowdown": 7, "sw_power_cap": 15})


def test_unknown_values(tmp_path: Path) -> None:
    half = [f"{START_MS + n * SECOND:.0f},0,,{'' if n % 2 else 300},,,,,,," for n in range(-1, 61)]
    write_lines(tmp_path / "telemetry.csv", half)
    (gpu,) = read(tmp_path)[0].gpus
    assert (gpu.joules, gpu.mean_watts, gpu.highest("temperature_c")) == (18_000, 300, None)
    write_lines(tmp_path / "telemetry.csv", ["0," + each for each in half], header=f"rack,{HEADER}")
    (gpu,) = read(tmp_path)[0].gpus
    assert gpu.joules == 18_000
    write_lines(tmp_path / "telemetry.csv", [f"{START_MS:.0f},3"], header="time_ms,gpu")
    (gpu,) = read(tmp_path)[0].gpus
    assert (gpu.name, gpu.joules, gpu.mean_watts, gpu.throttled_seconds) == ("GPU 3", None, None, {})


@pytest.mark.parametrize(
    ("changes", "kilojoules"),
    [({}, 6), ({"minutes": None}, 9), ({"start_ms": None, "minutes": None}, 11), ({"start_ms": 1e300}, 6)],
)
def test_a_log_without_start_or_stop(tmp_path: Path, changes: dict[str, Any], kilojoules: float) -> None:
    write_lines(tmp_path / "telemetry.csv", seconds(-20, 90, watts=100))
    assert read(tmp_path, **changes)[0].gpus[0].joules == pytest.approx(1000 * kilojoules, abs=100)


def test_files_of_nodes_and_of_trials(tmp_path: Path) -> None:
    for name, gpu in (("telemetry", 1), ("telemetry_node10", 0), ("telemetry_node2", 0), ("telemetry_mine", 0)):
        write_lines(tmp_path / "trial_0" / f"{name}.csv", seconds(0, 60, gpu=gpu))
    names = [gpu.name for gpu in read(tmp_path)[0].gpus]
    assert names == ["node 0 GPU 1", "node 2 GPU 0", "node 10 GPU 0", "telemetry_mine GPU 0"]
    write_lines(tmp_path / "telemetry.csv", seconds(0, 60, gpu=5))
    assert [gpu.name for gpu in read(tmp_path)[0].gpus] == ["GPU 5"]


def test_no_telemetry_of_the_run(tmp_path: Path) -> None:
    reader = TelemetryReader()
    assert reader.read(run_in(tmp_path)) is None
    assert reader.warnings == []
    write_lines(tmp_path / "telemetry.csv", seconds(100, 200))
    assert reader.read(run_in(tmp_path)) is None
    assert len(reader.warnings) == 1


DAMAGED = (
    "", ",", "1,0", "x" * 5000, "\x00" * 300, "\u6f22\u5b57", "9" * 400 + ",0" + "," * 9, *map(line, (1e15, -1.0)),
    *(line(START_MS, watts=watts) for watts in ("nan", "-inf", "1e300", "9" * 300, "-5", "0x10", "1 W", "700,700")),
    *(line(START_MS, reasons=names) for names in ("<script>", "a|", "x" * 50, "|".join(map(str, range(40))))),
    line(START_MS).replace("GPU-0", "<b>"), line(START_MS).replace("GPU-0", "G" * 100),
)  # fmt: skip


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_is_skipped_with_a_warning(tmp_path: Path, damaged: str) -> None:
    path = write_lines(tmp_path / "telemetry.csv", [*seconds(-1, 9), damaged, HEADER, *seconds(10, 60)])
    found, (warning,) = read(tmp_path)
    assert found.gpus[0].joules == 42_000
    assert warning.startswith(f"{path}: ") and "line 13" in warning


def test_a_second_header_is_no_damage(tmp_path: Path) -> None:
    write_lines(tmp_path / "telemetry.csv", [*seconds(-1, 9), HEADER, *seconds(10, 60)])
    assert read(tmp_path)[1] == []


def test_a_row_that_a_power_cut_has_cut(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "telemetry.csv", seconds(-1, 60))
    path.write_text(path.read_text() + line(START_MS)[:20])
    found, (warning,) = read(tmp_path)
    assert (found.gpus[0].joules, "1 damaged line," in warning) == (42_000, True)


@pytest.mark.parametrize("kind", ["folder", "pipe", "large", "empty", "no time", "binary", "dangling"])
def test_a_file_that_cannot_be_read_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "telemetry.csv"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nothing")
    else:
        contents = {"large": HEADER + "\n", "no time": "gpu,power_w\n0,700\n", "binary": "\x00" * 9999}
        path.write_text(contents.get(kind, ""))
    if kind == "large":
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    reader = TelemetryReader()
    assert reader.read(run_in(tmp_path)) is None
    assert [warning.startswith(f"{path}: ") for warning in reader.warnings] == [True]
    assert reader.read(run_in(tmp_path)) is None  # without a second warning
    assert len(reader.warnings) == 1


def test_hostile_numbers_of_gpus_reasons_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 2)
    monkeypatch.setattr(module, "MAX_GPUS", 3)
    for n in range(3):
        lines = [line(START_MS, gpu=gpu, reasons=f"reason_{gpu}") for gpu in range(50)]
        write_lines(tmp_path / f"telemetry_{n}.csv", lines)
    found, warnings = read(tmp_path)
    assert (len(found.gpus), len(warnings)) == (6, 3)
    assert all(len(gpu.throttled) == 1 for gpu in found.gpus)


CELLS = st.sampled_from(["", "nan", "-0", "1e999", "7", "none", f"{START_MS:.0f}", "a|b", '"', "\x00"]) | st.text(
    max_size=5
)


@settings(max_examples=30)
@given(st.lists(st.lists(CELLS, min_size=9, max_size=12).map(",".join) | st.text(max_size=30)))
def test_any_file_can_be_read(lines: list[str]) -> None:
    parser = module._Parser()
    parser.parse(iter([f"{HEADER}\n".encode(), *(f"{each}\n".encode(errors="replace") for each in lines)]))
    assert parser.damaged + sum(len(rows.times) for rows in parser.gpus.values()) <= len(lines)


def test_the_columns_are_those_that_runs_write_and_the_documentation_explains() -> None:
    assert (",".join(COLUMNS), [*LIMITS]) == (HEADER, [*COLUMNS[3:-1]])
    page = (ROOT / "docs" / "results-and-compliance.md").read_text()
    table = page.partition("<!-- telemetry columns -->")[2].partition("\n\n")[0]
    names = [name for row in table.splitlines()[3:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert names == [*COLUMNS]
