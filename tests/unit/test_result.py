"""Test the outcome of a run as read from its log."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptoss20b.config import resolve
from gptoss20b.mlperf_log import RunLog
from gptoss20b.result import Result, read_result
from gptoss20b.stopping import ExitCode, exit_code_for, target_not_reached_reason
from tests.support.paths import ROOT

START = 1_700_000_000_000


def line(key: str, seconds: float, value: Any = None, **metadata: Any) -> str:
    record = {
        **{"namespace": "", "time_ms": START + round(1000 * seconds), "event_type": "POINT_IN_TIME", "key": key},
        **{"value": value, "metadata": {"file": "x.py", "lineno": 1} | metadata},
    }
    return f":::MLLOG {json.dumps(record)}\n"


def stop(status: str, **metadata: Any) -> str:
    return line("run_stop", 183, status=status, **metadata)


INIT = line("init_start", -30)
BEGINNING = INIT + line("run_start", 0) + line("block_start", 1, samples_count=0)
STEP = line("train_loss", 60, 5.2, samples_count=160, lr=1e-4)
EVALUATIONS = (
    STEP
    + line("eval_accuracy", 90, 4.5, samples_count=12_288)
    + line("eval_stop", 91, samples_count=12_288)
    + line("eval_accuracy", 180, 3.3, samples_count=24_576)
)
SUCCESS = stop("success", samples_count=24_576)
STATISTICS = line("tracked_stats", 190, {"throughput": 1.0}, step=24_576)


def result_of(folder: Path, text: str) -> Result:
    (folder / "result_0.txt").write_text(text)
    return read_result(folder)


def aborted(reason: str) -> str:
    return stop("aborted", samples_count=24_576, reason=reason)


@pytest.mark.parametrize(
    ("text", "expected", "code", "shown"),
    [
        (
            BEGINNING + EVALUATIONS + SUCCESS,
            *(("success", 183 / 60, 24_576, 3.3), ExitCode.CONVERGED),
            "success: 3.050 min, 24,576 samples, final loss 3.3000, log ",
        ),
        (
            BEGINNING + STEP + stop("aborted", samples_count=160, reason="NonFiniteLossError: at step 11"),
            *(("aborted", 183 / 60, 160, None), ExitCode.DIVERGED),
            "aborted (NonFiniteLossError: at step 11): 3.050 min, 160 samples, no evaluation, log ",
        ),
        (
            INIT + stop("aborted", samples_count=0, reason="received SIGTERM"),
            *(("aborted", None, 0, None), ExitCode.TERMINATED),
            "aborted (received SIGTERM): clock not started, 0 samples, no evaluation, log ",
        ),
        # Rank 0 was killed.
        (
            BEGINNING + EVALUATIONS + STATISTICS,
            *(("unfinished", None, 24_576, 3.3), ExitCode.FAILED, "unfinished (no run_stop"),
        ),
        (
            INIT,
            *(("unfinished before run_start", None, 0, None), ExitCode.FAILED),
            "unfinished before run_start (no run_stop: rank 0 was killed, or is still running): clock not started, ",
        ),
        ("", ("unfinished before run_start", None, 0, None), ExitCode.FAILED, "unfinished before run_start (no run_"),
    ],
)
def test_an_outcome(
    tmp_path: Path, text: str, expected: tuple[str, float | None, int, float | None], code: ExitCode, shown: str
) -> None:
    result = result_of(tmp_path, text)
    assert result == Result(*expected, result.reason, tmp_path / "result_0.txt")
    assert result.exit_code is code
    assert str(result).startswith(shown)
    assert str(result).endswith(f"log {tmp_path / 'result_0.txt'}")
    assert result.status != "unfinished" or "clock not stopped" in str(result)


def test_a_full_disk_is_named_as_the_reason_of_a_log_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert "no run_stop: the disk of LOGDIR is full" in str(result_of(tmp_path, BEGINNING + EVALUATIONS))


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("received SIGTERM", ExitCode.TERMINATED),
        ("received SIGHUP", ExitCode.TERMINATED),
        ("received SIGINT", ExitCode.INTERRUPTED),
        ("RuntimeError: out of memory", ExitCode.FAILED),
        ("DistStoreError: quorum of 8 not reached within 600 s", ExitCode.FAILED),
        (target_not_reached_reason(3.34, 1_200_000), ExitCode.NOT_CONVERGED),
        (target_not_reached_reason(1e-9, 9), ExitCode.NOT_CONVERGED),
    ],
)
def test_an_aborted_run_has_the_exit_code_of_its_reason(tmp_path: Path, reason: str, code: ExitCode) -> None:
    result = result_of(tmp_path, BEGINNING + EVALUATIONS + aborted(reason))
    assert (result.status, result.loss, result.reason) == ("aborted", 3.3, reason)
    assert result.exit_code is exit_code_for("aborted", reason) is code


@pytest.mark.parametrize("cut", [1, 9, 10, 40, 120])
def test_a_truncated_last_line_is_ignored(tmp_path: Path, cut: int) -> None:
    text = BEGINNING + EVALUATIONS
    assert result_of(tmp_path, text + stop("success")[:-cut]).status in ("success", "unfinished")
    assert result_of(tmp_path, text + stop("success")[:cut]) == result_of(tmp_path, text)


@pytest.mark.parametrize(
    "noise",
    [
        *["NCCL INFO something\n", "\n", "{}\n", "\udcff".encode("utf-8", "surrogateescape").decode("latin-1") + "\n"],
        *[
            f":::MLLOG {record}\n"
            for record in ("{}", '{"key": "run_stop"}', "[]", "5", '{"key": "x", "metadata": null}')
        ],
    ],
)
def test_other_lines_and_json_that_is_no_record_are_ignored(tmp_path: Path, noise: str) -> None:
    expected = result_of(tmp_path, BEGINNING + EVALUATIONS + SUCCESS)
    assert result_of(tmp_path, noise + BEGINNING + noise + EVALUATIONS + SUCCESS + noise) == expected


def test_a_folder_or_a_file_may_be_named(tmp_path: Path) -> None:
    from_folder = result_of(tmp_path, BEGINNING + EVALUATIONS + SUCCESS)
    assert read_result(tmp_path / "result_0.txt") == from_folder
    (tmp_path / "result_0.txt").rename(tmp_path / "result_7.txt")
    assert read_result(tmp_path / "result_7.txt").status == "success"
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError):
            read_result(path)


@pytest.mark.usefixtures("no_settings")
def test_it_reads_what_the_log_writes(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "result_0.txt")
    log.init_start(resolve({"SUBMISSION_DIVISION": "open"}))
    log.run_start()
    log.block_start(0)
    log.eval_start(64)
    log.eval_stop(64, 3.25)
    log.block_start(64)
    log.run_stop(success=False, reason="received SIGTERM")
    log.close()
    result = read_result(tmp_path)
    assert (result.status, result.samples, result.loss, result.reason) == ("aborted", 64, 3.25, "received SIGTERM")
    assert result.minutes is not None
    assert 0 <= result.minutes < 1


@pytest.mark.parametrize(("ending", "status"), [(SUCCESS, 0), (aborted("target 3.34 not reached in 10 steps"), 3)])
def test_the_command_prints_the_outcome_and_exits_with_its_status(tmp_path: Path, ending: str, status: int) -> None:
    expected = result_of(tmp_path, BEGINNING + EVALUATIONS + ending)
    command = [sys.executable, "-m", "gptoss20b", "result", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, f"{expected}\n", "")
