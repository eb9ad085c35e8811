"""Test the summary of a set of trials, from the files of the launchers."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from gptoss20b.stopping import ExitCode
from gptoss20b.trials import build_table, exit_code_of_set, read_trials
from tests.support.paths import ROOT

LOG = (
    ':::MLLOG {"key": "run_start", "value": null, "time_ms": 60000, "metadata": {}}\n'
    ':::MLLOG {"key": "eval_accuracy", "value": 3.3, "time_ms": 119000, "metadata": {"samples_count": 12288}}\n'
    ':::MLLOG {"key": "run_stop", "value": null, "time_ms": 120000, "metadata": '
    '{"samples_count": 12288, "status": "STATUS", "reason": "REASON"}}\n'
)


def log_text(status: str, reason: str) -> str:
    return LOG.replace("STATUS", status).replace("REASON", reason)


def make_set(folder: Path, *statuses: int) -> Path:
    """Write a set whose trials 1, 2, ... ended with these statuses. Seeds start at 5."""
    rows = ["trial\tseed\tstarted\tseconds\tstatus"]
    for number, status in enumerate(statuses, 1):
        rows.append(f"{number}\t{number + 4}\t2026-11-21T10:00:00Z\t60\t{status}")
        (folder / f"trial_{number}").mkdir()
        if status != 1:
            reason = "target 3.0 not reached in 9 steps" if status == 3 else ""
            text = log_text("success" if status == 0 else "aborted", reason)
            (folder / f"trial_{number}" / "result_0.txt").write_text(text)
    (folder / "trials.tsv").write_text("\n".join(rows) + "\n")
    return folder


def summarize(folder: Path, count: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gptoss20b", "result", "--trials", str(count), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("statuses", "count", "expected"),
    [
        ((0, 0), 2, ExitCode.CONVERGED),
        ((0, 0), 1, ExitCode.CONVERGED),
        ((0, 0), 3, ExitCode.FAILED),  # one is missing
        ((0, 3), 2, ExitCode.NOT_CONVERGED),
        ((4, 0), 2, ExitCode.NOT_CONVERGED),
        ((4, 5), 2, ExitCode.NOT_COMPLIANT),
        ((0, 1), 2, ExitCode.FAILED),
        ((5, 143), 2, ExitCode.FAILED),
        ((3, 137), 2, ExitCode.FAILED),
    ],
)
def test_the_worst_trial_gives_the_status(
    tmp_path: Path, statuses: tuple[int, ...], count: int, expected: ExitCode
) -> None:
    folder = make_set(tmp_path, *statuses)
    assert exit_code_of_set(read_trials(folder, count)) is expected


def test_the_command_prints_a_row_per_trial_and_counts_outcomes(tmp_path: Path) -> None:
    done = summarize(make_set(tmp_path, 0, 3, 1, 137), 5)
    assert (done.returncode, done.stderr) == (ExitCode.FAILED, "")
    head, rows = done.stdout.split("┏")[0], [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert "1 converged, 1 not converged, 1 failed, 1 failed (137), 1 missing" in " ".join(head.split())
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert cells[0] == ["1", "5", "1.000", "12,288", "3.3000", "1", "converged"]
    assert cells[1][6].startswith("not converged: target 3.0 not")
    assert [row[:2] + row[5:6] for row in cells if row[0]] == [
        *(["1", "5", "1"], ["2", "6", "1"], ["3", "7", "1"], ["4", "8", "1"], ["5", "", "0"])
    ]
    assert [row[2:5] for row in cells if row[0] == "3"] == [["", "", ""]]


def test_the_last_attempt_counts_and_a_recovered_result_is_no_attempt(tmp_path: Path) -> None:
    folder = make_set(tmp_path, 1)
    with (folder / "trials.tsv").open("a") as rows:
        rows.write("1\t5\t2026-11-21T11:00:00Z\t60\t1\n1\t5\t-\t-\t0\n")
    (trial,) = read_trials(folder, 1)
    assert (trial.attempts, trial.status, trial.outcome) == (2, 0, "converged")


def test_an_attempt_whose_launcher_was_killed_counts(tmp_path: Path) -> None:
    """Such a launcher has written no row, and the next start keeps the attempt's folder."""
    folder = make_set(tmp_path, 0)
    (folder / "trial_1_attempt_1").mkdir()
    assert read_trials(folder, 1)[0].attempts == 2


@pytest.mark.parametrize("row", ["1\t5\t2026", "one\t5\tx\t60\t0", "1\t5\tx\t60\t"])
def test_an_invalid_row_is_named_and_skipped(tmp_path: Path, row: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_set(tmp_path, 0, 1)
    _, *rows = (folder / "trials.tsv").read_text().splitlines()
    # The header is truncated, too.
    (folder / "trials.tsv").write_text("\n".join(["trial\tse", *rows, row, "2\t6\t2026-11-21T11:00:00Z\t60\t4"]))
    assert [trial.outcome for trial in read_trials(folder, 2)] == ["converged", "diverged"]
    (warning,) = capsys.readouterr().err.splitlines()
    got = " ".join(row.split("\t")).strip()
    assert warning.startswith(f"warning: {folder}/trials.tsv: ")
    assert f"'{got}'" in warning


@pytest.mark.parametrize(("status", "expected"), [("success", 0), ("aborted", 3)])
def test_a_published_result_without_a_row_has_the_status_of_its_log(tmp_path: Path, status: str, expected: int) -> None:
    folder = make_set(tmp_path, 1)
    log = folder / "trial_1" / "result_0.txt"
    log.write_text(log_text(status, "target 3.0 not reached in 9 steps"))
    (trial,) = read_trials(folder, 1)
    assert trial.status == 1  # not published: the next start decides
    (folder / "result_1.txt").hardlink_to(log)
    (trial,) = read_trials(folder, 1)
    assert trial.status == expected


def test_brackets_in_a_reason_are_no_markup(tmp_path: Path) -> None:
    reason = "RuntimeError: [/gloo/pair.cc:537] reset"
    (make_set(tmp_path, 1) / "trial_1" / "result_0.txt").write_text(log_text("aborted", reason))
    done = summarize(tmp_path, 1)
    assert done.returncode == 1 and "[/gloo/pair.cc:537]" in done.stdout, done.stderr
    assert done.stdout.startswith(f"1 trials in {tmp_path}: 1 failed\n")


def test_a_trial_that_ended_before_the_clock_started_says_so(tmp_path: Path) -> None:
    (make_set(tmp_path, 1) / "trial_1" / "result_0.txt").touch()
    table = Console(file=io.StringIO(), width=200)
    table.print(build_table(read_trials(tmp_path, 1)))
    assert "failed: unfinished before run_start" in cast("io.StringIO", table.file).getvalue()


def test_a_folder_without_trials_is_refused(tmp_path: Path) -> None:
    done = summarize(tmp_path, 1)
    assert done.returncode == 2
    assert "trials.tsv" in done.stderr
    assert len(done.stderr.splitlines()) == 1
