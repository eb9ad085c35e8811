"""Waivers: a finding that is accepted stays visible and does not fail."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import date, timedelta
from pathlib import Path

import pytest

from compliance.check import Options, check_package, check_run, check_set
from compliance.cli import ExitCode
from compliance.documents import report_document, to_json
from compliance.findings import Finding, Report, Severity, Status, Verdict
from compliance.log_files import InputError
from compliance.render.junit_report import junit_report
from compliance.render.report_file import report_file
from compliance.render.text import text_report
from compliance.waivers import read_waivers
from tests.support.commands import command
from tests.support.made_logs import compliant_log, compliant_set, system_description, write_set, write_tree
from tests.support.schemas import check_document

TODAY = date.today()


def waivers_file(folder: Path, *entries: tuple[str, str], until: date = TODAY) -> Path:
    """Write a waiver for each rule and path."""
    path = folder / "waivers.toml"
    text = 'reason = "known <cause>"\nwho = "Ada"\n'
    path.write_text(
        "".join(f'[[waiver]]\nrule = "{rule}"\npath = "{glob}"\n{text}until = {until}\n' for rule, glob in entries)
    )
    return path


def by_severity(report: Report, severity: Severity) -> list[tuple[str, str | None]]:
    return [
        (each.rule, each.file and Path(each.file).name) for each in report.findings if each.severity is severity
    ]  # fmt: skip


def bad_set(folder: Path) -> Path:
    """Write a set whose runs 3 and 5 did not clear the caches."""
    logs = compliant_set(16)
    for number in (3, 5):
        logs[number].set("cache_clear", False)
    write_set(folder, logs)
    return folder


def test_a_set_whose_only_errors_are_waived_has_a_score(tmp_path: Path) -> None:
    logs = bad_set(tmp_path / "logs")
    waive = waivers_file(tmp_path, ("cache-clear", "result_[35].txt"))
    report = check_set([logs], Options(official=False, waive=waive))
    assert (report.verdict, by_severity(report, Severity.ERROR)) == (Verdict.PASS, [])
    assert by_severity(report, Severity.WAIVED) == [("cache-clear", "result_3.txt"), ("cache-clear", "result_5.txt")]
    assert report.sets[0].score is not None and report.sets[0].score.valid
    assert {run.status for run in report.sets[0].runs} == {Status.CONVERGED}


def test_a_waiver_is_for_its_file_and_rule_only(tmp_path: Path) -> None:
    logs = bad_set(tmp_path / "logs")
    waive = waivers_file(tmp_path, ("cache-clear", "logs/result_3.txt"), ("seed", "result_5.txt"))
    report = check_set([logs], Options(official=False, waive=waive))
    assert report.verdict is Verdict.FAIL
    assert by_severity(report, Severity.WAIVED) == [("cache-clear", "result_3.txt")]
    assert by_severity(report, Severity.ERROR) == [("cache-clear", "result_5.txt")]
    # The waiver of rule seed accepts nothing, which is a note; the invalid run is another.
    assert ("waiver-unused", "waivers.toml") in by_severity(report, Severity.INFO)
    assert len([each for each in report.findings if each.rule == "waiver-unused"]) == 1
    assert report.sets[0].score is not None and not report.sets[0].score.valid


def test_an_expired_waiver_accepts_nothing_and_is_a_warning(tmp_path: Path) -> None:
    logs = bad_set(tmp_path / "logs")
    waive = waivers_file(tmp_path, ("cache-clear", "*"), until=TODAY - timedelta(days=1))
    report = check_set([logs], Options(official=False, waive=waive))
    assert report.verdict is Verdict.FAIL and by_severity(report, Severity.WAIVED) == []
    assert by_severity(report, Severity.WARNING) == [("waiver-expired", "waivers.toml")]
    assert not any(each.rule == "waiver-unused" for each in report.findings)


def test_a_finding_on_a_whole_set_is_waived_by_a_star(tmp_path: Path) -> None:
    write_set(tmp_path / "logs", compliant_set(64, runs=5))
    for glob, verdict in (("result_*", Verdict.FAIL), ("*", Verdict.PASS)):
        waive = waivers_file(tmp_path, ("set-count", glob))
        report = check_set([tmp_path / "logs"], Options(official=False, waive=waive))
        assert report.verdict is verdict
        assert report.sets[0].score is not None and report.sets[0].score.valid is (verdict is Verdict.PASS)


def test_a_warning_is_waived_when_strict(tmp_path: Path) -> None:
    log = compliant_log(64)
    log.find("run_stop")["time_ms"] += 61_000
    path = log.write(tmp_path / "result_0.txt")
    assert check_run(path, Options(official=False, strict=True)).verdict is Verdict.FAIL
    waive = waivers_file(tmp_path, ("clock-stop-late", "result_0.txt"))
    report = check_run(path, Options(official=False, strict=True, waive=waive))
    assert report.verdict is Verdict.PASS
    (waived,) = (each for each in report.findings if each.waived)
    assert waived.waived is not None and waived.waived.severity is Severity.WARNING


@pytest.mark.parametrize("runs", [10, 9])
def test_a_tree_whose_only_errors_are_waived_has_a_score(tmp_path: Path, runs: int) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(16)[:runs])
    for file in (root / "benchmarks").rglob("README.md"):
        file.unlink()
    waive = waivers_file(
        tmp_path, ("package-code", "benchmarks/gpt_oss_20b"), ("package-result-count", "results/*/gpt_oss_20b")
    )
    report = check_package(root, Options(official=False, waive=waive))
    assert report.verdict is Verdict.PASS
    expected = {"package-code"} | ({"package-result-count"} if runs < 10 else set())
    assert {rule for rule, _ in by_severity(report, Severity.WAIVED)} == expected
    assert report.sets[0].score is not None and report.sets[0].score.valid


def test_a_finding_of_all_logs_is_one_unless_a_waiver_parts_them(tmp_path: Path) -> None:
    logs = compliant_set(64, runs=3)
    for log in logs:
        log.set("submission_org", "TODO")
    write_set(tmp_path / "logs", logs)
    for glob, files in (("*", [None]), ("result_1.txt", ["result_1.txt"])):
        waive = waivers_file(tmp_path, ("submission-placeholder", glob))
        report = check_set([tmp_path / "logs"], Options(official=False, runs=3, waive=waive))
        assert [file for _, file in by_severity(report, Severity.WAIVED)] == files
        assert len(by_severity(report, Severity.WARNING)) == (0 if glob == "*" else 2)


@pytest.mark.parametrize("form", ["text", "json", "junit", "html", "md"])
def test_every_form_shows_reason_and_person(tmp_path: Path, form: str) -> None:
    waive = waivers_file(tmp_path, ("cache-clear", "*"))
    report = check_set([bad_set(tmp_path / "logs")], Options(official=False, waive=waive))
    if form == "json":
        document = json.loads(to_json(report_document(report)))
        check_document("report", document)
        (three, _) = (each for each in document["findings"] if each["severity"] == "waived")
        assert three["waived"] == {
            "severity": "error", "who": "Ada", "reason": "known <cause>", "until": TODAY.isoformat()
        }  # fmt: skip
        assert all(each["waived"] is None for each in document["findings"] if each["severity"] != "waived")
    elif form == "junit":
        suites = ET.fromstring(junit_report(report))
        assert suites.get("failures") == "0"
        shown = [case.find("system-out") for case in suites.iter("testcase") if case.get("name", "").endswith("3.txt")]
        assert shown[0] is not None and "Ada" in str(shown[0].text) and "known <cause>" in str(shown[0].text)
    else:
        text = text_report(report) if form == "text" else report_file(report, form)  # type: ignore[arg-type]
        cause = "known <cause>" if form == "text" else "known &lt;cause&gt;"
        assert "Ada" in text and cause in text and "2 waived" in text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[[waiver]]\nrule = "no-rule"\npath = "*"\nreason = "r"\nwho = "w"\nuntil = 2027-01-01', "waiver 1.*no-rule"),
        ('[[waiver]]\nrule = "seed"\npath = "*"\nreason = " "\nwho = "w"\nuntil = 2027-01-01', "waiver 1.*reason"),
        ('[[waiver]]\nrule = "seed"\npath = "*"\nwho = "w"\nuntil = 2027-01-01', "waiver 1 reason"),
        ('[[waiver]]\nrule = "seed"\npath = ""\nreason = "r"\nwho = "w"\nuntil = 2027-01-01', "waiver 1.*path"),
        ('[[waiver]]\nrule = "seed"\npath = "*"\nreason = "r"\nwho = "w"\nuntil = "soon"', "waiver 1 until"),
        ('[[waiver]]\nrule = "seed"\npath = "*"\nreason = "r"\nwho = "w"\nuntil = 2027-01-01\nby = 1', "waiver 1 by"),
        ('[waiver]\nrule = "seed"', "waiver"),
        ('[[waivers]]\nrule = "seed"', "waivers"),
        ("[[waiver", "TOML"),
        ("\x00", "TOML"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_names_the_entry(tmp_path: Path, text: str | None, named: str) -> None:
    path = tmp_path / "w.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"w\.toml.*{named}"):
        read_waivers(path)


def test_the_second_wrong_entry_is_named_and_unreadable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = waivers_file(tmp_path, ("seed", "*"), ("seed", "*"))
    path.write_text(path.read_text().replace('who = "Ada"', "", 2).replace('path = "*"\n', 'path = "*"\nwho="A"\n', 1))
    log = compliant_log(64).write(tmp_path / "result_0.txt")
    found = command(capsys, "check-run", log, "--no-official", "--waive", path)
    assert found.status == ExitCode.UNREADABLE and "waiver 2 who" in found.err and "waiver 1" not in found.err


def test_a_waiver_applies_on_its_last_day_and_never_to_notes(tmp_path: Path) -> None:
    path = waivers_file(tmp_path, ("seed", "*"), until=date(2027, 3, 31))
    wrong = Finding("seed", Severity.ERROR, "no integer", "a/result_0.txt", 3, None, None, "a rule")
    note = Finding("seed", Severity.INFO, "a note", "a/result_0.txt", 3, None, None, "a rule")
    on_last_day, after = (read_waivers(path, day) for day in (date(2027, 3, 31), date(2027, 4, 1)))
    assert on_last_day.waive(wrong).severity is Severity.WAIVED and on_last_day.waive(note) == note
    assert after.waive(wrong) == wrong


def test_a_package_is_built_of_waived_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad_set(tmp_path / "logs")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train.py").write_text("x = 1\n")
    described = system_description()
    del described["cooling"]
    (tmp_path / "sys_1x8.json").write_text(json.dumps(described))
    parts = {"--logs": "logs", "--system": "sys_1x8.json", "--code": "code", "--out": "tree"}
    arguments = [
        "package",
        "--no-official",
        *(each for name, part in parts.items() for each in (name, tmp_path / part)),
    ]
    one = waivers_file(tmp_path, ("cache-clear", "*"))
    assert command(capsys, *arguments, "--waive", one).status == ExitCode.VIOLATION
    both = waivers_file(tmp_path, ("cache-clear", "*"), ("package-system-description", "systems/sys_1x8.json"))
    assert command(capsys, *arguments, "--waive", both).status == ExitCode.PASS
    assert "known" in (tmp_path / "tree/benchmarks/gpt_oss_20b/README.md").read_text()
