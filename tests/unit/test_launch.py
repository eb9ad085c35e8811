"""torchrun's own messages: none for ends that the ranks explain, one line for others; and its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from gptoss20b import launch
from gptoss20b.failure_report import report_failure
from gptoss20b.launch import Supervision, describe
from tests.support.paths import ROOT
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("ranks", "end", "status", "fact"),
    [
        (1, "exit 3", 3, ""),
        (1, "exit 4", 4, ""),
        (1, "kill -TERM $PPID; sleep 20", 1, ""),
        (1, "exit 1", 1, "rank 0 exited with 1"),
        (1, "exit 143", 1, "rank 0 exited with 143"),
        (1, "kill -KILL $$$$", 1, "rank 0 was killed by SIGKILL"),
        (2, "((RANK)) && sleep 20; exit 2", 2, ""),
        # torchrun itself would wait 30 s.
        (2, "((RANK)) && kill -STOP $$$$; sleep 0.5; exit 1", 1, "rank 1 was stopped"),
    ],
)
def test_the_end_of_a_rank(ranks: int, end: str, status: int, fact: str) -> None:
    command = [sys.executable, "-m", "gptoss20b.launch", "--standalone", f"--nproc_per_node={ranks}", "--no-python"]
    done = subprocess.run(
        [*command, "bash", "-c", end],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # otherwise torchrun says that it sets it
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (status, bool(fact)), done.stderr
    assert fact in done.stderr


def failure(rank: int, exitcode: int, folder: Path, reason: str = "") -> ProcessFailure:
    """Return the failure of a rank as torchrun reports it; with a reason, the rank has reported it now."""
    path = folder / f"error{rank}.json"
    if reason:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
            report_failure(reason, None)
    return ProcessFailure(local_rank=rank, pid=1000 + rank, exitcode=exitcode, error_file=str(path))


# Per rank: exit status and reason, if it gave one. Each rank ended after the previous one in this list.
Ends = list[tuple[int, int, str]]


@pytest.mark.parametrize(
    ("ends", "line"),
    [
        # The peer of a killed rank notices first.
        ([(0, 1, "connection closed"), (1, -9, "")], "rank 1 was killed by SIGKILL (process 1001)"),
        ([(0, -6, ""), (1, -9, ""), (2, -15, "")], "rank 1 was killed by SIGKILL (process 1001)"),
        ([(0, -15, ""), (1, -6, "")], "rank 1 was killed by SIGABRT (process 1001)"),
        ([(0, -6, ""), (1, 1, "no memory")], "rank 1 failed first: no memory"),  # NCCL's watchdog ends rank 0
        ([(1, 1, "disk full"), (0, 1, "connection closed")], "rank 1 failed first: disk full"),
        ([(1, 1, "disk full"), (0, 143, "received SIGTERM")], "rank 1 failed first: disk full"),
        ([(0, 1, "connection closed"), (1, 1, "")], "rank 1 exited with 1 (process 1001)"),
        # The reason has been the last line.
        ([(1, 1, "disk full"), (0, 143, "")], None),
        ([(0, 4, "loss is nan"), (1, 4, "loss is nan")], None),
        ([(0, 3, ""), (1, 3, "")], None),
    ],
)
def test_the_rank_that_failed_first_is_named(ends: Ends, line: str | None, tmp_path: Path) -> None:
    failures = {rank: failure(rank, code, tmp_path, reason) for rank, code, reason in ends}
    assert describe(dict(sorted(failures.items())), set(), set()) == line


def test_a_rank_that_this_launcher_killed_is_not_named_for_it(tmp_path: Path) -> None:
    failures = {0: failure(0, 1, tmp_path, "timed out"), 1: failure(1, -9, tmp_path)}
    assert describe(failures, {1001}, set()) == "rank 1 was stopped, e.g. by SIGSTOP, and did not answer (process 1001)"
    assert describe(failures, set(), {1001}) is None


@pytest.mark.parametrize("trap", ["trap '' TERM;", ""], ids=["ignores it", "ends"])
def test_a_process_that_does_not_end_when_told_to_is_killed(
    trap: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_END_SECONDS", 0.2)
    supervision = Supervision()
    code = f"{trap} echo up; while :; do read -t 0.02 < <(:); done"
    with subprocess.Popen(["bash", "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        supervision.on_audit("os.killpg", (process.pid, signal.SIGTERM))
        process.terminate()
        try:
            assert process.wait(10) == (-signal.SIGKILL if trap else -signal.SIGTERM)
        finally:
            process.kill()
    assert supervision.overdue == ({process.pid} if trap else set())
    assert ("did not end" in capsys.readouterr().err) == bool(trap)


@pytest.mark.parametrize("value", [None, "", "0"])
def test_a_run_without_telemetry_imports_nothing_for_it(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gptoss20b.telemetry.beside_run", raising=False)
    monkeypatch.delenv("TELEMETRY", raising=False)
    if value is not None:
        monkeypatch.setenv("TELEMETRY", value)
    with launch.sample_gpus(["--nproc_per_node=2", "-m", "gptoss20b", "train"]):
        assert "gptoss20b.telemetry.beside_run" not in sys.modules


def test_a_supervision_that_has_ended_leaves_signals_alone() -> None:
    """Its hook stays in the process, whose later signals are none of its business."""
    supervision = Supervision()
    supervision.end()
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, 10, "the stop")
        supervision.on_audit("os.kill", (process.pid, signal.SIGTERM))
        assert supervision.stopped == set()
        process.kill()
