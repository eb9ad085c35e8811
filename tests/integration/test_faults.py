"""How runs end when something goes wrong: in the log, on screen, in the exit status, and in time.

The end states are those of docs/endurance.md.
"""

from __future__ import annotations

import contextlib
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

import pytest

from compliance.judge import judge_run
from compliance.parse import parse
from gptoss20b.data.samples import TRAIN_PREFIX
from tests.support.local_runs import records, values
from tests.support.paths import ROOT
from tests.support.ranks import NO_GPU, start_ranks
from tests.support.waiting import wait_until


class Ranks:
    """Ranks without a launcher, so that each one's own exit status is seen."""

    def __init__(self, folder: Path, processes: list[BaseProcess]) -> None:
        self._folder, self.processes = folder, processes

    def wait(self, rank: int, limit_s: float = 120.0) -> tuple[int, str]:
        """Exit status of a rank, and what it showed on stderr."""
        self.processes[rank].join(limit_s)
        code = self.processes[rank].exitcode
        shown = (self._folder / f"output{rank}").read_text()
        assert code is not None, f"rank {rank} still runs after {limit_s:g} s; it showed:\n{shown}"
        return code, shown


@contextlib.contextmanager
def started(folder: Path, variables: dict[str, str], job: str = "train", **arguments: Any) -> Iterator[Ranks]:
    """A job of `fault_jobs` on DGXNGPU ranks, which are gone at the end."""
    folder.mkdir(exist_ok=True)
    variables = {"LOGDIR": str(folder)} | variables
    world = int(variables["DGXNGPU"])
    processes = start_ranks(f"fault_jobs.{job}", world, folder, variables=variables, **arguments)
    try:
        yield Ranks(folder, processes)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()


def ended(folder: Path, variables: dict[str, str], job: str = "train", **arguments: Any) -> list[tuple[int, str]]:
    """The same, until all ranks have ended by themselves."""
    with started(folder, variables, job, **arguments) as ranks:
        return [ranks.wait(rank) for rank in range(len(ranks.processes))]


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
    """Six steps of one rank, with an evaluation every two."""
    few = {"MAX_STEPS": "6", "EVAL_INTERVAL_SAMPLES": "8", "GLOBAL_BATCH_SIZE": "4", "SEED": "5"}
    return endless | {"DGXNGPU": "1", "EXPERT_PARALLEL": "1"} | few


def last_line(shown: str) -> str:
    return shown.strip().splitlines()[-1]


def assert_aborted(logdir: Path, reason: str) -> None:
    record = records(logdir / "result_0.txt")[-1]
    assert record["key"] == "run_stop"
    assert record["metadata"]["status"] == "aborted"
    assert reason in record["metadata"]["reason"]


def test_a_non_finite_loss_stops_every_rank(endless: dict[str, str], tmp_path: Path) -> None:
    for rank, (code, shown) in enumerate(ended(tmp_path, endless, fault="nan")):
        assert code == 4
        assert last_line(shown) == f"rank {rank} aborted: NonFiniteLossError: training loss at step 3 is nan"
        assert "Traceback" not in shown
    assert_aborted(tmp_path, "NonFiniteLossError: training loss at step 3 is nan")
    assert len(values(tmp_path / "result_0.txt", "train_loss")) == 2


def test_a_killed_peer_ends_rank_0_and_its_log(endless: dict[str, str], tmp_path: Path) -> None:
    (code, shown), (killed, _) = ended(tmp_path, endless, fault="kill", rank=1)
    assert killed == -signal.SIGKILL
    assert code == 1
    assert last_line(shown).startswith("rank 0 aborted: ")
    assert_aborted(tmp_path, "")


def test_a_killed_rank_0_ends_its_peer_and_leaves_an_unfinished_log(endless: dict[str, str], tmp_path: Path) -> None:
    (killed, _), (code, shown) = ended(tmp_path, endless, fault="kill", rank=0)
    assert killed == -signal.SIGKILL
    assert code == 1
    assert last_line(shown).startswith("rank 1 aborted: ")
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
    with started(tmp_path, endless, fault="stop", rank=1) as ranks:
        code, shown = ranks.wait(0, limit_s=100)
        assert ranks.processes[1].is_alive()
    assert code == 1
    assert last_line(shown).startswith("rank 0 aborted: ")
    assert_aborted(tmp_path, "")
    *_, last_step, stop = (
        each for each in records(tmp_path / "result_0.txt") if each["key"] in ("train_loss", "run_stop")
    )
    assert stop["time_ms"] - last_step["time_ms"] < 60_000


def test_a_closed_terminal_ends_a_rank_and_its_log(alone: dict[str, str], tmp_path: Path) -> None:
    ((code, shown),) = ended(tmp_path, alone, fault="hang up")
    assert code == 143
    assert last_line(shown) == "rank 0 aborted: received SIGHUP"
    assert_aborted(tmp_path, "received SIGHUP")


def test_a_full_disk_aborts_the_run_with_a_clear_line(endless: dict[str, str], tmp_path: Path) -> None:
    (code, shown), (peer, _) = ended(tmp_path, endless, fault="fill")
    assert (code, peer) == (1, 1)
    assert last_line(shown).startswith("rank 0 aborted: OSError")
    assert last_line(shown).endswith("(and the log could not be written: [Errno 27] File too large)")


