"""Review of a results repository: what is found, judged and written; hostile names; processes that die."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openpyxl
import pytest

from compliance import review
from compliance.check import Options, check_submission
from compliance.cli import ExitCode
from compliance.findings import Report, Verdict
from compliance.review import find_results
from compliance.submission import Submission, read_submission
from tests.support.commands import Outcome, command
from tests.support.made_logs import MadeLog, compliant_set, system_description, write_tree
from tests.support.paths import ROOT
from tests.support.schemas import check_document

Capture = pytest.CaptureFixture[str]
FORMULA = "=HYPERLINK(1)"
SCRIPT = "<script>alert(1)</script>"


def submission(path: Path, system: str = "sys_1x8", logs: list[MadeLog] | None = None, **described: Any) -> Path:
    return write_tree(path, logs or compliant_set(16), system, system_description(**described))


def reviewed(capsys: Capture, root: Path, out: Path, *options: str) -> Outcome:
    return command(capsys, "review", root, "--no-official", "--out", out, *options)


def rows(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the results of summary.json by submission and system."""
    return {
        (row["submission"], row["system"]): row for row in json.loads((out / "summary.json").read_text())["results"]
    }


@dataclass(frozen=True)
class Reviewed:
    root: Path
    out: Path
    outcome: Outcome


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Reviewed:
    """Return a review of both divisions: good, failing and hostile submissions, and other benchmarks."""
    folder = tmp_path_factory.mktemp("mixed")
    root, out = folder / "round", folder / "out"
    submission(root / "closed" / "Alpha", submitter="Alpha", number_of_nodes="2", accelerators_per_node="4")
    failing = compliant_set(32)
    failing[3].set("cache_clear", False)
    submission(root / "closed" / "Alpha", "sys_gbs32", failing, submitter="Alpha")
    submission(root / "closed" / "Beta", submitter=FORMULA, accelerator_model_name="\tcmd")
    broken = submission(root / "closed" / SCRIPT.replace("/", ""), "\u202e ..", submitter=SCRIPT)
    (broken / "results" / "\u202e .." / "gpt_oss_20b" / "result_3.txt").write_bytes(b"\x1f\x8b damaged")
    submission(root / "open" / "Gamma", logs=compliant_set(64, division="open"), division="open", submitter="Gamma")
    for name in ("closed/Alpha/results/a/llama31_8b", "closed/Alpha/results/b/llama31_8b", "open/None/results/a/rgat"):
        (root / name).mkdir(parents=True)
    (root / "closed" / "outside").symlink_to(submission(folder / "elsewhere"))
    command_line = [sys.executable, "-m", "compliance", "review", str(root), "--no-official", "--out", str(out)]
    done = subprocess.run(command_line, capture_output=True, text=True, cwd=ROOT, check=False)
    return Reviewed(root, out, Outcome(done.returncode, done.stdout, done.stderr))


def test_every_result_is_judged_and_a_broken_one_stops_no_other(mixed: Reviewed) -> None:
    assert (mixed.outcome.status, mixed.outcome.err) == (ExitCode.VIOLATION, "")
    found = rows(mixed.out)
    verdicts = {(row["submitter"], row["system"]): row["verdict"] for row in found.values()}
    assert verdicts == {
        ("Alpha", "sys_1x8"): "pass", ("Alpha", "sys_gbs32"): "fail", (FORMULA, "sys_1x8"): "pass",
        ("<script>alert(1)<script>", "\\u202e .."): "error", ("Gamma", "sys_1x8"): "pass",
    }  # fmt: skip
    failed = found["closed/Alpha", "sys_gbs32"]
    assert (failed["errors"], failed["failed_rules"], failed["minutes"]) == (1, ["cache-clear"], None)
    unreadable = next(row for row in found.values() if row["verdict"] == "error")
    assert "result_3.txt" in unreadable["reason"] and unreadable["page"] is None


