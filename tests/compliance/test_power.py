"""Energy from power logs: the sum of the rules, the official figure, missing samples, and logs that hold anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlperf_logging.result_summarizer.result_summarizer import _compute_total_power

from compliance import power as power_module
from compliance.check import Options, check_package
from compliance.documents import report_document, to_json
from compliance.findings import Energy, Report, RunEnergy, RunSummary, Score, Severity
from compliance.power import RunPower, read_power, set_energy
from compliance.render import report_file as report_file_module
from compliance.render.report_file import report_file
from compliance.render.review_files import index_page
from compliance.render.text import text_report
from compliance.review import find_results, review
from compliance.submission import read_submission
from tests.support.made_logs import START, MadeLog, compliant_set, event, write_tree
from tests.support.made_power import power_log, switch_log, write_power
from tests.support.made_reports import made_report, made_run, made_set

START_MS, STOP_MS = 1_790_000_300_000, 1_790_000_500_000  # a run of 200 seconds
RESULTS = "results/sys_1x8/gpt_oss_20b"
Change = Callable[[MadeLog], object]


def measured(tmp_path: Path, **devices: MadeLog | bytes) -> RunPower:
    """Return the power of a run of 200 seconds with these logs."""
    root = write_tree(tmp_path / "tree", [MadeLog([])])
    write_power(root / RESULTS, "result_0", [(name, log) for name, log in devices.items() if isinstance(log, MadeLog)])
    for name, content in devices.items():
        if isinstance(content, bytes):
            (root / RESULTS / "power/result_0" / f"{name}.txt").write_bytes(content)
    run = made_run(0, start_ms=float(START_MS), minutes=(STOP_MS - START_MS) / 60_000)
    (folder,) = read_submission(root).results
    (power,) = read_power(folder, [replace(run, file=str(folder.logs[0]))])
    return power


def errors_of(power: RunPower) -> list[tuple[str, int | None]]:
    """Return rule and line of the errors of all devices."""
    return [(error.rule, error.line) for device in power.devices for error in device.errors]


def joules(power: RunPower) -> float | None:
    energy = set_energy([power], None)
    assert energy is not None
    return energy.runs[0].joules


def test_the_energy_is_the_sum_of_readings_times_the_time_before_them(tmp_path: Path) -> None:
    log = power_log(START_MS, STOP_MS, 1000.0)
    log.find("power_reading", 10)["value"] = 4000.0  # the first second of the run
    power = measured(tmp_path, node_0=log)
    assert joules(power) == pytest.approx(1000.0 * 199 + 4000.0)
    assert errors_of(power) == []
    assert power.nodes[0].readings == 201  # one at each end
    assert power.nodes[0].missing == 0


def test_a_reading_across_an_end_of_the_run_counts_in_part(tmp_path: Path) -> None:
    log = power_log(START_MS, STOP_MS, 1000.0)
    for record in log.events:
        record["time_ms"] += 400  # so that 0.4 s of the first reading, which is low, lie inside, and 0.6 s of the last
    assert joules(measured(tmp_path, node_0=log)) == pytest.approx(1000.0 * 199.6 + 100.0 * 0.4)


def test_devices_add_up_and_a_switch_is_estimated(tmp_path: Path) -> None:
    half = power_log(START_MS, STOP_MS, 1000.0).set("conversion_eff", 0.5)
    switch = switch_log(START_MS, 60.0)
    switch.events.insert(0, event("conversion_eff", 0.5, START_MS))
    power = measured(tmp_path, node_0=power_log(START_MS, STOP_MS), node_1=half, sw_0=switch)
    assert joules(power) == pytest.approx(200 * (1000.0 + 500.0 + 30.0))
    assert (len(power.nodes), len(power.switches), errors_of(power)) == (2, 1, [])


def test_the_official_figure_is_the_same_for_a_measurement_of_the_run_alone(tmp_path: Path) -> None:
    start = event("power_measurement_start", None, START_MS, event_type=START)
    readings = [event("power_reading", 900.0 + n % 7, START_MS + 1000 * (n + 1)) for n in range(200)]
    stop = event("power_measurement_stop", None, STOP_MS)
    efficiency = event("conversion_eff", 0.94, START_MS)
    power = measured(tmp_path, node_0=MadeLog([start, efficiency, *readings, stop]), sw_0=switch_log(START_MS, 30.0))
    folder = tmp_path / "tree" / RESULTS
    official = _compute_total_power(str(folder), str(folder / "result_0.txt"), STOP_MS - START_MS, "6.0.0")
    assert joules(power) == pytest.approx(official, rel=1e-12)


# --- faults of a log

ERROR, DOUBT = "package-power", "package-power-doubt"


def drop_readings(first: int, last: int) -> Change:
    """Remove readings, by the seconds from run_start at which they are."""

    def change(log: MadeLog) -> None:
        log.events[:] = [
            each
            for each in log.events
            if each["key"] != "power_reading" or not first <= (each["time_ms"] - START_MS) / 1000 <= last
        ]

    return change


def shifted(seconds: int) -> Change:
    return lambda log: log.shift(0, 1000 * seconds)


@pytest.mark.parametrize(
    ("change", "rule", "missing"),
    [
        (drop_readings(50, 50), None, 0),  # 2 s apart, as whole seconds may be
        (drop_readings(50, 51), ERROR, 2),
        (drop_readings(-10, 30), ERROR, 30),
        (drop_readings(170, 210), ERROR, 30),
        (drop_readings(-10, 210), ERROR, None),
        (shifted(3600), ERROR, 199),
        (lambda log: log.drop("power_measurement_start"), ERROR, 0),
        (lambda log: log.drop("power_measurement_stop"), DOUBT, 0),
        (lambda log: log.find("power_measurement_start").update(time_ms=START_MS - 60_000), DOUBT, 0),
        (lambda log: log.set("power_reading", "1000", 40), ERROR, 0),
        (lambda log: log.set("power_reading", float("nan"), 40), ERROR, 0),
        (lambda log: log.set("power_reading", -1.0, 40), ERROR, 0),
        (lambda log: log.set("conversion_eff", 1.5), DOUBT, 0),
        (lambda log: log.set("conversion_eff", 0), DOUBT, 0),
        (lambda log: log.set("conversion_eff", [9] * 100_000), ERROR, 0),
    ],
)  # fmt: skip
def test_a_fault_is_reported_alone(tmp_path: Path, change: Change, rule: str | None, missing: int | None) -> None:
    log = power_log(START_MS, STOP_MS)
    change(log)
    power = measured(tmp_path, node_0=log)
    assert [each for each, _ in errors_of(power)] == ([rule] if rule else [])
    if missing is not None:
        assert power.nodes[0].missing == missing


def test_an_impossible_value_is_named_by_its_line(tmp_path: Path) -> None:
    log = power_log(START_MS, STOP_MS).set("power_reading", None, 7)
    assert errors_of(measured(tmp_path, node_0=log)) == [(ERROR, 10)]


def test_a_corrupt_record_is_doubted_and_named_by_its_line(tmp_path: Path) -> None:
    lines = power_log(START_MS, STOP_MS).text().splitlines()
    power = measured(tmp_path, node_0="\n".join([*lines[:20], ":::MLLOG {", *lines[20:]]).encode())
    assert errors_of(power) == [(DOUBT, 21)]
    assert joules(power) == pytest.approx(1000.0 * 200)


@pytest.mark.parametrize(("every_ms", "rules"), [(1000, []), (1040, []), (1100, [ERROR]), (1900, [ERROR]), (250, [])])
def test_a_reading_a_second_is_required(tmp_path: Path, every_ms: int, rules: list[str]) -> None:
    power = measured(tmp_path, node_0=power_log(START_MS, STOP_MS, every_ms=every_ms))
    assert [rule for rule, _ in errors_of(power)] == rules


def test_a_run_of_few_readings_is_doubted(tmp_path: Path) -> None:
    log = power_log(START_MS, STOP_MS)
    assert errors_of(measured(tmp_path, node_0=log)) == []
    drop_readings(0, 210)(log)
    assert (DOUBT, None) in errors_of(measured(tmp_path, node_0=log))


def test_a_switch_without_an_estimate_is_measured_by_its_readings(tmp_path: Path) -> None:
    power = measured(tmp_path, node_0=power_log(START_MS, STOP_MS), sw_0=power_log(START_MS, STOP_MS, 50.0))
    assert joules(power) == pytest.approx(200 * 1050.0)
    assert errors_of(power) == [(DOUBT, None)]


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 10_000, b"\xff\xfe:\0", b"\x1f\x8b junk", b"no record", b":::MLLOG {" * 3, b":::MLLOG []\n"],
)
def test_a_log_that_holds_anything_leaves_the_energy_unknown(tmp_path: Path, content: bytes) -> None:
    power = measured(tmp_path, node_0=content, node_1=power_log(START_MS, STOP_MS))
    assert joules(power) is None
    assert (ERROR, None) in errors_of(power)


def test_a_log_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_module, "MAX_FILE_BYTES", 1000)
    power = measured(tmp_path, node_0=power_log(START_MS, STOP_MS))
    assert joules(power) is None
    assert errors_of(power) == [(ERROR, None)]


def test_a_link_out_of_the_tree_is_not_read(tmp_path: Path) -> None:
    outside = power_log(START_MS, STOP_MS).write(tmp_path / "outside.txt")
    root = write_tree(tmp_path / "tree", [MadeLog([])])
    write_power(root / RESULTS, "result_0", [])
    (root / RESULTS / "power/result_0/node_0.txt").symlink_to(outside)
    (folder,) = read_submission(root).results
    assert folder.power == ()


# --- a set, and a submission tree


def made_power(file: str, watts: float | None) -> RunPower:
    device = power_module.Device("node_0.txt", watts, 100, 0, ())
    return RunPower(file, "power/result_0", {0: device}, {}, ())


def test_the_energy_of_a_set_is_that_of_the_runs_that_the_score_keeps() -> None:
    power = [made_power(str(n), joules) for n, joules in enumerate((1.0, 100.0, 5.0, 7.0, 1000.0))]
    score = Score(True, 10.0, 12.5, 1.25, 9.0, 9.0, ("0", "1", "2", "3"), ("1", "0"))
    energy = set_energy(power, score)
    assert energy == Energy(6.0, 7.5, energy.runs if energy else ())
    assert energy is not None and [run.joules for run in energy.runs] == [1.0, 100.0, 5.0, 7.0, 1000.0]
    unknown = set_energy([*power[:3], made_power("3", None)], score)
    assert unknown is not None and unknown.olympic_joules is None
    invalid = set_energy(power, replace(score, valid=False))
    assert invalid is not None and invalid.normalized_joules is None
    assert set_energy([], score) is None


def tree_with_power(tmp_path: Path) -> Path:
    """Write a tree of ten runs and their power logs."""
    logs = compliant_set(64, runs=10)
    root = write_tree(tmp_path / "tree", logs)
    for number, log in enumerate(logs):
        times = [log.find(key)["time_ms"] for key in ("run_start", "run_stop")]
        begin = event("power_measurement_start", None, times[0], event_type=START)
        # A log of a reading a second would have 27,000 lines.
        reading, stop = (
            event("power_reading", 100.0 + number, times[1]),
            event("power_measurement_stop", None, times[1]),
        )
        write_power(root / RESULTS, f"result_{number}", [("node_0", MadeLog([begin, reading, stop]))])
    return root


def power_findings(report: Report) -> list[tuple[str, Severity, str]]:
    return [
        (each.rule, each.severity, str(each.file).rpartition("gpt_oss_20b/")[2])
        for each in report.findings
        if each.rule.startswith("package-power")
    ]


def minutes(run: RunSummary) -> float:
    assert run.minutes is not None
    return run.minutes


def test_a_tree_with_power_logs_has_its_energy(tmp_path: Path) -> None:
    report = check_package(tree_with_power(tmp_path), Options(official=False))
    (result,) = report.sets
    assert result.energy is not None
    for number, (run, energy) in enumerate(zip(result.runs, result.energy.runs, strict=True)):
        assert energy.joules == pytest.approx((100 + number) * 60 * minutes(run))
        assert energy.missing == pytest.approx(60 * minutes(run), abs=1)
    assert ("package-power", Severity.ERROR, "power/result_0/node_0.txt") in power_findings(report)
    assert result.energy.olympic_joules is None  # the missing samples fail the tree


def test_a_review_has_a_column_of_energy_if_a_result_has_power_logs(tmp_path: Path) -> None:
    waivers = tmp_path / "waivers.toml"  # of the missing samples, without which there is a score
    waivers.write_text('[[waiver]]\nrule = "package-power"\npath = "*"\nreason = "r"\nwho = "w"\nuntil = 9999-01-01\n')
    options = Options(official=False, waive=waivers)
    roots = [tree_with_power(tmp_path / "with"), write_tree(tmp_path / "without" / "tree", compliant_set(64))]
    reviews = [review(find_results(root), options, tmp_path / "out") for root in roots]
    energy = check_package(roots[0], options).sets[0].energy
    assert energy is not None and energy.olympic_joules is not None
    assert [each.results[0].energy_joules for each in reviews] == [energy.olympic_joules, None]
    assert ["Energy" in index_page(each) for each in reviews] == [True, False]


def test_a_tree_without_power_logs_says_nothing_of_it(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(64))
    report = check_package(root, Options(official=False))
    assert report.sets[0].energy is None
    assert power_findings(report) == []


def test_the_energy_is_in_every_form_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_file_module, "PICTURES", ())
    runs = made_set().runs
    energies = tuple(RunEnergy(run.file, 1.8e9 + n, 2, 1, 43_000, 5) for n, run in enumerate(runs))
    report = made_report(made_set(energy=Energy(1.8e9, 2.25e9, energies)))
    shown = text_report(report), report_file(report, "html"), report_file(report, "md")
    for text in shown:
        for figure in ("1,800,000.0", "500.000", "2,250,000.0", "625.000", "43,000"):
            assert figure in text
    document = json.loads(to_json(report_document(report)))
    assert document["sets"][0]["energy"]["olympic_joules"] == 1.8e9
    assert document["sets"][0]["energy"]["runs"][9]["joules"] == 1.8e9 + 9
    silent = made_report(made_set())
    for text in text_report(silent), report_file(silent, "html"), report_file(silent, "md"):
        assert "kWh" not in text
