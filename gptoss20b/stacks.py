"""Python stacks of a rank that makes no progress, or that an unexpected error ends: `stacks_rank<R>.txt` in LOGDIR.

A rank that waits in a collective, and the rank that it waits for, have started the same step. So each of them can
write its own stacks before the collective times out. Later is too late on a GPU: NCCL's watchdog ends a process
without returning to Python.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from .callbacks import Callback

# The rest of the timeout is for what a rank does in a step before its first collective.
_PART_OF_TIMEOUT = 0.75
_STDERR = 2


def record_collectives(directory: Path | None) -> None:
    """Let torch's flight recorder write each rank's last collectives when NCCL times out: `nccl_trace_rank_<R>`.

    Without a folder torch chooses one. Variables that the user has set, by one of their names, stay. Call this before
    the process groups are created.
    """
    variables = {
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE"): "2000",  # events
        ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
    }
    if directory:
        prefix = str(directory / "nccl_trace_rank_")
        variables["TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE"] = prefix
    for names, value in variables.items():
        if not any(name in os.environ for name in names):
            os.environ[names[0]] = value


class StacksFile:
    """The file of one rank. It grows, so a run that resumes keeps the stacks of an earlier attempt.

    Attributes:
        directory: folder of the result. None: not known yet, and stacks go to stderr.
    """

    def __init__(self, rank: int, world_size: int, directory: Path | None) -> None:
        self.directory = directory
        self._rank, self._world_size = rank, world_size

    @property
    def path(self) -> Path | None:
        """Path of the file; None without a folder."""
        return self._path_of(self._rank)

    def append(self, fact: str, write: Callable[[TextIO], None] = lambda _: None) -> None:
        """Append a line with time, rank, host, process and ``fact``, and what ``write`` writes. Never raise."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = f"{now} rank {self._rank} of {self._world_size}, {socket.gethostname()}, process {os.getpid()}, {fact}"
        path = self.path
        try:
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)  # on another machine
            with open(path or _STDERR, "a", encoding="utf-8", closefd=path is not None) as file:
                print(line, file=file, flush=True)
                write(file)
        except OSError as error:
            print(f"warning: the stacks of rank {self._rank} are lost: {error}", file=sys.stderr, flush=True)

    def size(self) -> int:
        """Return its size in bytes; 0 if it does not exist."""
        return self.path.stat().st_size if self.path and self.path.exists() else 0

    def truncate(self, size: int) -> None:
        """Remove all after ``size`` bytes. Remove an empty file."""
        if self.path and self.path.exists():
            os.truncate(self.path, size)
            if size == 0:
                self.path.unlink()

    def silent_ranks(self, seconds: float) -> list[int]:
        """Return the ranks whose files are older by ``seconds`` than this rank's, or do not exist."""
        paths = {rank: self._path_of(rank) for rank in range(self._world_size)}
        times = {rank: path.stat().st_mtime for rank, path in paths.items() if path and path.exists()}
        oldest = times.get(self._rank, 0.0) - seconds
        return [rank for rank in paths if times.get(rank, 0.0) < oldest]

    def _path_of(self, rank: int) -> Path | None:
        return self.directory and self.directory / f"stacks_rank{rank}.txt"


class HangWatch(Callback):
    """Write the stacks of all threads of this rank after 3/4 of the collective timeout without progress.

    Progress is a call of `progress` or of a hook. It removes the stacks that a slow phase has left.

    Args:
        file: receives the stacks.
        timeout_seconds: time after which a collective fails.
    """

    def __init__(self, file: StacksFile, timeout_seconds: float) -> None:
        self.file = file
        self._limit_seconds = _PART_OF_TIMEOUT * timeout_seconds
        self._phase, self._since = "start", time.monotonic()
        self._size_before: int | None = None  # of the file, before the stacks of this phase; None: it has none
        self._has_error = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)

    def __enter__(self) -> HangWatch:
        self._expect_thread()
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if error is None:
            self.progress("end")

    def progress(self, phase: str) -> None:
        """Start a phase, e.g. "step 7", and its time limit."""
        self._phase, self._since = phase, time.monotonic()
        if self._size_before is not None:
            with self._lock:
                self.file.truncate(self._size_before)
                self._size_before = None

    def on_step_start(self, step: int) -> None:
        """Start the time limit of a step."""
        self.progress(f"step {step}")

    def on_eval_start(self, step: int) -> None:
        """Start the time limit of an evaluation."""
        self.progress(f"evaluation after step {step}")

    def on_train_stop(self, converged: bool) -> None:
        """Start the time limit of the end of the run."""
        self.progress("end of the run")

    def write_error(self, error: Exception) -> None:
        """Write the traceback of an error that ends this rank."""
        self._has_error = True
        fact = f"{self._phase}: {type(error).__name__}: {error}".splitlines()[0]
        self.file.append(fact, lambda file: traceback.print_exception(error, file=file))

    def write_if_overdue(self) -> bool:
        """Write the stacks, once in a phase, if its time limit is over. Return True if they have been written now."""
        with self._lock:
            waited = time.monotonic() - self._since
            if waited < self._limit_seconds or self._size_before is not None:
                return False
            self._size_before = self.file.size()
            self.file.append(f"{self._phase}: no progress for {waited:.0f} s", faulthandler.dump_traceback)
            return True

    def describe(self) -> str:
        """Return where the stacks are, and which ranks wrote none of a hang; empty if this rank wrote none."""
        if self.file.size() == 0 or not (self._has_error or self._size_before is not None):
            return ""
        silent = self._silent_ranks()
        return f"stacks: {self.file.path}" + (f", none from rank {silent}" if silent else "")

    def _silent_ranks(self) -> str:
        silent = [] if self._size_before is None else self.file.silent_ranks(self._limit_seconds)
        return ", ".join(map(str, silent))

    def _watch(self) -> None:
        interval = min(1.0, self._limit_seconds / 10)
        while not self._ended.wait(interval):
            self._expect_thread()
            # Ranks that have started a step together write their stacks within a few intervals.
            if self.write_if_overdue() and not self._ended.wait(3 * interval):
                self._write_silent_ranks()

    def _expect_thread(self) -> None:
        """Write the stacks to stderr if the thread does not come here again in time: C code keeps the GIL."""
        faulthandler.dump_traceback_later(self._limit_seconds, file=_STDERR)

    def _write_silent_ranks(self) -> None:
        with self._lock:
            if self._size_before is not None and (silent := self._silent_ranks()):
                self.file.append(
                    f"{self._phase}: no stacks here from rank {silent}: stopped, dead, on another machine, or in C "
                    "code that keeps Python's lock (then they are on stderr)"
                )