def test_a_row_has_the_figures_of_its_result(mixed: Reviewed) -> None:
    row = rows(mixed.out)["closed/Alpha", "sys_1x8"]
    expected = {
        "nodes": 2, "accelerators_per_node": 4, "division": "closed", "status": "Available on-premise", "runs": 10,
        "global_batch_size": 16, "learning_rate": 4e-4, "warmup_steps": 128, "precision": "bfloat16",
        "layout": "TP 1, PP 1, CP 1, EP 8, MBS 2", "normalization": 1.0, "errors": 0,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    only = read_submission(mixed.root / "closed" / "Alpha", only="sys_1x8")
    (judged,) = check_submission(only, Options(official=False)).sets
    assert judged.score and judged.rcp and judged.variance and judged.variance.samples and judged.variance.minutes
    assert row["minutes"] == judged.score.olympic_minutes == row["normalized_minutes"]
    assert row["samples"] == judged.score.olympic_samples
    assert row["rcp_margin_samples"] == judged.rcp.pruned.margin_samples
    assert row["samples_cv_percent"] == judged.variance.samples.cv_percent
    assert row["minutes_cv_percent"] == judged.variance.minutes.cv_percent
    assert judged.score.olympic_minutes_to_target is not None
    assert row["seconds_per_sample"] == pytest.approx(60 * judged.score.olympic_minutes_to_target / row["samples"])


def test_other_benchmarks_are_counted_and_links_are_not_followed(mixed: Reviewed) -> None:
    summary = json.loads((mixed.out / "summary.json").read_text())
    check_document("review", summary)
    assert summary["other_benchmarks"] == {"llama31_8b": 2, "rgat": 1}
    assert summary["submissions"] == 5
    assert [str(mixed.root / "closed" / "outside") in each for each in summary["skipped"]] == [True]
    assert "llama31_8b 2, rgat 1" in mixed.outcome.out


def test_no_cell_becomes_a_formula(mixed: Reviewed) -> None:
    with (mixed.out / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["Submitter"] for row in table} >= {f"'{FORMULA}"}
    sheet = openpyxl.load_workbook(mixed.out / "summary.xlsx").active
    assert sheet is not None
    cells = [cell for row in sheet.iter_rows() for cell in row]
    assert FORMULA in {cell.value for cell in cells} and "f" not in {cell.data_type for cell in cells}
    minutes = {row["Submitter"]: row["Minutes"] for row in table}
    assert float(minutes["Alpha"] or minutes["Gamma"]) > 0


def test_the_page_is_self_contained_and_its_links_resolve(mixed: Reviewed) -> None:
    page = (mixed.out / "index.html").read_text()
    assert SCRIPT not in page and page.count("<script>") == 1 and "\u202e" not in page
    # Two submissions may name one submitter: the folder tells them apart.
    assert ">closed/Beta</div>" in page and re.search(r"^ *closed/Beta +sys_1x8 +pass", mixed.outcome.out, re.MULTILINE)
    targets = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert len(targets) == len(set(targets)) == 4  # the unreadable result has no page
    for target in targets:
        assert not urlsplit(target).scheme
        text = (mixed.out / target).read_text()
        assert text.count("data:image/svg+xml") == 1 and "Evaluation loss" in text


def test_a_click_sorts_the_table(mixed: Reviewed, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium to run the page's script")
    page = (mixed.out / "index.html").read_text()
    titles = re.findall(r"<button[^>]*>([^<]*)", page)

    def shown_after(title: str, clicks: int) -> list[str]:
        click = f"document.querySelectorAll('th button')[{titles.index(title)}].click();" * clicks
        changed = page.replace("script-src ", "script-src 'nonce-test' ")
        (tmp_path / "page.html").write_text(changed + f"<script nonce=test>{click}</script>")
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
        ]
        ran = [chromium, *options, (tmp_path / "page.html").as_uri()]
        dom = subprocess.run(ran, capture_output=True, text=True, check=True, timeout=60).stdout
        body = dom.partition("<tbody>")[2].partition("</tbody>")[0]
        return [re.findall(r'data-value="([^"]*)"', row)[titles.index(title)] for row in body.split("</tr>")[:-1]]

    assert shown_after("GBS", 1) == ["16", "16", "32", "64", ""]
    assert shown_after("GBS", 2) == ["64", "32", "16", "16", ""]
    assert shown_after("Learning rate", 1) == ["0.0004", "0.0004", "0.0008", "0.001", ""]
    assert shown_after("Verdict", 1) == ["error", "fail", "pass", "pass", "pass"]


@pytest.mark.parametrize("layout", ["", "Alpha", "closed/Alpha"])
def test_each_layout_is_found(layout: str, tmp_path: Path) -> None:
    submission(tmp_path / "round" / layout)
    found = find_results(tmp_path / "round")
    assert [(each.submission, each.system) for each in found.results] == [(layout or ".", "sys_1x8")]
    assert found.submissions == 1


def test_page_names_are_safe_and_unique(tmp_path: Path) -> None:
    for name in ("a b", "a-b", "a..-b", "A%b", "\u202e", "x" * 200):
        (tmp_path / name / "results" / "s" / "gpt_oss_20b").mkdir(parents=True)
    pages = [each.page for each in find_results(tmp_path).results]
    assert len({page.lower() for page in pages}) == 6
    assert all(re.fullmatch(r"pages/\w[\w-]{0,105}\.html", page, re.ASCII) for page in pages)


def test_a_result_answers_for_its_submission_and_not_for_other_results(tmp_path: Path) -> None:
    tree = submission(tmp_path)
    submission(tree, "bad", [log.set("cache_clear", False) for log in compliant_set(16)])
    (tree / "systems" / "bad.json").write_text("{}")
    options = Options(official=False)

    def errors(system: str) -> set[str | None]:
        report = check_submission(read_submission(tree, only=system), options)
        return {finding.rule for finding in report.findings if finding.severity == "error"}

    assert not errors("sys_1x8")
    assert errors("bad") == {"cache-clear", "package-system-description"}
    for readme in tree.rglob("README.md"):
        readme.unlink()
    assert errors("sys_1x8") == {"package-code"}
    assert "package-code" in errors("bad")


def test_the_official_tools_see_one_result(tmp_path: Path) -> None:
    tree = submission(tmp_path)
    submission(tree, "bad", [log.drop("cache_clear") for log in compliant_set(16)])
    report = check_submission(read_submission(tree, only="sys_1x8"), Options(), jobs=2)
    assert report.official and report.official.verdict == "pass"
    assert {result.tool for result in report.official.results} >= {"package_checker", "compliance_checker"}
    assert not any("bad" in result.subject for result in report.official.results)


def test_a_killed_or_crashed_process_becomes_a_row(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "d"):
        submission(tmp_path / "round" / name, name)

    def check(tree: Submission, *arguments: Any, **options: Any) -> Report:
        if tree.only == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        if tree.only == "c":
            raise KeyError("a bug")
        return check_submission(tree, *arguments, **options)

    monkeypatch.setattr(review, "check_submission", check)
    outcome = reviewed(capsys, tmp_path / "round", tmp_path / "out")
    assert outcome.status == ExitCode.VIOLATION
    found = {system: row for (_, system), row in rows(tmp_path / "out").items()}
    assert {system: row["verdict"] for system, row in found.items()} == {
        "a": "pass", "b": "error", "c": "error", "d": "pass",
    }  # fmt: skip
    assert "signal 9" in found["b"]["reason"] and "KeyError: 'a bug'" in found["c"]["reason"]
    assert found["b"]["reason"].partition(";")[0] in " ".join(outcome.out.split())


def test_statuses_and_what_stays_in_the_folder(tmp_path: Path, capsys: Capture) -> None:
    root, out = tmp_path / "round", tmp_path / "out"
    out.mkdir()
    for name in ("notes.txt", "index.html"):
        (out / name).write_text("mine")
    submission(root / "Alpha")
    assert reviewed(capsys, root, out).status == ExitCode.PASS
    assert (out / "notes.txt").read_text() == "mine" and (out / "index.html").read_text() != "mine"
    assert reviewed(capsys, root, out, "--runs", "9").status == ExitCode.VIOLATION
    assert reviewed(capsys, root, out / "notes.txt").status == ExitCode.USAGE
    other = reviewed(capsys, root, out, "--benchmark", "rgat")
    assert other.status == ExitCode.USAGE and "gpt_oss_20b 1" in " ".join(re.split(r"[\s│]+", other.err))
    assert reviewed(capsys, tmp_path / "none", out).status == ExitCode.UNREADABLE
    assert reviewed(capsys, out, tmp_path / "other").status == ExitCode.UNREADABLE


def test_a_waiver_applies_to_the_results_that_it_names(tmp_path: Path, capsys: Capture) -> None:
    for name in ("a", "b"):
        submission(tmp_path / "round" / name, name, [log.set("cache_clear", False) for log in compliant_set(16)])
    submission(tmp_path / "round" / "c", "c")
    waivers = tmp_path / "waivers.toml"
    waived = {"rule": "cache-clear", "path": "results/a/gpt_oss_20b/*", "reason": "known", "who": "A. Reviewer"}
    waivers.write_text("\n".join(["[[waiver]]", "until = 2999-01-01", *(f'{k} = "{v}"' for k, v in waived.items())]))
    assert reviewed(capsys, tmp_path / "round", tmp_path / "out", "--waive", str(waivers)).status == ExitCode.VIOLATION
    found = {system: row for (_, system), row in rows(tmp_path / "out").items()}
    counts = {system: (row["verdict"], row["errors"], row["waived"]) for system, row in found.items()}
    assert counts == {"a": ("pass", 0, 10), "b": ("fail", 10, 0), "c": ("pass", 0, 0)}
    assert found["c"]["notes"] == 0
    waivers.write_text("[[waiver]]")
    unreadable = reviewed(capsys, tmp_path / "round", tmp_path / "out", "--waive", str(waivers))
    assert unreadable.status == ExitCode.UNREADABLE


def test_the_progress_bar_is_for_terminals(tmp_path: Path) -> None:
    """The other tests see an empty stderr where it is no terminal."""
    submission(tmp_path / "round")
    arguments = ["review", str(tmp_path / "round"), "--no-official", "--out", str(tmp_path / "out")]
    terminal, end = pty.openpty()
    environment = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "compliance", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=end,
        cwd=ROOT,
        env=environment,
    )
    os.close(end)
    assert process.wait(60) == 0
    assert b"1/1" in os.read(terminal, 100_000)
    os.close(terminal)


