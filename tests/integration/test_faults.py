"""Runs with a fault end in time, with the reason in log, last line and exit status (docs/fault-tolerance.md)."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from compliance.judge import judge_run
from compliance.parse import parse
from gptoss20b.checkpoint.files import read_metadata
from gptoss20b.data.samples import TRAIN_PREFIX
from gptoss20b.result import read_result
from gptoss20b.stopping import ExitCode
from tests.support.local_runs import records, values
from tests.support.paths import ROOT
from tests.support.ranks import NO_GPU, kill_ranks, start_ranks
from tests.support.waiting import wait_until


@contextlib.contextmanager
def started(
    folder: Path, variables: dict[str, str], job: str = "train", **arguments: Any
) -> Iterator[list[BaseProcess]]:
    """Start a job of `fault_jobs` on DGXNGPU ranks without a launcher, and kill what is left at the end."""
    folder.mkdir(exist_ok=True)
    variables = {"LOGDIR": str(folder)} | variables
    world = int(variables["DGXNGPU"])
    processes = start_ranks(f"fault_jobs.{job}", world, folder, variables=variables, **arguments)
    try:
        yield processes
    finally:
        kill_ranks(processes)


def wait_for_rank(folder: Path, processes: list[BaseProcess], rank: int, limit_s: float = 120.0) -> tuple[int, str]:
    """Return the exit status of a rank and its output on stderr."""
    processes[rank].join(limit_s)
    code = processes[rank].exitcode
    output = (folder / f"output{rank}").read_text()
    assert code is not None, f"rank {rank} still runs after {limit_s:g} s; its output:\n{output}"
    return code, output


def run_to_end(folder: Path, variables: dict[str, str], job: str = "train", **arguments: Any) -> list[tuple[int, str]]:
    """Run a job until all ranks have ended. Return the exit status and the output of each."""
    with started(folder, variables, job, **arguments) as processes:
        return [wait_for_rank(folder, processes, rank) for rank in range(len(processes))]


@pytest.fixture
def endless(tiny: dict[str, str]) -> dict[str, str]:
    return tiny | {
        "DGXNGPU": "2",
        "EXPERT_PARALLEL": "2",
        "MAX_STEPS": "100000",
        "EVAL_INTERVAL_SAMPLES": "1000000",
        "TARGET_LOSS": "0.01",
        "LOG_INTERVAL": "1",
        "COLLECTIVE_TIMEOUT": "20",
    }


@pytest.fixture
def alone(endless: dict[str, str]) -> dict[str, str]:
    """Run six steps on one rank, with an evaluation every two."""
    short = {"MAX_STEPS": "6", "EVAL_INTERVAL_SAMPLES": "8", "GLOBAL_BATCH_SIZE": "4", "SEED": "5"}
    return endless | {"DGXNGPU": "1", "EXPERT_PARALLEL": "1"} | short


def last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


def assert_aborted(logdir: Path, reason: str) -> None:
    record = records(logdir / "result_0.txt")[-1]
    assert record["key"] == "run_stop"
    assert record["metadata"]["status"] == "aborted"
    assert reason in record["metadata"]["reason"]


def test_weights_that_are_not_finite_stop_every_rank_and_rank_0_says_it(
    endless: dict[str, str], tmp_path: Path
) -> None:
    reason = "NonFiniteGradientError: gradient norm at step 3 is nan; "
    for rank, (code, output) in enumerate(run_to_end(tmp_path, endless, fault="nan")):
        assert code == 4
        said = [line for line in output.splitlines() if "aborted" in line]
        assert len(said) == (rank == 0) and all(line.startswith(f"rank 0 aborted: {reason}") for line in said)
        assert "Traceback" not in output
    assert_aborted(tmp_path, reason)
    assert len(values(tmp_path / "result_0.txt", "train_loss")) == 2


def test_a_diverged_run_keeps_finite_checkpoints_and_resumes_behind_its_data(
    endless: dict[str, str], tmp_path: Path
) -> None:
    """The gradients of one rank are infinite from step 3 on. Losses would be read at step 10, a save is due at 4."""
    variables = endless | {"LOG_INTERVAL": "10", "MAX_STEPS": "8", "WARMUP_STEPS": "1", "GLOBAL_BATCH_SIZE": "4"}
    variables |= {"SAVE_INTERVAL": "8", "SEED": "5"}
    ended = run_to_end(tmp_path, variables, fault="infinite gradient", rank=1)
    assert [code for code, _ in ended] == [4, 4]
    assert_aborted(tmp_path, "NonFiniteGradientError: gradient norm at step 3 is inf; gradients that are not finite: 1")
    checkpoints = tmp_path / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000002"]

    ended = run_to_end(tmp_path, variables | {"RESUME": "1", "SKIP_SAMPLES": "8", "LOG_INTERVAL": "1"})
    assert [code for code, _ in ended] == [3, 3]
    log = tmp_path / "result_0.txt"
    assert values(log, "resumed") == values(log, "skip_samples") == [8]
    assert all(math.isfinite(loss) for loss in values(log, "train_loss"))
    saved = read_metadata(checkpoints / "step_00000008").train_state
    assert (saved.step, saved.skipped_samples) == (8, 8)


def test_a_killed_peer_ends_rank_0_and_its_log(endless: dict[str, str], tmp_path: Path) -> None:
    (code, output), (killed, _) = run_to_end(tmp_path, endless, fault="kill", rank=1)
    assert killed == -signal.SIGKILL
    assert code == 1
    assert last_line(output).startswith("rank 0 aborted: ")
    assert last_line(output).endswith(f" (stacks: {tmp_path / 'stacks_rank0.txt'})")
    assert "Traceback" not in output
    assert "Traceback" in (tmp_path / "stacks_rank0.txt").read_text()
    assert_aborted(tmp_path, "")


def test_a_killed_rank_0_ends_its_peer_and_leaves_an_unfinished_log(endless: dict[str, str], tmp_path: Path) -> None:
    (killed, _), (code, output) = run_to_end(tmp_path, endless, fault="kill", rank=0)
    assert killed == -signal.SIGKILL
    assert code == 1
    assert last_line(output).startswith("rank 1 aborted: ")
    found = subprocess.run(
        [sys.executable, "-m", "gptoss20b", "result", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert "unfinished (no run_stop" in found.stdout


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_within_a_minute(endless: dict[str, str], tmp_path: Path) -> None:
    del endless["COLLECTIVE_TIMEOUT"]  # the default must do it
    with started(tmp_path, endless, fault="stop", rank=1) as processes:
        code, output = wait_for_rank(tmp_path, processes, 0, limit_s=100)
        assert processes[1].is_alive()
        os.kill(processes[1].pid or 0, signal.SIGCONT)
        wait_for_rank(tmp_path, processes, 1)
    assert code == 1
    assert last_line(output).startswith("rank 0 aborted: ")
    assert last_line(output).endswith(f" (stacks: {tmp_path / 'stacks_rank0.txt'}, none from rank 1)")
    waiting, guilty = ((tmp_path / f"stacks_rank{rank}.txt").read_text() for rank in range(2))
    assert re.search(r" step 3: no progress for \d\d s\n", waiting) and "in step" in waiting
    assert "step 3: no progress for " in guilty and "fault_jobs.py" in guilty
    assert_aborted(tmp_path, "")
    *_, last_step, stop = (
        each for each in records(tmp_path / "result_0.txt") if each["key"] in ("train_loss", "run_stop")
    )
    assert stop["time_ms"] - last_step["time_ms"] < 60_000


def test_a_closed_terminal_ends_a_rank_and_its_log(alone: dict[str, str], tmp_path: Path) -> None:
    ((code, output),) = run_to_end(tmp_path, alone, fault="hang up")
    assert code == 143
    assert last_line(output) == "rank 0 aborted: received SIGHUP"
    assert_aborted(tmp_path, "received SIGHUP")


def test_a_full_disk_aborts_the_run_with_a_clear_line(endless: dict[str, str], tmp_path: Path) -> None:
    (code, output), (peer, _) = run_to_end(tmp_path, endless, fault="fill")
    assert (code, peer) == (1, 1)
    log = tmp_path / "result_0.txt"
    assert last_line(output).startswith(f"rank 0 aborted: LogWriteError: LOGDIR: cannot write {log}: File too large. ")
    assert output.count("File too large") == 1


def test_missing_data_is_one_clear_line(endless: dict[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for code, output in run_to_end(tmp_path / "log", endless | {"DATADIR": str(empty)}):
        assert code == 1
        assert "c4-train.en_6_text_document" in last_line(output)
        assert "Traceback" not in output
    assert_aborted(tmp_path / "log", "DataError")


def test_truncated_data_is_named(endless: dict[str, str], tmp_path: Path) -> None:
    data = Path(shutil.copytree(endless["DATADIR"], tmp_path / "data"))
    for rank, (code, output) in enumerate(
        run_to_end(tmp_path / "log", endless | {"DATADIR": str(data)}, fault="truncate")
    ):
        assert code == 1
        assert last_line(output).startswith(f"rank {rank} aborted: DataError: {data / TRAIN_PREFIX}.bin: got ")
        assert "the file was cut while it was in use" in last_line(output)
        assert "Traceback" not in output
    assert_aborted(tmp_path / "log", "the file was cut while it was in use")


@pytest.mark.parametrize("resume", ["0", "1"])
def test_a_second_run_never_touches_the_log_of_a_running_one(
    alone: dict[str, str], tmp_path: Path, resume: str
) -> None:
    variables = alone | {"SAVE_INTERVAL": "4", "LOGDIR": str(tmp_path)}
    with started(tmp_path / "first", variables, fault="stop") as first:
        wait_until(lambda: is_stopped(first[0]), 120, "the first run's third step")
        before = (tmp_path / "result_0.txt").read_bytes()
        ((code, output),) = run_to_end(tmp_path / "second", variables | {"RESUME": resume})
        assert (tmp_path / "result_0.txt").read_bytes() == before
        os.kill(first[0].pid or 0, signal.SIGCONT)
        assert wait_for_rank(tmp_path / "first", first, 0)[0] == 3
    assert code == 2
    reason = "another run is writing" if resume == "1" else "results are never overwritten"
    assert last_line(output).startswith("error: LOGDIR: ")
    assert reason in last_line(output)
    assert len(values(tmp_path / "result_0.txt", "train_loss")) == 6


def is_stopped(process: BaseProcess) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_rendezvous_port_in_use_is_named(endless: dict[str, str], tmp_path: Path) -> None:
    with started(tmp_path / "left", endless | {"DGXNGPU": "1"}, job="leftover"):
        output0 = tmp_path / "left" / "output0"
        wait_until(lambda: output0.exists() and output0.read_text().endswith("\n"), 120, "the leftover's port")
        port = int(output0.read_text().split()[-1])
        found = run_to_end(tmp_path / "log", endless | {"COLLECTIVE_TIMEOUT": "5"}, port=port)
    for rank, (code, output) in enumerate(found):
        assert code == 1
        assert last_line(output).startswith(f"rank {rank} aborted: LaunchError: MASTER_ADDR, MASTER_PORT: ")
        assert "set another MASTER_PORT" in last_line(output)
        assert "Traceback" not in output
    assert f"port: {port}" in found[0][1]
    assert "EADDRINUSE" in found[0][1]
    assert_aborted(tmp_path / "log", "set another MASTER_PORT")


@pytest.fixture
def undisturbed(alone: dict[str, str], tmp_path: Path) -> Path:
    """Return the log of the same run with an undisturbed clock."""
    assert [code for code, _ in run_to_end(tmp_path / "undisturbed", alone)] == [3]
    return tmp_path / "undisturbed" / "result_0.txt"


def clock_findings(log: Path) -> list[str]:
    with log.open("rb") as content:
        found = judge_run(parse(content, log.name), "6.1.0", None, in_set=True).findings
    return [f"{each.rule}: {each.message}" for each in found if each.rule.startswith(("clock", "time"))]


def test_setting_the_clock_changes_times_and_nothing_else(
    alone: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    # By the wall clock a checkpoint would be due after the jump.
    alone |= {"SAVE_INTERVAL": "30min"}
    for name, seconds in {"back": -3600.0, "on": 3600.0}.items():
        ((code, output),) = run_to_end(tmp_path / name, alone, job="clock_jumps", seconds=seconds)
        log = tmp_path / name / "result_0.txt"
        assert code == 3
        assert not (tmp_path / name / "checkpoints").exists()
        for key in ("train_loss", "eval_accuracy"):
            assert values(log, key) == values(undisturbed, key)
        assert [each["key"] for each in records(log)] == [each["key"] for each in records(undisturbed)]
        rates = [each["throughput"] for each in values(log, "tracked_stats")]
        assert len(rates) == 3
        assert all(rate > 0.1 for rate in rates), "a block of an hour would have 0.001"
        assert all(rate < 1e5 for rate in rates)
        assert "tokens/s" in output
        times = [each["time_ms"] for each in records(log)]
        jump = max((after - before for before, after in pairwise(times)), key=abs)
        assert jump == pytest.approx(1000 * seconds, abs=60_000)
        found = clock_findings(log)
        if seconds < 0:
            rules = [each.partition(":")[0] for each in found]
            assert rules == ["clock-run-start", "clock-run-stop", "clock-backwards"]
            assert re.search(r" 3,(5[0-9][0-9]|600)\.[0-9] s", found[2])
        else:  # a clock set forward looks like a run that took an hour
            assert found == clock_findings(undisturbed) == []


def test_ctrl_c_ends_the_log_and_every_process(endless: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gptoss20b.launch", "--standalone", "--nproc_per_node=2"]
    launcher = subprocess.Popen(
        [*command, "-m", "gptoss20b", "train"],
        env=os.environ | endless | NO_GPU | {"LOGDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert launcher.stderr is not None
    for line in launcher.stderr:
        if "samples | loss" in line:
            break
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    began = time.monotonic()
    # From the terminal, from the script that started it, from a person who is impatient, and from one who gives up.
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        launcher.send_signal(number)
        time.sleep(0.01)
    rest = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == 1
    assert time.monotonic() - began < 12
    assert last_line(rest) == "rank 0 aborted: received SIGINT" and "rank 1 aborted" not in rest
    assert_aborted(tmp_path, "received SIGINT")
    assert read_result(tmp_path).exit_code is ExitCode.INTERRUPTED
    assert not list(tmp_path.glob("stacks_*"))
    assert len(ranks) >= 2 and not any(rank.is_running() for rank in ranks)
    with pytest.raises(ProcessLookupError):  # nothing of the group is left, not even a zombie
        os.killpg(launcher.pid, 0)
