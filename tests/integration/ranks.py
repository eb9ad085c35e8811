"""Run a function of `jobs` (or of another module) on N gloo ranks, with a free port and a time limit."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# These tests are about the CPU, also on a machine that has more.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(job: str, world: int, limit_s: float = 180.0, **arguments: Any) -> list[Any]:
    """Call ``jobs.<job>(**arguments)`` in ``world`` processes and return what each returned, by rank.

    A job of another module is named with it, e.g. ``numbers_jobs.updates``.

    All are killed when one fails or the limit is reached; the failure then holds every rank's last output.
    """
    with tempfile.TemporaryDirectory() as folder:
        shared = os.environ | {
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
            **NO_GPU,
            "PYTHONWARNINGS": "ignore",  # Megatron's, which would fill the outputs shown on failure
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'integration'}",
        }
        task = Path(folder) / "task"
        task.write_bytes(pickle.dumps((job, arguments)))
        processes = []
        for rank in range(world):
            output = (Path(folder) / f"output{rank}").open("wb")
            command = [sys.executable, __file__, str(task), str(Path(folder) / f"result{rank}")]
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen(command, env=shared | own, stdout=output, stderr=subprocess.STDOUT, process_group=0)
            )
            output.close()
        try:
            _wait(processes, limit_s)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        results = [Path(folder) / f"result{rank}" for rank in range(world)]
        if not all(path.exists() for path in results):
            outputs = "\n".join(
                f"--- rank {rank}\n{(Path(folder) / f'output{rank}').read_text(errors='replace')[-3000:]}"
                for rank in range(world)
            )
            raise AssertionError(f"{job} on {world} ranks did not finish within {limit_s:g} s\n{outputs}")
        return [pickle.loads(path.read_bytes()) for path in results]  # written by this test's own processes


def _wait(processes: list[subprocess.Popen[bytes]], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if any(codes) or all(code == 0 for code in codes):
            return
        time.sleep(0.05)


def _main(task: Path, result: Path) -> None:
    job, arguments = pickle.loads(task.read_bytes())
    module, _, function = job.rpartition(".")
    value = getattr(importlib.import_module(module or "jobs"), function)(**arguments)
    temporary = result.with_suffix(".tmp")
    temporary.write_bytes(pickle.dumps(value))
    temporary.rename(result)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
