"""How runs end when something goes wrong: in the log, on screen, in the exit status, and in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ranks import NO_GPU, ROOT, free_port

# A rank that runs for longer than any test waits, and does something at step 3.
RANK = """
import os, signal, sys, time
import torch
from gptoss20b.config import resolve
from gptoss20b.train import run

fault = sys.argv[1]

def before_step(step, trainer):
    if step != 3:
        return
    if fault == "nan":
        with torch.no_grad():
            next(trainer.model.parameters()).fill_(float("nan"))
    if fault == f"kill {os.environ['RANK']}":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == f"stop {os.environ['RANK']}":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "fill":
        import resource
        limit = os.path.getsize(os.path.join(os.environ["LOGDIR"], "result_0.txt")) + 10
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if fault == "pause":
        print("paused", file=sys.stderr, flush=True)

sys.exit(run(resolve(), before_step))
"""


class Ranks:
    """Two ranks without a launcher, so that each one's own exit status is seen."""

    def __init__(self, variables: dict[str, str], logdir: Path, fault: str) -> None:
        shared = os.environ | variables | {"LOGDIR": str(logdir), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        shared |= NO_GPU | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, fault],
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    def wait(self, limit_s: float = 60.0) -> list[tuple[int, str]]:
        """(exit status, stderr) of each rank. Kills what is left at the limit and fails."""
        end = time.monotonic() + limit_s
        try:
            outputs = [process.communicate(timeout=max(0.1, end - time.monotonic()))[1] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
        return [(process.returncode, output) for process, output in zip(self.processes, outputs, strict=True)]


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


def last_record(logdir: Path) -> dict[str, Any]:
    return json.loads((logdir / "result_0.txt").read_text().splitlines()[-1].removeprefix(":::MLLOG "))  # type: ignore[no-any-return]


def assert_aborted(logdir: Path, reason: str) -> None:
    record = last_record(logdir)
    assert record["key"] == "run_stop"
    assert record["metadata"]["status"] == "aborted"
    assert reason in record["metadata"]["reason"]


def test_a_non_finite_loss_stops_every_rank(endless: dict[str, str], tmp_path: Path) -> None:
    outcomes = Ranks(endless, tmp_path, "nan").wait()
    for rank, (code, output) in enumerate(outcomes):
        assert code == 4
        assert f"rank {rank} aborted: NonFiniteLossError: training loss at step 3 is nan" in output
        assert "Traceback" not in output
    assert_aborted(tmp_path, "training loss at step 3 is nan")
    losses = [line for line in (tmp_path / "result_0.txt").read_text().splitlines() if '"train_loss"' in line]
    assert len(losses) == 2


def test_a_killed_peer_ends_the_first_rank_and_its_log(endless: dict[str, str], tmp_path: Path) -> None:
    (code, output), (killed, _) = Ranks(endless, tmp_path, "kill 1").wait()
    assert killed == -signal.SIGKILL
    assert code == 1
    assert "rank 0 aborted: " in output.strip().splitlines()[-1]
    assert last_record(tmp_path)["metadata"]["status"] == "aborted"


def test_a_killed_first_rank_ends_its_peer_and_is_seen_in_the_log(endless: dict[str, str], tmp_path: Path) -> None:
    (killed, _), (code, output) = Ranks(endless, tmp_path, "kill 0").wait()
    assert killed == -signal.SIGKILL
    assert code == 1
    assert "rank 1 aborted: " in output
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
    ranks = Ranks(endless, tmp_path, "stop 1")
    first, hung = ranks.processes
    try:
        output = first.communicate(timeout=100)[1]
    finally:
        for process in ranks.processes:
            process.kill()
            process.wait()
    assert first.returncode == 1
    assert "rank 0 aborted: " in output.strip().splitlines()[-1]
    assert hung.returncode == -signal.SIGKILL
    records = [json.loads(line.removeprefix(":::MLLOG ")) for line in (tmp_path / "result_0.txt").open()]
    *_, last_step, stop = (record for record in records if record["key"] in ("train_loss", "run_stop"))
    assert stop["metadata"]["status"] == "aborted"
    assert stop["time_ms"] - last_step["time_ms"] < 60_000


def test_a_full_disk_stops_the_run_with_a_clear_line(endless: dict[str, str], tmp_path: Path) -> None:
    started = time.monotonic()
    outcomes = Ranks(endless, tmp_path, "fill").wait()
    assert outcomes[0][0] == 1
    assert "rank 0 aborted: OSError" in outcomes[0][1]
    assert "the log could not be written" in outcomes[0][1]
    assert outcomes[1][0] == 1
    assert time.monotonic() - started < 60


def test_missing_data_is_one_clear_line(endless: dict[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for code, output in Ranks(endless | {"DATADIR": str(empty)}, tmp_path / "log", "none").wait():
        assert code == 1
        assert "c4-train.en_6_text_document" in output
        assert "Traceback" not in output
    assert_aborted(tmp_path / "log", "DataError")


def test_sigterm_to_the_launcher_ends_the_log_and_every_process(endless: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    launcher = subprocess.Popen(
        [*command, str(script), "pause"],
        env=os.environ | endless | NO_GPU | {"LOGDIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert launcher.stderr is not None
    for line in launcher.stderr:
        if "paused" in line:
            break
    launcher.send_signal(signal.SIGTERM)
    started = time.monotonic()
    rest = launcher.communicate(timeout=60)[1]
    assert launcher.returncode != 0
    assert time.monotonic() - started < 60
    assert "rank 0 aborted: received SIGTERM" in rest
    assert_aborted(tmp_path, "received SIGTERM")
    with pytest.raises(ProcessLookupError):  # nothing of the group is left, not even a zombie
        os.killpg(launcher.pid, 0)
