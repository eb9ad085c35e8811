"""How a run ended, as its log tells it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptoss20b.config import resolve, settings
from gptoss20b.mlperf_log import RunLog
from gptoss20b.result import Result, read_result
from gptoss20b.stopping import ExitCode, exit_code_of, target_not_reached
from tests.support.paths import ROOT

START = 1_700_000_000_000


def line(key: str, seconds: float, value: Any = None, **metadata: Any) -> str:
    record = {"namespace": "", "time_ms": START + round(1000 * seconds), "event_type": "POINT_IN_TIME", "key": key}
    return (
        ":::MLLOG " + json.dumps(record | {"value": value, "metadata": {"file": "x.py", "lineno": 1} | metadata}) + "\n"
    )


BEGINNING = line("init_start", -30) + line("run_start", 0) + line("block_start", 1, samples_count=0)
EVALUATIONS = (
    line("train_loss", 60, 5.2, samples_count=160, lr=1e-4)
    + line("eval_accuracy", 90, 4.5, samples_count=12_288)
    + line("eval_stop", 91, samples_count=12_288)
    + line("eval_accuracy", 180, 3.3, samples_count=24_576)
)


def stop(status: str, **metadata: Any) -> str:
    return line("run_stop", 183, status=status, **metadata)


def result_of(tmp_path: Path, text: str) -> Result:
    (tmp_path / "result_0.txt").write_text(text)
    return read_result(tmp_path)


def test_a_converged_run(tmp_path: Path) -> None:
    result = result_of(tmp_path, BEGINNING + EVALUATIONS + stop("success", samples_count=24_576))
    assert result == Result("success", 183 / 60, 24_576, 3.3, None, tmp_path / "result_0.txt")
    assert result.exit_code is ExitCode.CONVERGED
    assert str(result) == (f"success: 3.050 min, 24,576 samples, final loss 3.3000, log {tmp_path / 'result_0.txt'}")


def test_an_aborted_run(tmp_path: Path) -> None:
    text = BEGINNING + line("train_loss", 60, 5.2, samples_count=160)
    result = result_of(tmp_path, text + stop("aborted", samples_count=160, reason="NonFiniteLossError: at step 11"))
    assert (result.status, result.loss, result.samples) == ("aborted", None, 160)
    assert result.exit_code is ExitCode.DIVERGED
    assert str(result).startswith(
        "aborted (NonFiniteLossError: at step 11): 3.050 min, 160 samples, no evaluation, log "
    )


def test_a_run_that_missed_its_target(tmp_path: Path) -> None:
    reason = "target 3.0 not reached in 400 steps"
    result = result_of(tmp_path, BEGINNING + EVALUATIONS + stop("aborted", samples_count=24_576, reason=reason))
    assert (result.status, result.loss, result.reason) == ("aborted", 3.3, reason)
    assert result.exit_code is ExitCode.NOT_CONVERGED


def test_the_training_loop_and_this_reader_agree_on_the_reason() -> None:
    for target, steps in ((3.34, 1_200_000), (2, 1), (1e-9, 9)):
        assert exit_code_of("aborted", target_not_reached(target, steps)) is ExitCode.NOT_CONVERGED
    loop = (ROOT / "gptoss20b" / "train.py").read_text()
    assert "target_not_reached(" in loop
    assert "signal_reason(name)" in loop


def test_a_run_aborted_before_the_clock(tmp_path: Path) -> None:
    result = result_of(tmp_path, line("init_start", -30) + stop("aborted", samples_count=0, reason="received SIGTERM"))
    assert (result.status, result.minutes) == ("aborted", None)
    assert "clock not started" in str(result)


def test_a_run_whose_writer_was_killed(tmp_path: Path) -> None:
    result = result_of(tmp_path, BEGINNING + EVALUATIONS + line("tracked_stats", 190, {"throughput": 1.0}, step=24_576))
    assert (result.status, result.minutes, result.samples, result.loss) == ("unfinished", None, 24_576, 3.3)
    assert "no run_stop" in str(result)
    assert result.exit_code is ExitCode.FAILED


def test_an_unfinished_run_does_not_claim_that_its_clock_never_started(tmp_path: Path) -> None:
    assert "clock not started" not in str(result_of(tmp_path, BEGINNING + EVALUATIONS))


def test_an_empty_log(tmp_path: Path) -> None:
    result = result_of(tmp_path, "")
    assert (result.status, result.samples, result.loss, result.exit_code) == ("unfinished", 0, None, ExitCode.FAILED)


@pytest.mark.parametrize("cut", [1, 9, 10, 40, 120])
def test_a_last_line_cut_short_is_ignored(tmp_path: Path, cut: int) -> None:
    text = BEGINNING + EVALUATIONS
    assert result_of(tmp_path, text + stop("success")[:-cut]).status in ("success", "unfinished")
    assert result_of(tmp_path, text + stop("success")[:cut]) == result_of(tmp_path, text)


def test_other_lines_are_ignored(tmp_path: Path) -> None:
    noise = "NCCL INFO something\n\n{}\n" + "\udcff".encode("utf-8", "surrogateescape").decode("latin-1") + "\n"
    text = noise + BEGINNING + noise + EVALUATIONS + stop("success", samples_count=24_576) + noise
    assert result_of(tmp_path, text).status == "success"


@pytest.mark.parametrize("record", ["{}", '{"key": "run_stop"}', "[]", "5", '{"key": "x", "metadata": null}'])
def test_json_that_is_no_record_is_ignored_or_a_value_error(tmp_path: Path, record: str) -> None:
    try:
        result_of(tmp_path, BEGINNING + f":::MLLOG {record}\n" + EVALUATIONS)
    except ValueError:
        return


def test_a_folder_or_a_file_may_be_named(tmp_path: Path) -> None:
    by_folder = result_of(tmp_path, BEGINNING + EVALUATIONS + stop("success"))
    assert read_result(tmp_path / "result_0.txt") == by_folder
    (tmp_path / "result_0.txt").rename(tmp_path / "result_7.txt")
    assert read_result(tmp_path / "result_7.txt").status == "success"


def test_no_log_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError):
            read_result(path)


def test_it_reads_what_the_log_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings():
        monkeypatch.delenv(name, raising=False)
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


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("received SIGTERM", ExitCode.TERMINATED),
        ("received SIGHUP", ExitCode.TERMINATED),
        ("received SIGINT", ExitCode.INTERRUPTED),
    ],
)
def test_a_signalled_run_has_the_exit_code_that_the_run_had(tmp_path: Path, reason: str, code: ExitCode) -> None:
    assert result_of(tmp_path, BEGINNING + stop("aborted", reason=reason)).exit_code is code


def test_an_error_that_says_not_reached_is_a_failure(tmp_path: Path) -> None:
    reason = "DistStoreError: quorum of 8 not reached within 600 s"
    assert result_of(tmp_path, BEGINNING + stop("aborted", reason=reason)).exit_code is ExitCode.FAILED


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (stop("success", samples_count=24_576), 0),
        (stop("aborted", samples_count=24_576, reason="RuntimeError: out of memory"), 1),
        (stop("aborted", samples_count=24_576, reason="target 3.34 not reached in 10 steps"), 3),
        ("", 1),
    ],
)
def test_the_command_passes_the_runs_status_on(tmp_path: Path, ending: str, status: int) -> None:
    expected = result_of(tmp_path, BEGINNING + EVALUATIONS + ending)
    done = subprocess.run(
        [sys.executable, "-m", "gptoss20b", "result", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, f"{expected}\n", "")
