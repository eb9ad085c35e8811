"""Stacks of a rank that makes no progress: who writes them, when, and that a slow phase leaves none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptoss20b.stacks import HangWatch, StacksFile, record_collectives
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

TIMEOUT_S = 0.4  # stacks after 0.3 s


def watch_of(folder: Path, rank: int = 0, world_size: int = 1, timeout_s: float = TIMEOUT_S) -> HangWatch:
    return HangWatch(StacksFile(rank, world_size, folder), timeout_s)


def hang_until_written(path: Path) -> str:
    wait_until(lambda: path.exists() and "hang_until_written" in path.read_text(), 20, "stacks")
    return path.read_text()


def test_a_rank_without_progress_writes_its_stacks_and_removes_them_when_it_continues(tmp_path: Path) -> None:
    path = tmp_path / "stacks_rank0.txt"
    with watch_of(tmp_path) as watch:
        watch.on_step_start(7)
        head = hang_until_written(path).splitlines()[0]
        assert f" rank 0 of 1, {os.uname().nodename}, process {os.getpid()}, step 7: no progress for 0 s" in head
        assert str(path) in watch.describe()
        watch.on_step_start(8)
        assert not path.exists()
        assert watch.describe() == ""
        watch.on_eval_start(8)
        assert "evaluation after step 8: no progress" in hang_until_written(path)
    assert not path.exists()  # the run continued to its end


def test_progress_in_time_leaves_no_file(tmp_path: Path) -> None:
    with watch_of(tmp_path, timeout_s=0.8) as watch:
        for step in range(10):
            watch.on_step_start(step)
            time.sleep(0.08)
    assert list(tmp_path.iterdir()) == []


def test_stacks_of_a_run_that_fails_stay_after_those_of_an_earlier_attempt(tmp_path: Path) -> None:
    path = tmp_path / "stacks_rank0.txt"
    path.write_text("earlier\n")
    error = RuntimeError("Timed out waiting")
    with pytest.raises(RuntimeError), watch_of(tmp_path) as watch:
        hang_until_written(path)
        watch.progress("warm-up")
        assert path.read_text() == "earlier\n"
        hang_until_written(path)
        raise error
    watch.write_error(error)
    earlier, hang, *_ = path.read_text().splitlines()
    assert earlier == "earlier" and "warm-up: no progress" in hang
    assert "warm-up: RuntimeError: Timed out waiting\nTraceback" in path.read_text()


def test_the_line_of_a_rank_names_those_that_wrote_no_stacks(tmp_path: Path) -> None:
    (tmp_path / "stacks_rank3.txt").write_text("of an earlier attempt")
    os.utime(tmp_path / "stacks_rank3.txt", (0, 0))
    watches = [watch_of(tmp_path, rank, world_size=4) for rank in (0, 2)]
    time.sleep(TIMEOUT_S)
    for watch in watches:
        watch.write_if_overdue()  # without the thread: as from a signal
    assert watches[0].describe() == f"stacks: {tmp_path / 'stacks_rank0.txt'}, none from rank 1, 3"


def test_an_unknown_or_full_folder_costs_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    unknown = HangWatch(StacksFile(0, 1, None), TIMEOUT_S)
    unknown.write_error(RuntimeError("broken"))
    assert "RuntimeError: broken" in capfd.readouterr().err
    assert unknown.describe() == ""
    (tmp_path / "file").touch()
    lost = watch_of(tmp_path / "file")
    lost.write_error(RuntimeError("broken"))
    assert lost.describe() == ""
    assert "stacks of rank 0 are lost" in capfd.readouterr().err


@pytest.mark.parametrize("stuck_in", ["while True: pass", "ctypes.PyDLL(None).sleep(60)"], ids=["Python", "C"])
def test_a_rank_that_hangs_itself_shows_where(tmp_path: Path, stuck_in: str) -> None:
    """C code that keeps the GIL stops every Python thread: then the stacks are on stderr."""
    code = f"""
import ctypes
from pathlib import Path
from gptoss20b.stacks import HangWatch, StacksFile
def guilty():
    {stuck_in}
with HangWatch(StacksFile(0, 1, Path({str(tmp_path)!r})), {TIMEOUT_S}):
    guilty()
"""
    output = tmp_path / "stderr"
    with output.open("w") as stderr, subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=stderr) as process:
        stacks = output if "PyDLL" in stuck_in else tmp_path / "stacks_rank0.txt"
        try:
            wait_until(lambda: stacks.exists() and " in guilty" in stacks.read_text(), 30, "stacks")
        finally:
            process.send_signal(signal.SIGKILL)


def test_the_flight_recorder_writes_beside_the_log_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("TORCH_NCCL_", "TORCH_FR_")):
            monkeypatch.delenv(name)
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {"TORCH_FR_BUFFER_SIZE": "7", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"})
        record_collectives(tmp_path)
        assert os.environ == {
            "TORCH_FR_BUFFER_SIZE": "7",
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{tmp_path}/nccl_trace_rank_",
        }
        patch.setattr(os, "environ", {})
        record_collectives(None)
        assert os.environ == {"TORCH_NCCL_TRACE_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
