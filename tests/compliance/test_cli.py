"""Commands, their outputs and their exit statuses."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from compliance.cli import ExitCode
from compliance.official import OfficialToolsError
from compliance.rcp import RcpDataError
from compliance.rules import ALL_RULES
from tests.support.commands import command
from tests.support.made_logs import MadeLog, compliant_log, compliant_set, system_description, write_set, write_tree
from tests.support.paths import ROOT
from tests.support.schemas import check_document

CHECKS = ("check-run", "check-set", "check-package")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_set(folder, compliant_set(16))
    return folder


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    logs = compliant_set(16)
    logs[3].set("cache_clear", False)
    write_set(folder, logs)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"), compliant_set(16))


def test_a_compliant_set_passes_ours_and_the_official_tools(good: Path, capsys: Capture) -> None:
    found = command(capsys, "check-set", good, "--format", "json")
    assert (found.status, found.err) == (0, "")
    report = json.loads(found.out)
    check_document("report", report)
    assert report["verdict"] == "pass"
    assert report["official"]["verdict"] == "pass"
    assert report["official"]["divergences"] == []
    assert len([each for each in report["official"]["results"] if each["tool"] == "compliance_checker"]) == 10
    assert report["score"]["valid"] and report["score"]["olympic_minutes"] > 0
    assert len(report["runs"]) == 10


def test_a_violation_has_file_line_and_what_the_official_tools_miss(bad: Path, capsys: Capture) -> None:
    found = command(capsys, "check-set", bad, "--format", "json")
    assert found.status == ExitCode.VIOLATION
    report = json.loads(found.out)
    (error,) = (each for each in report["findings"] if each["severity"] == "error")
    assert (error["rule"], error["file"], error["line"]) == ("cache-clear", str(bad / "result_3.txt"), 1)
    assert (error["expected"], error["got"]) == ("true", "false")
    (divergence,) = report["official"]["divergences"]
    assert [divergence[key] for key in ("tool", "ours", "official")] == ["compliance_checker", "fail", "pass"]
    assert "cache-clear" in divergence["reason"]


@pytest.mark.parametrize("form", ["text", "json", "junit"])
def test_every_check_in_every_format(good: Path, tree: Path, capsys: Capture, form: str) -> None:
    for name, where in zip(CHECKS, (good / "result_2.txt", good, tree), strict=True):
        found = command(capsys, name, where, "--format", form, "--no-official")
        assert (found.status, found.err) == (0, "")
        if form == "json":
            check_document("report", json.loads(found.out))
            assert json.loads(found.out)["official"] is None
        elif form == "junit":
            assert int(ET.fromstring(found.out).attrib["tests"]) > 0
        else:
            assert found.out.startswith("PASS: ")


def test_a_tree_passes_ours_and_the_package_checker_and_stays_untouched(tree: Path, capsys: Capture) -> None:
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    found = command(capsys, "check-package", tree, "--format", "json")
    report = json.loads(found.out)
    assert found.status == 0, found.out
    tools = ("compliance_checker", "rcp_checker", "seed_checker", "system_desc_checker", "package_checker")
    verdicts = {(each["tool"], each["verdict"]) for each in report["official"]["results"]}
    assert verdicts == {(tool, "pass") for tool in tools}
    assert report["official"]["divergences"] == []
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before


@pytest.mark.parametrize("check", CHECKS)
def test_options_reach_every_check(check: str, good: Path, tree: Path, tmp_path: Path, capsys: Capture) -> None:
    system = tmp_path / "sys.json"
    system.write_text(json.dumps(system_description()), encoding="utf-8")
    (waivers := tmp_path / "waivers.toml").write_text("")
    given: dict[str, object] = {"ruleset": "6.0.0", "runs": 3, "cv-limit": 0.01, "official-timeout": 9.0}
    given["waive"] = waivers
    arguments = [str(each) for name, value in given.items() for each in (f"--{name}", value)]
    if check != "check-package":
        arguments += ["--system", str(system)]
    path = {"check-run": good / "result_0.txt", "check-set": good, "check-package": tree}[check]
    found = command(capsys, check, path, *arguments, "--strict", "--no-official", "--format", "json")
    options = json.loads(found.out)["options"]
    assert options == {
        "ruleset": "6.0.0", "runs": 3, "cv_limit": 0.01, "official_timeout": 9.0, "strict": True, "official": False,
        "system": None if check == "check-package" else str(system), "waive": str(waivers),
    }  # fmt: skip
    # One log has no variance; of ten logs it is above the limit, a warning.
    assert found.status == (ExitCode.PASS if check == "check-run" else ExitCode.VIOLATION)
    assert command(capsys, check, path, "--runs", 2).status == ExitCode.USAGE
    assert json.loads(command(capsys, check, path, "--no-official", "--format", "json").out)["ruleset"] == "6.1.0"


USAGE = [
    "check-run",
    "check-run --bogus x",
    "no-such-command",
    "check-set x --ruleset 5.1.0",
    "check-set x --format yaml",
    "check-set x --runs 0",
    "check-set x --official-timeout 0.5",
    "check-set x --cv-limit -1",
    "plan",
    "plan --gbs 0",
    "plan --gbs many",
    "report . --out x.pdf",
    "report . --out no/such/folder/x.html",
    "schema settings",
]


@pytest.mark.parametrize("arguments", USAGE)
def test_wrong_usage_is_2_and_an_error_message(arguments: str, capsys: Capture) -> None:
    found = command(capsys, *arguments.split())
    assert (found.status, found.out) == (ExitCode.USAGE, "")
    assert "Error" in found.err and "Traceback" not in found.err


def test_unreadable_input_is_3_and_an_error_message(tmp_path: Path, good: Path, capsys: Capture) -> None:
    truncated = tmp_path / "cut.log.gz"
    truncated.write_bytes(gzip.compress(compliant_log().text().encode())[:-100])
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    cases = [
        ("check-run", tmp_path / "missing.txt"),
        ("check-run", good),
        ("check-run", Path("a" * 300)),
        ("check-set", Path("a" * 300)),
        ("check-package", Path("a" * 300)),
        ("check-run", truncated),
        ("check-run", tmp_path / "pipe"),
        ("check-set", tmp_path / "empty"),
        ("check-set", tmp_path / "missing"),
        ("check-package", tmp_path / "missing"),
    ]
    for name, path in cases:
        found = command(capsys, name, path)
        assert (found.status, found.out) == (ExitCode.UNREADABLE, "")
        assert found.err.startswith("error: ") and str(path) in found.err and found.err.count("\n") == 1
        shown = command(capsys, name, path, "--format", "json")
        assert shown.status == ExitCode.UNREADABLE
        report = json.loads(shown.out)
        check_document("report", report)
        assert report["verdict"] == "error"
        assert f"error: {report['findings'][0]['message']}\n" == found.err


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyError("surprise"), ExitCode.INTERNAL, "KeyError: 'surprise'"),
        (PermissionError(13, "Permission denied", "shut/x"), ExitCode.UNREADABLE, "error: shut/x: Permission denied"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, ""),
        (OfficialToolsError("not installed"), ExitCode.USAGE, "error: not installed\n"),
        (RcpDataError("not as expected"), ExitCode.USAGE, "error: not as expected\n"),
    ],
    ids=repr,
)
def test_every_error_has_a_status_and_one_line(
    error: BaseException, status: ExitCode, words: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("compliance.cli.check_run", broken)
    found = command(capsys, "check-run", "x")
    assert (found.status, found.out) == (status, "")
    assert words in found.err and len(found.err.splitlines()) <= 1


def test_help_names_every_command_and_exit_status(capsys: Capture) -> None:
    shown = " ".join(command(capsys, "--help").out.split())
    assert all(f"{code.value} " in shown for code in ExitCode)
    for name in (*CHECKS, "plan", "compare", "system-description", "package", "report", "rules", "schema"):
        assert f" {name} " in shown
        assert command(capsys, name, "--help").status == 0


@pytest.mark.parametrize("gbs", [48, 96])
def test_a_plan_is_json_by_default(gbs: int, capsys: Capture) -> None:
    found = command(capsys, "plan", "--gbs", gbs, "--ruleset", "6.0.0")
    plan = json.loads(found.out)
    check_document("plan", plan)
    assert (found.status, plan["gbs"], plan["ruleset"]) == (0, gbs, "6.0.0")
    assert f"Global batch size {gbs}" in command(capsys, "plan", "--gbs", gbs, "--format", "text").out


def test_rules_lists_every_rule_once(capsys: Capture) -> None:
    listed = command(capsys, "rules").out
    table = command(capsys, "rules", "--markdown").out
    ids = [rule.id for rule in ALL_RULES]
    assert len(ids) == len(set(ids))
    for rule in ALL_RULES:
        assert f"{rule.id} (" in listed and f"| `{rule.id}` |" in table
        assert rule.description and rule.citation
    assert "hyperparameter-fixed (error, closed division only)" in listed and "eval-cadence (error)" in listed


def test_a_report_is_one_file(bad: Path, tree: Path, tmp_path: Path, capsys: Capture) -> None:
    one_log = next(tree.rglob("result_0.txt"))  # as a run: a set of one would fail
    for source, name, status in ((bad, "r.html", 1), (bad, "r.md", 1), (tree, "t.html", 0), (one_log, "o.html", 0)):
        out = tmp_path / name
        found = command(capsys, "report", source, "--out", out, "--no-official")
        assert found.status == status
        assert ("cache-clear" if source == bad else "sys_1x8") in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_a_report_draws_its_loss_curve(good: Path, tmp_path: Path, capsys: Capture, suffix: str, start: bytes) -> None:
    curve = tmp_path / f"curve.{suffix}"
    written = ("--out", tmp_path / "r.html", "--curve", curve)
    assert command(capsys, "report", good, "--no-official", *written).status == 0
    assert curve.read_bytes().startswith(start)
    for wrong in (tmp_path / "curve.gif", tmp_path / "no" / "curve.svg"):
        found = command(capsys, "report", good, "--no-official", *written[:2], "--curve", wrong)
        assert found.status == ExitCode.USAGE and "--curve" in found.err


def test_a_report_that_cannot_be_written_is_wrong_usage(good: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "folder.html").mkdir()
    for out in (tmp_path / "folder.html", Path("/proc/report.html")):
        found = command(capsys, "report", good, "--out", out, "--no-official")
        assert found.status == ExitCode.USAGE and "--out" in found.err


# Code, and packages that it must not import, because their import is slow.
SLOW_IMPORTS = {
    "check-set": (
        "import contextlib\nfrom compliance.cli import main\nwith contextlib.suppress(SystemExit):\n    main()",
        {"torch", "megatron", "pandas", "scipy", "matplotlib", "mlperf_logging"},
    ),
    "compare": ("import compliance.cli, compliance.compare, compliance.render.text", {"scipy"}),
    "render": (
        "import compliance.render.text, compliance.render.junit_report",
        {"rich", "numpy", "pydantic", "jinja2", "matplotlib"},
    ),
    "rcp": (
        "from compliance import plan, rcp, score\nrcp.check_convergence(48, 3e5, '6.1.0')",
        {"numpy", "scipy", "pandas", "mlperf_logging", "torch"},
    ),
}


@pytest.mark.parametrize("case", SLOW_IMPORTS)
def test_no_slow_package_is_imported(case: str, good: Path) -> None:
    code, slow = SLOW_IMPORTS[case]
    script = f"import sys\n{code}\nprint('slow:', sorted({slow} & set(sys.modules)))"
    arguments = [sys.executable, "-c", script, "check-set", str(good), "--no-official"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.endswith("slow: []\n")


def test_it_runs_from_anywhere_as_a_module(good: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "compliance", "check-run", str(good / "result_0.txt"), "--format", "json"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["official"]["verdict"] == "pass"
    assert list(tmp_path.iterdir()) == []


def test_the_exit_statuses_are_those_that_scripts_rely_on() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "PASS": 0, "VIOLATION": 1, "USAGE": 2, "UNREADABLE": 3, "INTERNAL": 4, "INTERRUPTED": 130, "TERMINATED": 143,
    }  # fmt: skip


def packaging(folder: Path, logs: list[MadeLog]) -> list[object]:
    """Return the arguments of `package` for these logs, whose names reverse the order of their starts."""
    write_set(folder / "logs", list(reversed(logs)))
    (folder / "sys_1x8.json").write_text(json.dumps(system_description()), encoding="utf-8")
    (folder / "code").mkdir()
    (folder / "code/train.py").write_text("seed = 1\n", encoding="utf-8")
    parts = {"--logs": "logs", "--system": "sys_1x8.json", "--code": "code", "--out": "tree"}
    return ["package", "--no-official", *(each for name, part in parts.items() for each in (name, folder / part))]


def test_a_package_of_passing_logs_is_built_and_checked(tmp_path: Path, capsys: Capture) -> None:
    arguments = packaging(tmp_path, compliant_set(16))
    (tmp_path / "code/weights.so").write_text("", encoding="utf-8")
    built = command(capsys, *arguments, "--official", "--format", "json")
    assert built.status == 0, built.out
    assert "weights.so" in built.err
    report = json.loads(built.out)
    assert ("package_checker", "pass") in {(each["tool"], each["verdict"]) for each in report["official"]["results"]}
    again = command(capsys, *arguments)
    assert again.status == ExitCode.USAGE and "--out" in again.err


def test_a_package_of_failing_logs_is_built_only_by_force(tmp_path: Path, capsys: Capture) -> None:
    logs = compliant_set(16)
    logs[3].set("cache_clear", False)
    arguments = packaging(tmp_path, logs)
    refused = command(capsys, *arguments)
    assert refused.status == ExitCode.VIOLATION and "cache-clear" in refused.err and not (tmp_path / "tree").exists()
    assert command(capsys, *arguments, "--force").status == ExitCode.VIOLATION
    assert (tmp_path / "tree/systems/sys_1x8.json").is_file()


def test_a_package_holds_the_required_runs_in_order_of_start(tmp_path: Path, capsys: Capture) -> None:
    logs = compliant_set(64, runs=4)
    found = command(capsys, *packaging(tmp_path, logs), "--runs", 4)
    assert found.status == ExitCode.PASS, found
    packed = [tmp_path / f"tree/results/sys_1x8/gpt_oss_20b/result_{number}.txt" for number in range(4)]
    assert [path.read_text(encoding="utf-8") for path in packed] == [log.text() for log in logs]


def test_a_package_is_scaled_only_on_request(tmp_path: Path, capsys: Capture) -> None:
    logs = compliant_set(16, samples_to_target=[15 * 12_288] * 5 + [16 * 12_288] * 5)
    arguments = packaging(tmp_path, logs)
    assert command(capsys, *arguments).status == ExitCode.PASS
    assert list((tmp_path / "tree").rglob("scaling.json")) == []
    assert command(capsys, *arguments[:-1], tmp_path / "other", "--write-scaling").status == ExitCode.PASS
    assert len(list((tmp_path / "other").rglob("scaling.json"))) == 1


def test_a_package_of_a_set_with_warnings_is_refused_when_strict(tmp_path: Path, capsys: Capture) -> None:
    logs = compliant_set(64)
    logs[3].find("run_stop")["time_ms"] += 61_000
    found = command(capsys, *packaging(tmp_path, logs), "--strict")
    assert found.status == ExitCode.VIOLATION and not (tmp_path / "tree").exists()


@pytest.mark.parametrize("name", ["r.htm", "r.HTML", "r.MD"])
def test_the_suffix_selects_the_kind_of_report(tmp_path: Path, capsys: Capture, name: str) -> None:
    write_set(tmp_path / "logs", compliant_set(64, runs=3))
    (tmp_path / "logs/results").mkdir()  # alone makes no submission tree
    out = tmp_path / name
    assert command(capsys, "report", tmp_path / "logs", "--no-official", "--runs", 3, "--out", out).status == 0
    assert out.read_text(encoding="utf-8").startswith("#" if "MD" in name else "<!")


def test_only_a_terminal_without_no_color_has_colour(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compliant_log(64).write(tmp_path / "result_0.txt")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "60")

    def shown() -> str:
        return command(capsys, "check-run", log, "--no-official").out

    piped = shown()
    assert "\x1b[" not in piped and 60 < max(map(len, piped.splitlines())) <= 120
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b[" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown()
    assert "\x1b[" not in plain and max(map(len, plain.splitlines())) <= 60
