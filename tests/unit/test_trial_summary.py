"""What is told of a set of trials, from the files that the launchers leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gptoss20b.stopping import ExitCode
from gptoss20b.trials import exit_code_of_set, read_trials
from tests.support.paths import ROOT

LOG = (
    ':::MLLOG {"key": "run_start", "value": null, "time_ms": 60000, "metadata": {}}\n'
    ':::MLLOG {"key": "eval_accuracy", "value": 3.3, "time_ms": 119000, "metadata": {"samples_count": 12288}}\n'
    ':::MLLOG {"key": "run_stop", "value": null, "time_ms": 120000, "metadata": '
    '{"samples_count": 12288, "status": "STATUS", "reason": "REASON"}}\n'
)


def make(folder: Path, *statuses: int) -> Path:
    """A set whose trials 1, 2, ... ended with these statuses; their seeds begin with 5."""
    rows = ["trial\tseed\tstarted\tseconds\tstatus"]
    for number, status in enumerate(statuses, 1):
        rows.append(f"{number}\t{number + 4}\t2026-11-21T10:00:00Z\t60\t{status}")
        (folder / f"trial_{number}").mkdir()
        if status != 1:
            text = LOG.replace("STATUS", "success" if status == 0 else "aborted")
            text = text.replace("REASON", "target 3.0 not reached in 9 steps" if status == 3 else "")
            (folder / f"trial_{number}" / "result_0.txt").write_text(text)
    (folder / "trials.tsv").write_text("\n".join(rows) + "\n")
    return folder


def say(folder: Path, count: int) -> subprocess.CompletedProcess[str]:
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
def test_the_gravest_trial_decides(tmp_path: Path, statuses: tuple[int, ...], count: int, expected: ExitCode) -> None:
    folder = make(tmp_path, *statuses)
    assert exit_code_of_set(read_trials(folder, count)) is expected
    assert say(folder, count).returncode == expected


def test_the_table_has_a_row_per_trial_and_counts_outcomes(tmp_path: Path) -> None:
    done = say(make(tmp_path, 0, 3, 1, 137), 5)
    assert done.stderr == ""
    head, rows = done.stdout.split("┏")[0], [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert "1 converged, 1 not converged, 1 failed, 1 failed (137), 1 missing" in " ".join(head.split())
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert cells[0] == ["1", "5", "1.000", "12,288", "3.3000", "1", "converged"]
    assert cells[1][6].startswith("not converged: target 3.0 not")
    assert [row[:2] + row[5:6] for row in cells if row[0]] == [
        *(["1", "5", "1"], ["2", "6", "1"], ["3", "7", "1"], ["4", "8", "1"], ["5", "", "0"])
    ]
    assert [row[2:5] for row in cells if row[0] == "3"] == [["", "", ""]]


def test_the_last_attempt_counts(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    with (folder / "trials.tsv").open("a") as journal:
        journal.write("1\t5\t2026-11-21T11:00:00Z\t60\t0\n")
    (trial,) = read_trials(folder, 1)
    assert (trial.attempts, trial.status, trial.outcome) == (2, 0, "converged")


@pytest.mark.parametrize("line", ["1\t5\t2026", "one\t5\tx\t60\t0", "1\t5\tx\t60\t"])
def test_a_line_cut_short_is_named_and_costs_nothing(tmp_path: Path, line: str) -> None:
    folder = make(tmp_path, 0, 1)
    with (folder / "trials.tsv").open("a") as journal:
        journal.write(f"{line}\n2\t6\t2026-11-21T11:00:00Z\t60\t4\n")
    done = say(folder, 2)
    assert done.returncode == 3
    (warning,) = done.stderr.splitlines()
    got = " ".join(line.split("\t")).strip()
    assert warning.startswith(f"warning: {folder}/trials.tsv: got '{got}', expected trial, seed")
    assert "1 converged, 1 diverged" in " ".join(done.stdout.split())


def test_a_head_cut_short_costs_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path, 0)
    journal = folder / "trials.tsv"
    _, row = journal.read_text().splitlines()
    journal.write_text(f"trial\tse\n{row}\n")
    assert say(folder, 1).returncode == 0


@pytest.mark.parametrize(("status", "expected"), [("success", 0), ("aborted", 3)])
def test_a_result_without_a_line_is_what_its_log_says(tmp_path: Path, status: str, expected: int) -> None:
    folder = make(tmp_path, 1)
    log = folder / "trial_1" / "result_0.txt"
    log.write_text(LOG.replace("STATUS", status).replace("REASON", "target 3.0 not reached in 9 steps"))
    (trial,) = read_trials(folder, 1)
    assert trial.status == 1  # a second start has not yet looked at its log
    (folder / "result_1.txt").hardlink_to(log)
    (trial,) = read_trials(folder, 1)
    assert trial.status == expected


def test_a_folder_that_is_no_set(tmp_path: Path) -> None:
    done = say(tmp_path, 1)
    assert done.returncode == 2
    assert "trials.tsv" in done.stderr
    assert len(done.stderr.splitlines()) == 1