def test_a_submission_that_cannot_be_entered_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Good", "Shut"):
        submission(tmp_path / "closed" / name)
    lstat = Path.lstat

    def refuse(path: Path) -> os.stat_result:  # root may enter any folder
        if path.parent.name == "Shut":
            raise PermissionError(13, "Permission denied")
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", refuse)
    found = find_results(tmp_path)
    assert [each.submission for each in found.results] == ["closed/Good"]
    assert ["Shut" in each for each in found.skipped] == [True]
    reviewed = review.review(found, Options(official=False), tmp_path / "out")
    assert (reviewed.results[0].verdict, reviewed.verdict) == (Verdict.PASS, Verdict.FAIL)


def test_runs_that_two_submissions_share_are_named(mixed: Reviewed) -> None:
    shared = {key: row["same_runs_as"] for key, row in rows(mixed.out).items() if row["same_runs_as"]}
    assert shared == {
        ("closed/Alpha", "sys_1x8"): ["closed/Beta/sys_1x8"],
        ("closed/Beta", "sys_1x8"): ["closed/Alpha/sys_1x8"],
    }


def test_the_repository_is_only_read(tmp_path: Path) -> None:
    root = submission(tmp_path / "round")
    before = sorted(root.rglob("*"))
    arguments = ["review", str(root), "--no-official", "--out", str(root / "results" / "out")]
    done = subprocess.run([sys.executable, "-m", "compliance", *arguments], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == ExitCode.USAGE
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("send", "status"),
    [
        (lambda pid: os.killpg(pid, signal.SIGINT), ExitCode.INTERRUPTED),  # Ctrl-C reaches every process
        (lambda pid: os.kill(pid, signal.SIGTERM), ExitCode.TERMINATED),
        (lambda pid: os.kill(pid, signal.SIGHUP), ExitCode.TERMINATED),
    ],
)
def test_a_signal_ends_the_review_and_its_processes(
    tmp_path: Path, send: Callable[[int], None], status: ExitCode
) -> None:
    submission(tmp_path / "round")
    slow = "import time; from compliance import review; review.check_submission = lambda *a, **k: time.sleep(60)\n"
    run = f"{slow}from compliance.__main__ import main; main()"
    arguments = ["review", str(tmp_path / "round"), "--no-official", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-c", run, *arguments], cwd=ROOT, start_new_session=True)
    while not (tmp_path / "out" / "pages").is_dir():
        assert process.poll() is None
    send(process.pid)
    assert process.wait(20) == status
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
