"""Two revisions of a submission tree: files, results and findings that changed."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import openpyxl
import pytest

from compliance.check import Options
from compliance.cli import ExitCode
from compliance.diff import ResultChange, TreeDiff, diff_trees
from compliance.findings import Finding
from tests.support.commands import command
from tests.support.judging import repeat
from tests.support.made_logs import compliant_set, system_description, write_tree
from tests.support.schemas import check_document

OURS = Options(official=False)
RESULT = "results/sys_1x8/gpt_oss_20b"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal trees; tests change one of them."""
    made = compliant_set(16)
    return write_tree(tmp_path / "old", made), write_tree(tmp_path / "new", made)


def figures(result: ResultChange) -> dict[str, tuple[object, object]]:
    return {each.figure: (each.old, each.new) for each in result.figures}


def identities(findings: tuple[Finding, ...]) -> list[tuple[str, str, str | None]]:
    return [(each.rule, each.severity, each.file) for each in findings]


def is_empty(diff: TreeDiff) -> bool:
    files = diff.files
    no_files = not (files.added or files.removed or files.changed or files.not_compared)
    return no_files and not (diff.appeared or diff.gone) and {each.state for each in diff.results} <= {"same"}


def test_equal_trees_do_not_differ_wherever_they_are(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_empty(diff_trees(*trees, OURS))
    monkeypatch.chdir(trees[0])
    assert is_empty(diff_trees(Path(), trees[1], OURS)) and is_empty(diff_trees(Path("../new"), Path(), OURS))


def test_files_are_compared_by_content_and_git_is_not_entered(trees: tuple[Path, Path]) -> None:
    old, new = trees
    code = "benchmarks/gpt_oss_20b/implementations/sys_1x8"
    for name in (".git/config", f"{code}/.git/index"):
        (new / name).parent.mkdir()
        (new / name).write_text("x")
    (new / code / "extra.py").write_text("x")
    (new / code / "run_and_time.sh").unlink()
    same_size = (new / code / "train.py").read_text().replace("31", "32")
    (new / code / "train.py").write_text(same_size)
    os.utime(new / code / "train.py", ns=(0, (old / code / "train.py").stat().st_mtime_ns))
    (new / "systems/sys_1x8.json").write_text(json.dumps(system_description(cooling="liquid")))
    for root, target in ((old, "README.md"), (new, "train.py"), (new, "gone")):
        (root / code / "link").unlink(missing_ok=True)
        (root / code / "link").symlink_to(root / target)
    files = diff_trees(old, new, OURS).files
    assert files.added == (f"{code}/extra.py",) and files.removed == (f"{code}/run_and_time.sh",)
    assert files.changed == (f"{code}/link", f"{code}/train.py", "systems/sys_1x8.json")


def test_an_entry_that_cannot_be_compared_is_named(trees: tuple[Path, Path]) -> None:
    for root in trees:
        os.mkfifo(root / "systems/pipe")
    assert [name.partition(":")[0] for name in diff_trees(*trees, OURS).files.not_compared] == ["systems/pipe"]


def test_a_result_changes_by_its_figures(tmp_path: Path) -> None:
    slow, fast = ([n * 12_288 for n in counts] for counts in ([17] * 5 + [16] * 5, [15] * 5 + [16] * 5))
    old = write_tree(tmp_path / "old", compliant_set(16, samples_to_target=slow))
    new = write_tree(tmp_path / "new", compliant_set(16, samples_to_target=fast))
    diff = diff_trees(old, new, OURS)
    (result,) = diff.results
    assert (result.result, result.state) == (RESULT, "changed")
    samples = next(each for each in result.figures if each.figure == "samples")
    # Olympic means: 4 x 17 + 4 x 16 and 4 x 15 + 4 x 16 evaluations in eight runs.
    assert (samples.old, samples.new, samples.change) == (16.5 * 12_288, 15.5 * 12_288, -12_288)
    assert samples.percent == pytest.approx(-100 / 16.5)
    found = figures(result)
    assert found["verdict"] == ("valid", "valid") and found["runs"] == (10, 10)
    assert found["factor"] == (1.0, pytest.approx(194_560 / (15.5 * 12_288)))
    minutes = [found[name] for name in ("score_minutes", "olympic_minutes", "cv_samples_percent", "cv_minutes_percent")]
    assert all(isinstance(value, float) and value > 0 for pair in minutes for value in pair)
    assert [each.rule for each in diff.appeared] == ["rcp-normalization"]
    assert diff.files.changed and all(name.startswith(f"{RESULT}/result_") for name in diff.files.changed)


def test_a_result_that_fails_has_no_score(tmp_path: Path) -> None:
    made = compliant_set(16)
    new = write_tree(tmp_path / "new", made)
    made[3].set("cache_clear", False)
    diff = diff_trees(write_tree(tmp_path / "old", made), new, OURS)
    assert figures(diff.results[0])["verdict"] == ("no score", "valid")
    score = next(each for each in diff.results[0].figures if each.figure == "score_minutes")
    assert score.old is None and score.change is None and score.percent is None and isinstance(score.new, float)
    assert (diff.old.verdict, diff.old.errors, diff.new.verdict, diff.verdict) == ("fail", 1, "pass", "pass")
    assert ("cache-clear", "error", f"{RESULT}/result_3.txt") in identities(diff.gone) and diff.appeared == ()


def test_a_result_is_added_or_removed(trees: tuple[Path, Path]) -> None:
    old, new = trees
    for part in ("results/sys_1x8", "systems/sys_1x8.json"):
        (new / part).rename(new / part.replace("sys_1x8", "other"))
    results = diff_trees(old, new, OURS).results
    assert [(each.result, each.state) for each in results] == [
        ("results/other/gpt_oss_20b", "added"), (RESULT, "removed"),
    ]  # fmt: skip
    assert figures(results[0])["runs"] == (None, 10) and figures(results[1])["runs"] == (10, None)


def test_a_moved_line_is_no_change_and_a_new_file_is(tmp_path: Path) -> None:
    made = compliant_set(16)
    repeat(made[3], "run_start", later_ms=1_000)  # the message names the line of the first
    old = write_tree(tmp_path / "old", made)
    for _ in range(5):
        made[3].events.insert(0, made[3].find("init_start") | {"key": "a_note"})
    diff = diff_trees(old, write_tree(tmp_path / "new", made), OURS)
    assert diff.old.errors == diff.new.errors == 1 and (diff.appeared, diff.gone) == ((), ())
    made[4].set("cache_clear", False)
    diff = diff_trees(old, write_tree(tmp_path / "third", made), OURS)
    assert identities(diff.appeared)[0] == ("cache-clear", "error", f"{RESULT}/result_4.txt")


def test_another_number_in_a_message_is_a_change(tmp_path: Path) -> None:
    made = compliant_set(16)
    made[3].set("eval_accuracy", -1, 2)
    old = write_tree(tmp_path / "old", made)
    made[3].set("eval_accuracy", -1, 4)  # a second finding of the same rule, file and message
    new = write_tree(tmp_path / "new", made)
    diff = diff_trees(old, new, OURS)
    assert [each.rule for each in diff.appeared] == ["eval-loss"]
    assert [each.rule for each in diff_trees(new, old, OURS).gone] == ["eval-loss"]


def test_messages_that_name_files_of_the_tree_are_compared_below_the_root(tmp_path: Path) -> None:
    made = compliant_set(16)
    made[5].set("seed", made[2].find("seed")["value"])
    trees = [write_tree(tmp_path / name, made) for name in ("old", "a new one")]
    diff = diff_trees(trees[0], trees[1], OURS)
    assert diff.new.errors > 0 and (diff.appeared, diff.gone) == ((), ())


def test_a_waived_finding_is_another_one(tmp_path: Path, trees: tuple[Path, Path]) -> None:
    log = trees[1] / RESULT / "result_3.txt"
    log.write_text(
        log.read_text().replace('"key": "cache_clear", "value": true', '"key": "cache_clear", "value": false')
    )
    waive = tmp_path / "w.toml"
    waive.write_text('[[waiver]]\nrule = "cache-clear"\npath = "*"\nreason = "r"\nwho = "w"\nuntil = 2999-01-01\n')
    diff = diff_trees(*trees, Options(official=False, waive=waive))
    assert (diff.verdict, diff.new.errors, diff.new.waived) == ("pass", 0, 1)
    assert ("cache-clear", "waived", f"{RESULT}/result_3.txt") in identities(diff.appeared)
    assert diff_trees(*trees, OURS).verdict == "fail"


def test_the_command_prints_text_and_json_and_exits_by_the_new_verdict(tmp_path: Path, capsys: Capture) -> None:
    made = compliant_set(16)
    good = write_tree(tmp_path / "good", made)
    made[3].set("cache_clear", False)
    bad = write_tree(tmp_path / "bad", made)
    found = command(capsys, "diff", bad, good, "--no-official", "--format", "json")
    document = json.loads(found.out)
    check_document("diff", document)
    assert found.status == ExitCode.PASS and document["gone"][0]["rule"] == "cache-clear"
    assert document["options"]["official"] is False
    found = command(capsys, "diff", good, bad, "--no-official")
    assert found.status == ExitCode.VIOLATION
    assert all(each in found.out for each in ("cache-clear", f"{RESULT}/result_3.txt", "no score", "NEW FAIL"))
    assert command(capsys, "diff", good, tmp_path / "none", "--no-official").status == ExitCode.UNREADABLE


@pytest.mark.slow
def test_the_official_verdicts_of_both_are_shown(trees: tuple[Path, Path]) -> None:
    for log in (trees[0] / RESULT).iterdir():
        log.write_text(log.read_text().replace('"submission_org"', '"submission_organ"'))
    diff = diff_trees(*trees)
    assert (diff.old.official, diff.new.official) == ("fail", "pass")


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_the_results_are_written_as_a_table(
    tmp_path: Path, trees: tuple[Path, Path], capsys: Capture, suffix: str
) -> None:
    hostile = trees[1] / "results/=1+1"
    (trees[1] / "results/sys_1x8").rename(hostile)
    out = tmp_path / f"t.{suffix}"
    command(capsys, "diff", *trees, "--no-official", "--out", out)
    if suffix == "csv":
        rows: list[tuple[object, ...]] = [tuple(row) for row in csv.reader(out.open())]
    else:
        rows = list(openpyxl.load_workbook(out).worksheets[0].iter_rows(values_only=True))
    header, *rows = rows
    assert header == ("result", "state", "figure", "old", "new", "change", "percent")
    assert {(row[0], row[1]) for row in rows} == {("results/=1+1/gpt_oss_20b", "added"), (RESULT, "removed")}
    runs = [row for row in rows if row[2] == "runs"]
    assert [str(row[4]) for row in runs if row[1] == "added"] == ["10"]


def test_a_table_that_cannot_be_written_is_wrong_usage(trees: tuple[Path, Path], capsys: Capture) -> None:
    for out in ("t.txt", "/nowhere/t.csv"):
        found = command(capsys, "diff", *trees, "--no-official", "--out", out)
        assert found.status == ExitCode.USAGE and "--out" in found.err