def test_missing_data_is_one_clear_line(endless: dict[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for code, shown in ended(tmp_path / "log", endless | {"DATADIR": str(empty)}):
        assert code == 1
        assert "c4-train.en_6_text_document" in last_line(shown)
        assert "Traceback" not in shown
    assert_aborted(tmp_path / "log", "DataError")


def test_truncated_data_is_named(endless: dict[str, str], tmp_path: Path) -> None:
    data = Path(shutil.copytree(endless["DATADIR"], tmp_path / "data"))
    for rank, (code, shown) in enumerate(ended(tmp_path / "log", endless | {"DATADIR": str(data)}, fault="truncate")):
        assert code == 1
        assert last_line(shown).startswith(f"rank {rank} aborted: DataError: {data / TRAIN_PREFIX}.bin: got ")
        assert "the file was cut while it was in use" in last_line(shown)
        assert "Traceback" not in shown
    assert_aborted(tmp_path / "log", "the file was cut while it was in use")


@pytest.mark.parametrize("resume", ["0", "1"])
def test_a_second_run_never_touches_the_log_of_a_running_one(
    alone: dict[str, str], tmp_path: Path, resume: str
) -> None:
    own = alone | {"SAVE_INTERVAL": "4", "LOGDIR": str(tmp_path)}
    with started(tmp_path / "first", own, fault="stop") as first:
        process = first.processes[0]
        wait_until(lambda: is_stopped(process), 120, "the first run's third step")
        before = (tmp_path / "result_0.txt").read_bytes()
        ((code, shown),) = ended(tmp_path / "second", own | {"RESUME": resume})
        assert (tmp_path / "result_0.txt").read_bytes() == before
        os.kill(process.pid or 0, signal.SIGCONT)
        assert first.wait(0)[0] == 3
    assert code == 2
    why = "another run is writing" if resume == "1" else "exists, and results are never overwritten"
    assert last_line(shown).startswith("error: LOGDIR: ")
    assert why in last_line(shown)
    assert len(values(tmp_path / "result_0.txt", "train_loss")) == 6


def is_stopped(process: BaseProcess) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_rendezvous_port_in_use_is_named(endless: dict[str, str], tmp_path: Path) -> None:
    with started(tmp_path / "left", endless | {"DGXNGPU": "1"}, job="leftover"):
        said = tmp_path / "left" / "output0"
        wait_until(lambda: said.exists() and said.read_text().endswith("\n"), 120, "the port of what was left")
        port = int(said.read_text().split()[-1])
        found = ended(tmp_path / "log", endless | {"COLLECTIVE_TIMEOUT": "5"}, port=port)
    for rank, (code, shown) in enumerate(found):
        assert code == 1
        assert last_line(shown).startswith(f"rank {rank} aborted: LaunchError: MASTER_ADDR, MASTER_PORT: ")
        assert "set another MASTER_PORT" in last_line(shown)
        assert "Traceback" not in shown
    assert f"port: {port}" in found[0][1]
    assert "EADDRINUSE" in found[0][1]
    assert_aborted(tmp_path / "log", "set another MASTER_PORT")


@pytest.fixture
def on_time(alone: dict[str, str], tmp_path: Path) -> Path:
    """The log of the run whose clock nobody sets."""
    assert [code for code, _ in ended(tmp_path / "on time", alone)] == [3]
    return tmp_path / "on time" / "result_0.txt"


def clock_findings(log: Path) -> list[str]:
    with log.open("rb") as content:
        found = judge_run(parse(content, log.name), "6.1.0", None, in_set=True).findings
    return [f"{each.rule}: {each.message}" for each in found if each.rule.startswith(("clock", "time"))]


def test_setting_the_clock_changes_times_and_nothing_else(alone: dict[str, str], on_time: Path, tmp_path: Path) -> None:
    # By the wall clock a checkpoint would be due an hour on.
    alone |= {"SAVE_INTERVAL": "30min"}
    for name, seconds in {"back": -3600.0, "on": 3600.0}.items():
        ((code, shown),) = ended(tmp_path / name, alone, job="clock_jumps", seconds=seconds)
        log = tmp_path / name / "result_0.txt"
        assert code == 3
        assert not (tmp_path / name / "checkpoints").exists()
        for key in ("train_loss", "eval_accuracy"):
            assert values(log, key) == values(on_time, key)
        assert [each["key"] for each in records(log)] == [each["key"] for each in records(on_time)]
        rates = [each["throughput"] for each in values(log, "tracked_stats")]
        assert len(rates) == 3
        assert all(rate > 0.1 for rate in rates), "a block of an hour would have 0.001"
        assert all(rate < 1e5 for rate in rates)
        assert "tokens/s" in shown
        times = [each["time_ms"] for each in records(log)]
        jump = max((after - before for before, after in pairwise(times)), key=abs)
        assert jump == pytest.approx(1000 * seconds, abs=60_000)
        found = clock_findings(log)
        if seconds < 0:
            assert [each.partition(":")[0] for each in found] == [
                "clock-run-start",
                "clock-run-stop",
                "clock-backwards",
            ]
            assert "run_stop is earlier than run_start" in found[1]
            assert re.search(r"the clock runs back by 3,(5[0-9][0-9]|600)\.[0-9] s", found[2])
        else:  # nothing tells a clock that was set forward from a run that took an hour
            assert found == clock_findings(on_time) == []


def test_sigterm_to_the_launcher_ends_the_log_and_every_process(endless: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
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
    launcher.send_signal(signal.SIGTERM)
    began = time.monotonic()
    rest = launcher.communicate(timeout=60)[1]
    assert launcher.returncode != 0
    assert time.monotonic() - began < 60
    assert "rank 0 aborted: received SIGTERM" in rest
    assert_aborted(tmp_path, "received SIGTERM")
    with pytest.raises(ProcessLookupError):  # nothing of the group is left, not even a zombie
        os.killpg(launcher.pid, 0)
