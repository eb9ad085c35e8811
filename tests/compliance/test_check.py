"""Checks of a log, a set and a submission tree: options, reports, and the official tools beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from compliance import check
from compliance.check import Options, check_package, check_run, check_set, unreadable_report
from compliance.findings import Finding, OfficialResult, OfficialTool, Report, Severity, Verdict
from compliance.judge import judge_set, run_findings
from compliance.log_files import InputError, find_logs
from compliance.submission import read_submission
from tests.support.judging import fired, judged
from tests.support.made_logs import MadeLog, compliant_log, compliant_set, system_description, write_set, write_tree

OURS = Options(official=False)


def options(**changes: Any) -> Options:
    return replace(OURS, **changes)


def rules(report: Report, *severities: Severity) -> set[str]:
    return fired(report.findings, *severities)


def test_the_default_options_are_those_of_the_rules() -> None:
    default = Options()
    assert (default.ruleset, default.runs, default.cv_limit, default.strict) == ("6.1.0", 10, 5.0, False)
    assert (default.official, default.system) == (True, None)


def test_one_log_is_checked_alone(tmp_path: Path) -> None:
    path = compliant_log(64, converged=False).write(tmp_path / "result_0.txt")
    report = check_run(path, OURS)
    assert (report.command, report.verdict, report.official) == ("check-run", Verdict.FAIL, None)
    assert rules(report) == {"run-not-converged"}
    assert len([each for each in report.findings if each.severity is Severity.UNVERIFIABLE]) == 4
    assert [run.file for run in report.sets[0].runs] == [str(path)]
    assert report.options["official"] is False and report.options["system"] is None
    assert set(report.tool) == {"compliance", "mlperf-logging", "python"}
    with pytest.raises(InputError, match="a folder"):
        check_run(tmp_path, OURS)


def test_a_set_is_checked_with_its_options(tmp_path: Path) -> None:
    write_set(tmp_path, compliant_set(64, runs=5))
    assert rules(check_set([tmp_path], OURS)) == {"set-count"}
    report = check_set([tmp_path], options(runs=5))
    assert (report.verdict, rules(report)) == (Verdict.PASS, set())
    assert len([each for each in report.findings if each.severity is Severity.UNVERIFIABLE]) == 4
    assert rules(check_set([tmp_path], options(runs=5, cv_limit=0.01))) == {"variance-limit"}
    other = compliant_log(64, 7).set("cache_clear", False).write(tmp_path / "result_5.txt")
    report = check_set([tmp_path], options(runs=6))
    assert report.verdict is Verdict.FAIL
    assert [each.file for each in report.findings if each.rule == "cache-clear"] == [str(other)]


@pytest.mark.parametrize(("strict", "verdict"), [(False, Verdict.PASS), (True, Verdict.FAIL)])
def test_strict_makes_warnings_fail_and_never_notes(tmp_path: Path, strict: bool, verdict: Verdict) -> None:
    logs = [*compliant_set(64, runs=3), compliant_log(64, 3, converged=False)]
    write_set(tmp_path, logs)
    asked = options(runs=4, strict=strict, cv_limit=100)
    assert check_set([tmp_path], asked).verdict is Verdict.PASS  # with a note on the run without convergence
    logs[0].find("run_stop")["time_ms"] += 61_000
    write_set(tmp_path, logs)
    assert check_set([tmp_path], asked).verdict is verdict


@pytest.mark.parametrize(("ruleset", "verdict"), [("6.0.0", Verdict.PASS), ("6.1.0", Verdict.FAIL)])
def test_the_ruleset_is_an_option(tmp_path: Path, ruleset: str, verdict: Verdict) -> None:
    log = compliant_log(64, ruleset="6.0.0", disclosures=False).write(tmp_path / "result_0.txt")
    report = check_run(log, options(ruleset=ruleset))
    assert (report.ruleset, report.verdict) == (ruleset, verdict)


@pytest.mark.parametrize(("accelerators", "wrong"), [("8", set()), ("16", {"batch-arithmetic"})])
def test_a_system_description_applies_to_every_log(tmp_path: Path, accelerators: str, wrong: set[str]) -> None:
    write_set(tmp_path, compliant_set(64, runs=3))
    system = tmp_path / "sys.json"
    system.write_text(json.dumps(system_description(accelerators_per_node=accelerators)), encoding="utf-8")
    asked = options(runs=3, system=system)
    assert rules(check_run(tmp_path / "result_0.txt", asked)) == wrong
    report = check_set([tmp_path], asked)
    assert (rules(report), report.options["system"]) == (wrong, str(system))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"a":', r"sys\.json:2: "),
        ("[]", r"sys\.json:1: "),
        (json.dumps(system_description(number_of_nodes="many")), "number_of_nodes"),
        (None, r"sys\.json: no such file"),
    ],
)
def test_an_unusable_system_description_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    write_set(tmp_path, compliant_set(64, runs=3))
    if text is not None:
        (tmp_path / "sys.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        check_set([tmp_path], options(system=tmp_path / "sys.json"))


def test_an_unreadable_input_has_a_report() -> None:
    report = unreadable_report("check-set", options(ruleset="6.0.0"), "x: no such file")
    assert (report.command, report.ruleset, report.verdict) == ("check-set", "6.0.0", Verdict.ERROR)
    assert [(each.rule, each.severity, each.message) for each in report.findings] == [
        ("input", Severity.ERROR, "x: no such file")
    ]


def test_a_tree_is_checked_with_its_own_system(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(64))
    report = check_package(root, OURS)
    assert (report.command, report.verdict, rules(report)) == ("check-package", Verdict.PASS, set())
    assert {run.system for run in report.sets[0].runs} == {"sys_1x8"} and "sys_1x8" in report.sets[0].name
    assert (report.sets[0].system, report.sets[0].accelerators) == ("sys_1x8, example", 8)
    description = root / "systems" / "sys_1x8.json"
    description.write_text(json.dumps(system_description(accelerators_per_node="16")), encoding="utf-8")
    assert rules(check_package(root, OURS)) == {"batch-arithmetic"}
    report = check_package(root, options(cv_limit=0.01))
    assert rules(report, Severity.WARNING) == {"variance-limit"}
    assert {each.file for each in report.findings if each.rule == "variance-limit"} == {report.sets[0].name}
    with pytest.raises(InputError, match="missing"):
        check_package(root / "missing", OURS)


def test_the_number_of_runs_in_a_tree_is_reported_once(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(64)[:9])
    assert rules(check_package(root, OURS)) == {"package-result-count"}
    assert rules(check_package(root, options(runs=9))) == set()
    # Only the rule on sets reports the window that counts.
    assert "set-count" in rules(check_package(root, options(runs=8)), Severity.INFO)


def test_logs_and_their_tree_agree(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", [log.set("submission_org", "Somebody Else") for log in compliant_set(64)])
    assert rules(check_package(root, OURS)) == {"organisation-agreement"}


# --- our verdicts beside the official ones


def own_verdicts(logs: list[MadeLog], name: str = "") -> dict[tuple[str, str], str]:
    runs = [judged(log, f"{n}") for n, log in enumerate(logs)]
    result, findings = judge_set(runs, "6.1.0", name=name)
    own = check._verdicts_on_files(runs) | check._verdicts_on_set(result, [*run_findings(runs), *findings])
    return {key: each.verdict for key, each in own.items()}


def test_own_verdicts_on_logs_and_sets() -> None:
    verdicts = own_verdicts(compliant_set(64))
    assert set(verdicts.values()) == {"pass"}
    assert set(verdicts) == {
        *(("compliance_checker", f"{n}") for n in range(10)),
        ("rcp_checker", "pruned"), ("rcp_checker", "full"), ("seed_checker", "seeds"),
    }  # fmt: skip
    assert ("rcp_checker", "a set pruned") in own_verdicts(compliant_set(64), name="a set")
    assert {tool for tool, _ in own_verdicts(compliant_set(64, division="open"))} == {"compliance_checker"}


def test_own_verdicts_on_broken_sets() -> None:
    def failing(logs: list[MadeLog]) -> set[tuple[str, str]]:
        return {key for key, verdict in own_verdicts(logs).items() if verdict == "fail"}

    logs = compliant_set(64)
    logs[3].set("seed", "x")
    assert failing(logs) == {("seed_checker", "seeds"), ("compliance_checker", "3")}
    logs = compliant_set(64)
    logs[3] = compliant_log(64, 3, converged=False)
    # A log alone has to converge. In a set, one may not.
    assert failing(logs) == {("compliance_checker", "3")}
    logs[4] = compliant_log(64, 4, converged=False)
    assert ("rcp_checker", "pruned") in failing(logs)


@pytest.mark.parametrize(
    ("gbs", "steps", "pruned", "full"),
    [
        (32, [18] * 7 + [19] * 3, "pass", "fail"),  # faster than only the full points allow
        (32, [17] * 10, "fail", "fail"),
        (32, [20] * 10, "pass", "pass"),
        (72, [30] * 10, "fail", "fail"),  # no points
    ],
)
def test_own_verdicts_on_convergence(gbs: int, steps: list[int], pruned: str, full: str) -> None:
    interval = -(-12_288 // gbs) * gbs
    verdicts = own_verdicts(compliant_set(gbs, samples_to_target=[step * interval for step in steps]))
    assert (verdicts["rcp_checker", "pruned"], verdicts["rcp_checker", "full"]) == (pruned, full)


def test_own_verdicts_on_a_tree(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(64, runs=3))
    tree = read_submission(root)
    file = tree.path("systems/sys_1x8.json")
    finding = Finding("x", Severity.ERROR, "message", file, None, None, None, "")
    for findings, package, system in (
        ([], "pass", "pass"),
        ([finding], "fail", "fail"),
        ([replace(finding, file="another")], "fail", "pass"),
        ([replace(finding, severity=Severity.WARNING)], "pass", "pass"),
    ):
        own = check._verdicts_on_tree(tree, findings)
        assert own["package_checker", str(root)].verdict == package
        assert own["system_desc_checker", file].verdict == system


class PassingTools:
    """Stands for the official tools: passes everything and records the calls."""

    def __init__(self, ruleset: str, timeout_s: float) -> None:
        self.options = (ruleset, timeout_s)
        self.calls: list[tuple[OfficialTool, str]] = []
        self.is_closed = False

    def __enter__(self) -> PassingTools:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True

    def check_files(self, files: Mapping[str, Path]) -> None:
        self.calls += [("compliance_checker", name) for name in files]

    def check_set(self, files: Mapping[str, Path], name: str = "") -> None:
        assert files
        self.calls += [("rcp_checker", f"{name} {part}".strip()) for part in ("pruned", "full")]
        self.calls.append(("seed_checker", f"{name} seeds".strip()))

    def check_system(self, name: str, path: Path) -> None:
        assert path.is_file()
        self.calls.append(("system_desc_checker", name))

    def check_tree(self, name: str, root: Path, only: str | None) -> None:
        assert root.is_dir()
        self.calls.append(("package_checker", name))

    def collect(self) -> tuple[OfficialResult, ...]:
        return tuple(OfficialResult(tool, subject, "pass", (), 0.0) for tool, subject in self.calls)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[PassingTools]:
    """Return the official tools that a test opens."""
    tools: list[PassingTools] = []

    def open_tools(ruleset: str, timeout_s: float, jobs: int | None) -> PassingTools:
        tools.append(PassingTools(ruleset, timeout_s))
        return tools[-1]

    monkeypatch.setattr("compliance.check.OfficialTools", open_tools)
    return tools


SET_CALLS = [("rcp_checker", "pruned"), ("rcp_checker", "full"), ("seed_checker", "seeds")]


def test_the_official_tools_check_every_subject(tmp_path: Path, opened: list[PassingTools]) -> None:
    paths = write_set(tmp_path / "logs", compliant_set(64))
    files = [("compliance_checker", str(path)) for path in paths]
    root = write_tree(tmp_path / "tree", compliant_set(64))
    in_tree = [("compliance_checker", str(log)) for log in find_logs([root / "results/sys_1x8/gpt_oss_20b"])]
    asked = Options(ruleset="6.0.0", official_timeout=7.0)
    reports = [check_run(paths[3], asked), check_set([tmp_path / "logs"], asked), check_package(root, asked)]
    folder = reports[2].sets[0].name
    expected = [
        [files[3]],
        [*SET_CALLS, *files],
        [
            *((tool, f"{folder} {part}") for tool, part in SET_CALLS),
            *in_tree,
            ("system_desc_checker", read_submission(root).path("systems/sys_1x8.json")),
            ("package_checker", str(root)),
        ],
    ]
    for report, tools, calls in zip(reports, opened, expected, strict=True):
        assert sorted(tools.calls) == sorted(calls)
        assert (tools.is_closed, tools.options) == (True, ("6.0.0", 7.0))
        assert report.official is not None and report.official.divergences == ()
        assert [(each.tool, each.subject) for each in report.official.results] == tools.calls


def test_subjects_that_only_we_fail_are_divergences(tmp_path: Path, opened: list[PassingTools]) -> None:
    logs = compliant_set(64)
    logs[3].set("cache_clear", False)
    for number in (4, 5):
        logs[number].set("seed", "x")
    root = write_tree(tmp_path / "tree", logs)
    folder = root / "results/sys_1x8/gpt_oss_20b"
    wrong = [str(folder / f"result_{number}.txt") for number in (3, 4, 5)]
    alone, together, tree = check_run(Path(wrong[0])), check_set([folder]), check_package(root)
    assert alone.official is not None and together.official is not None and tree.official is not None
    assert [each.subject for each in alone.official.divergences] == wrong[:1]
    assert [each.subject for each in together.official.divergences] == ["seeds", *wrong]
    assert {each.subject for each in tree.official.divergences} == {f"{tree.sets[0].name} seeds", *wrong, str(root)}
    assert len(opened) == 3


def test_results_of_closed_division_tools_are_left_out_of_open_reports(
    tmp_path: Path, opened: list[PassingTools]
) -> None:
    paths = write_set(tmp_path, compliant_set(64, division="open"))
    report = check_set([tmp_path])
    assert report.official is not None
    assert [(each.tool, each.subject) for each in report.official.results] == [
        ("compliance_checker", str(path)) for path in paths
    ]
    assert set(SET_CALLS) < set(opened[0].calls)


def test_the_official_tools_need_not_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("compliance.check.version", nowhere)
    report = check_run(compliant_log(64).write(tmp_path / "result_0.txt"), OURS)
    assert report.verdict is Verdict.PASS and report.tool["mlperf-logging"] == "not installed"
