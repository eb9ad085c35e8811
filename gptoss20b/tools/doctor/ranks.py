"""The ranks of this node as processes that communicate, each a `collective`: start, wait, and what they printed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from system_info.files import one_line

from .finding import Finding, failed, passed

# Steps of a rank of `collective`, in the words that it prints.
PROGRESS = ("started", "joined", "summed")

_ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class RanksRun:
    """Outcome of the ranks: what they are, the seconds they took, the reason of a failure, and lines by rank."""

    title: str
    spent_s: float
    failure: str | None
    printed: Sequence[Sequence[str]]


def run_ranks(ranks: int, backend: str, limit_s: float, *arguments: str) -> RanksRun:
    """Run the ranks over nccl or gloo until all have ended, one has failed or the limit has passed.

    ``arguments`` are those of `collective` after its first three.
    """
    with tempfile.TemporaryDirectory(prefix="gptoss20b-doctor-") as folder:
        began, outputs = time.monotonic(), [Path(folder, f"rank{rank}") for rank in range(ranks)]
        program = [sys.executable, "-m", "gptoss20b.tools.doctor.collective"]
        command = [*program, backend, f"{folder}/store", str(limit_s), *arguments]
        processes = [_start_rank(rank, ranks, command, output) for rank, output in enumerate(outputs)]
        try:
            _wait_for_ranks(processes, began + limit_s)
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        printed = [output.read_text(errors="replace").splitlines() for output in outputs]
    title = f"{ranks} ranks over {backend}"
    return RanksRun(title, time.monotonic() - began, _failure_reason(codes, printed), printed)


def judge_ranks(run: RanksRun) -> Finding:
    """Return whether the ranks could communicate."""
    fix = "set NCCL_DEBUG=INFO (RCCL too) or GLOO_SOCKET_IFNAME=lo, try again, and look at driver, links and /dev/shm"
    if run.failure:
        return failed("collectives", f"{run.title}, after {run.spent_s:.1f} s: {run.failure}", fix)
    return passed("collectives", f"{run.title} summed a tensor, and the sum is right; {run.spent_s:.1f} s")


def _start_rank(rank: int, ranks: int, command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
    }
    with output.open("wb") as stream:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)


def _wait_for_ranks(processes: Sequence[subprocess.Popen[bytes]], deadline: float) -> None:
    """Wait until all ranks have ended, one has failed, or the deadline has passed."""
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if any(codes) or None not in codes:
            return
        time.sleep(0.05)


def _failure_reason(codes: Sequence[int | None], printed: Sequence[Sequence[str]]) -> str | None:
    """Return the error of the first rank that failed, or the step that the slowest never reached, or None.

    The code of a rank that did not end in time is None.
    """
    for rank, (code, lines) in enumerate(zip(codes, printed, strict=True)):
        if code:
            return f"rank {rank} failed: {one_line(lines[-1]) if lines else f'exit status {code} without a message'}"
    steps = [sum(step in lines for step in PROGRESS) for lines in printed]
    if None in codes or min(steps) < len(PROGRESS):
        slowest = ", ".join(str(rank) for rank, done in enumerate(steps) if done == min(steps))
        return f"no end; rank {slowest} never {[*PROGRESS, 'ended'][min(steps)]}"
    return None
