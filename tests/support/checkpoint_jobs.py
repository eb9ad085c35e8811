"""Runs that write checkpoints, are killed or hindered where a test says so, and are gone on with."""

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

import psutil
import torch
import torch._dynamo

from gptoss20b.callbacks import Callback
from gptoss20b.checkpoint import checkpoints, files, shards
from gptoss20b.config import resolve
from gptoss20b.train import run

LIMIT_S = 60.0


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
    """One rank's run; its exit status. What each complete checkpoint found is in `published` beside the log's folder.

    Args:
        variables: the configuration.
        die_before: this rank is killed, as by kill -9, when this step is about to begin.
        die_in: the first rank is killed in the second save: while it is "writing" its files, before they are
            "published", or before "pruning".
        hold_until: files are written when this step is about to begin. Those of other checkpoints are not before the
            run waits for them.
        fill: folder of a disk that the first rank fills when all ranks have written a checkpoint's files.
        no_files_in: the second rank can write no file of more than 64 KiB in this step and the two before.
        slow_s: what the first rank takes to look through a checkpoint, and to find that it cannot remove an old one.
        never_writes: the disk never answers a write of a checkpoint's files.
    """
    # Megatron-Core compiles the choice of experts by their biases, which takes longer than all steps.
    torch._dynamo.config.disable = True
    logdir, first = Path(variables["LOGDIR"]), os.environ["RANK"] == "0"
    if first and die_in:
        module, name = {
            "writing": (shards, "size_and_crc"),
            "published": (checkpoints, "commit"),
            "pruning": (checkpoints, "prune"),
        }[die_in]
        vars(module)[name] = _killed_in_second(vars(module)[name])
    released = threading.Event()
    if never_writes:
        shards.Shards._write = lambda self: threading.Event().wait()  # type: ignore[assignment, method-assign, return-value]
    else:
        _hold(released)
    if slow_s and first:
        checkpoints.verify_files = _slow(checkpoints.verify_files, slow_s)  # type: ignore[attr-defined]
        checkpoints.prune = _slow(_cannot_remove, slow_s)  # type: ignore[attr-defined]
    checkpoints.commit = _noting(logdir, checkpoints.commit)  # type: ignore[attr-defined]
    if fill:
        checkpoints.release_reserved_space = _filling(Path(fill))  # type: ignore[attr-defined]

    class Fault(Callback):
        def on_step_start(self, step: int) -> None:
            if step == die_before:
                _die()
            if step == hold_until:
                _let_write(released)
            if no_files_in and not first:
                limit = 1 << 16 if no_files_in - 2 <= step <= no_files_in else resource.RLIM_INFINITY
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    with contextlib.ExitStack() as stack:
        if (no_files_in or slow_s or never_writes) and first:
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
    folders = set()

    def replaced(path: Path, *arguments: Any) -> Any:
        # The folder of the files, or the one to be named, or that of all checkpoints: a new one with each save.
        folders.add(len(folders) if path.name == "checkpoints" else path.parent if path.is_file() else path)
        if len(folders) == 2:
            _die()
        return original(path, *arguments)

    return replaced


def _hold(released: threading.Event) -> None:
    write, written = shards.Shards._write, shards.Shards.written

    def held(self: shards.Shards) -> Any:
        assert released.wait(LIMIT_S), "training does not go on while a checkpoint is written"
        return write(self)

    def waited_for(self: shards.Shards, wait_s: float) -> bool:
        if wait_s:
            _let_write(released)
        return written(self, wait_s)

    shards.Shards._write = held  # type: ignore[method-assign]
    shards.Shards.written = waited_for  # type: ignore[method-assign]


def _let_write(released: threading.Event) -> None:
    released.set()
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(LIMIT_S)
    released.clear()


def _noting(logdir: Path, publish: Callable[..., None]) -> Callable[..., None]:
    def replaced(part: Path, saved: files.CheckpointMetadata) -> None:
        log, processes = (logdir / "result_0.txt").read_text(), psutil.Process().children(recursive=True)
        stopped = " after run_stop" if '"run_stop"' in log else ""
        with (logdir.parent / "published").open("a") as file:
            losses = log.count('"train_loss"')
            file.write(f"{saved.train_state.step} at {losses}{stopped}, {len(processes)} processes\n")
        publish(part, saved)

    return replaced


def _filling(disk: Path) -> Callable[[Path], None]:
    def replaced(part: Path) -> None:
        with contextlib.suppress(OSError), (disk / "others").open("ab", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
        files.release_reserved_space(part)

    return replaced
