"""The sampler: one process per node that reads the GPUs at a fixed interval until a signal ends it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..stopping import die_with_parent
from .csv_file import CsvFile, format_row
from .gpus import Gpu, NoGpuError, Reading, open_gpus

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A driver that does not answer for so long ends the sampler.
_MAX_WAIT_SECONDS = 30
_EMPTY = Reading()


class Warnings:
    """Prints each warning once: a fault of a GPU or a disk comes back at every sample."""

    def __init__(self) -> None:
        self._printed: set[str] = set()

    def __call__(self, about: str, message: object) -> None:
        """Print a message, unless there has been one about the same."""
        if about not in self._printed:
            self._printed.add(about)
            with contextlib.suppress(OSError):
                print(f"warning: telemetry: {message}", file=sys.stderr, flush=True)


def csv_name(node: int) -> str:
    """Return the file name of a node: telemetry.csv on node 0, telemetry_node3.csv on node 3."""
    return f"telemetry_node{node}.csv" if node else "telemetry.csv"


def sample_until_signal(path: Path, interval: float, limit: int | None = None, parent: int | None = None) -> bool:
    """Append readings of this node's GPUs to a file, until SIGTERM, SIGINT or SIGHUP. Return False for a failure.

    A failure is one warning on stderr: no GPU, no folder, a second sampler of the same file, an error of the library.

    Args:
        path: CSV file.
        interval: seconds between samples.
        limit: largest number of GPUs.
        parent: process id of the parent, with which this process ends.
    """
    if parent is not None:
        die_with_parent()
        if os.getppid() != parent:
            return True  # it was faster
    # Blocked signals wait for sigtimedwait, so that none cuts a row. Threads of the library inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    warn = Warnings()
    signal.alarm(_MAX_WAIT_SECONDS)  # whose default action ends the process even inside a call of the driver
    try:
        gpus = open_gpus(limit)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = CsvFile(path)
        _sample(gpus, file, interval, warn)
    except NoGpuError as error:
        warn("end", f"no GPU to sample ({error})")
    except Exception as error:  # each library has its own exception class
        warn("end", f"ended: {error}")
    else:
        return True
    return False


def _sample(gpus: Sequence[Gpu], file: CsvFile, interval: float, warn: Warnings) -> None:
    due = time.monotonic()
    while True:
        signal.alarm(_MAX_WAIT_SECONDS)
        rows = list(read_rows(gpus, warn))
        try:
            file.append(rows)
        except OSError as error:
            warn("file", f"{error.strerror}: samples are lost until it can be written again")
        signal.alarm(0)
        # Times that have passed are left out.
        due += interval * max(1, math.ceil((time.monotonic() - due) / interval))
        if signal.sigtimedwait(_STOP, max(0.0, due - time.monotonic())):
            return


def read_rows(gpus: Sequence[Gpu], warn: Warnings) -> Iterator[str]:
    """Yield a row for each GPU that answers. They share a time, so that their sum is the node's."""
    now_ms = time.time_ns() // 1_000_000
    for gpu in gpus:
        reading = gpu.read()
        name = gpu.uuids[0] if gpu.uuids else ""
        if reading == _EMPTY:
            warn(name or str(gpu.index), f"GPU {gpu.index} ({name or 'no UUID'}) does not answer")
        else:
            yield format_row(now_ms, gpu.index, name, reading)
