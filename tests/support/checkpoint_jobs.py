"""Runs that save checkpoints, are killed or hindered where a test says so, and are resumed."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from gptoss20b.callbacks import Callback
from gptoss20b.checkpoint import checkpointer, files, shards
from gptoss20b.config import resolve
from gptoss20b.train import run

LIMIT_S = 60.0
# Function that is called at this moment of a save, by its module.
MOMENTS = {
    "writing": (shards, "size_and_crc"),
    "committing": (checkpointer, "commit"),
    "pruning": (checkpointer, "prune"),
}


def train(
    variables: dict[str, str],
    *,
    die_before: int = 0,
    die_in: str = "",
    hold_until: int = 0,
    fill: str = "",
    no_files_in: int = 0,
    slow_s: float = 0,
    never_writes: bool = False,
) -> int:
    """Run one rank and return its exit status. Append a line per complete checkpoint to `committed` beside LOGDIR.

    Args:
        variables: the configuration.
        die_before: this rank is killed before this step.
        die_in: rank 0 is killed at this moment of the second save, a key of MOMENTS.
        hold_until: files are written before this step. Those of other checkpoints are written when the run waits.
        fill: folder of a disk that rank 0 fills once all ranks have written a checkpoint's files.
        no_files_in: rank 1 can write no file above 64 KiB in this step and the two before.
        slow_s: seconds that rank 0 takes to verify a checkpoint, and to fail to remove an old one.
        never_writes: the disk never answers.
    """
    logdir, rank_zero = Path(variables["LOGDIR"]), os.environ["RANK"] == "0"
    released = threading.Event()

    class Fault(Callback):
        def on_step_start(self, step: int) -> None:
            if step == die_before:
                _die()
            if step == hold_until:
                _let_write(released)
            if no_files_in and not rank_zero:
                limit = 1 << 16 if no_files_in - 2 <= step <= no_files_in else resource.RLIM_INFINITY
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    with contextlib.ExitStack() as stack:

        def patch(target: Any, name: str, replacement: Any) -> None:
            stack.enter_context(mock.patch.object(target, name, replacement))

        if die_in and rank_zero:
            module, name = MOMENTS[die_in]
            patch(module, name, _killed_in_second(getattr(module, name)))
        if never_writes:
            patch(shards.Shards, "_write", lambda self: threading.Event().wait())
        else:
            patch(shards.Shards, "is_written", _releasing(released))
            patch(shards.Shards, "_write", _held(released))
        if slow_s and rank_zero:
            patch(checkpointer, "verify_files", _slow(files.verify_files, slow_s))
            patch(checkpointer, "prune", _slow(_cannot_remove, slow_s))
        patch(checkpointer, "commit", _noting(logdir, vars(checkpointer)["commit"]))
        if fill:
            patch(checkpointer, "release_reserved_space", _filling(Path(fill)))
        if (no_files_in or slow_s or never_writes) and rank_zero:
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context((logdir.parent / "stderr").open("w"))))
        return int(run(resolve(variables), [Fault()]))


def _slow(original: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def replaced(*arguments: Any) -> Any:
        time.sleep(seconds)
        return original(*arguments)

    return replaced


def _cannot_remove(*_: Any) -> None:
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), "an old one")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_in_second(original: Callable[..., Any]) -> Callable[..., Any]:
    folders: set[Any] = set()

    def replaced(path: Path, *arguments: Any) -> Any:
        # The path is a file of the new checkpoint, its folder, or the folder of all checkpoints.
        folders.add(len(folders) if path.name == "checkpoints" else path.parent if path.is_file() else path)
        if len(folders) == 2:
            _die()
        return original(path, *arguments)

    return replaced


def _held(released: threading.Event) -> Callable[[shards.Shards], Any]:
    """Write no files before the event is set."""
    write = shards.Shards._write

    def replaced(self: shards.Shards) -> Any:
        assert released.wait(LIMIT_S), "training does not continue while a checkpoint is written"
        return write(self)

    return replaced


def _releasing(released: threading.Event) -> Callable[[shards.Shards, float], bool]:
    """Let the files be written once the run waits for them."""
    is_written = shards.Shards.is_written

    def replaced(self: shards.Shards, timeout_s: float) -> bool:
        if timeout_s:
            _let_write(released)
        return is_written(self, timeout_s)

    return replaced


def _let_write(released: threading.Event) -> None:
    released.set()
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(LIMIT_S)
    released.clear()


def _noting(logdir: Path, commit: Callable[..., None]) -> Callable[..., None]:
    """Note the step of each checkpoint, the losses logged when it is complete, and the processes that exist."""

    def replaced(part: Path, checkpoint: files.CheckpointMetadata) -> None:
        log, processes = (logdir / "result_0.txt").read_text(), psutil.Process().children(recursive=True)
        stopped = " after run_stop" if '"run_stop"' in log else ""
        with (logdir.parent / "committed").open("a") as file:
            losses = log.count('"train_loss"')
            file.write(f"{checkpoint.train_state.step} at {losses}{stopped}, {len(processes)} processes\n")
        commit(part, checkpoint)

    return replaced


def _filling(disk: Path) -> Callable[[Path], None]:
    def replaced(part: Path) -> None:
        with contextlib.suppress(OSError), (disk / "others").open("ab", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
        files.release_reserved_space(part)

    return replaced
