"""Run a function of `tests.support.jobs` or a sibling module on N gloo ranks, with a free port and a time limit.

Ranks are forked from a server that has imported torch and Megatron-Core: the imports take longer than most jobs.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import secrets
import signal
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Use the CPU on a machine with GPUs too.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}


_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.support.preloaded"])


def free_port() -> int:
    """Return a free port below the ephemeral range, so that the system hands it to nobody before it is used."""
    while True:
        port = secrets.randbelow(20_000) + 10_000
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_ranks(job: str, world: int, limit_s: float = 180.0, **arguments: Any) -> list[Any]:
    """Call a job on ``world`` ranks and return the results by rank.

    Args:
        job: function of `tests.support.jobs`, or of another module: ``optimizer_jobs.compare_updates``.
        world: number of ranks.
        limit_s: time limit in seconds.
        arguments: keyword arguments of the job.

    Raises:
        AssertionError: a rank failed or the time is over, with the last output of every rank. All ranks are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = start_ranks(job, world, Path(folder), **arguments)
        try:
            _wait(processes, limit_s)
        finally:
            kill_ranks(processes)
        results = [Path(folder) / f"result{rank}" for rank in range(world)]
        if not all(path.exists() for path in results):
            outputs = "\n".join(
                f"--- rank {rank}\n{(Path(folder) / f'output{rank}').read_text(errors='replace')[-3000:]}"
                for rank in range(world)
            )
            raise AssertionError(f"{job} on {world} ranks did not finish within {limit_s:g} s\n{outputs}")
        return [pickle.loads(path.read_bytes()) for path in results]  # written by this test's own processes


def start_ranks(job: str, world: int, folder: Path, /, **arguments: Any) -> list[BaseProcess]:
    """Start the ranks of a job. Each writes ``result<rank>`` (pickled) and ``output<rank>`` to the folder.

    Each rank leads a process group, which the caller must end with `kill_ranks`.
    """
    shared = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        **NO_GPU,
    }
    processes: list[BaseProcess] = []
    for rank in range(world):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(_FORKED.Process(target=_run_rank, args=(environment, folder, rank, job, arguments)))
        processes[-1].start()
    return processes


def kill_ranks(processes: Sequence[BaseProcess]) -> None:
    """Kill the ranks and the processes that they started."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()


def _wait(processes: Sequence[BaseProcess], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        codes = [process.exitcode for process in processes]
        if any(codes) or all(code == 0 for code in codes):
            return
        time.sleep(0.05)


def _run_rank(environment: dict[str, str], folder: Path, rank: int, job: str, arguments: dict[str, Any]) -> None:
    os.setpgid(0, 0)
    output = os.open(folder / f"output{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    warnings.simplefilter("ignore")  # Megatron-Core's would fill the output that a failure shows
    try:
        module, _, function = job.rpartition(".")
        value = getattr(importlib.import_module(f"tests.support.{module or 'jobs'}"), function)(**arguments)
        temporary = folder / f"result{rank}.tmp"
        temporary.write_bytes(pickle.dumps(value))
        temporary.rename(folder / f"result{rank}")
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
