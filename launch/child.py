"""Child processes, and the signals that end them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from launch.errors import RefusedError
from launch.variables import Environment

Child = subprocess.Popen[bytes]

# The start of a command whose process gets TERM when this one dies, even by KILL.
WITH_PARENT = ("setpriv", "--pdeathsig", "TERM")

INTERRUPTED, TERMINATED = 130, 143
# HUP counts as TERM: a closed terminal ends the run in an orderly way.
_STATUSES = {signal.SIGTERM: TERMINATED, signal.SIGHUP: TERMINATED, signal.SIGINT: INTERRUPTED}


def log(text: str) -> None:
    """Print to stderr. A closed stderr must not end a set."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def forward(child: Child, number: signal.Signals) -> None:
    """Send a signal to a child that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)


class Supervisor:
    """Runs one child at a time, and forwards the first signal to it.

    Attributes:
        terminated: 143 after TERM or HUP, 130 after INT, 0 without a signal.
    """

    def __init__(self) -> None:
        if not shutil.which(WITH_PARENT[0]):
            raise RefusedError(
                f"{WITH_PARENT[0]}: command not found. It ends a run with its launcher: install util-linux"
            )
        self.terminated = 0
        self._child: Child | None = None
        self._stop: Callable[[Child, signal.Signals], None] = forward

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle signals in this block. Outside, they end this process as usual."""
        previous = {number: signal.signal(number, self._on_signal) for number in _STATUSES}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def run(
        self,
        command: list[str],
        environment: Environment,
        *,
        output: int | None = None,
        stop: Callable[[Child, signal.Signals], None] = forward,
        pass_fds: tuple[int, ...] = (),
        on_start: Callable[[Child], None] | None = None,
    ) -> int:
        """Run a command to its end, and return its exit status, 128 + n if signal n killed it.

        The child gets TERM when this process dies, even by KILL: an orphan would keep the accelerators busy. It is in
        its own process group, so Ctrl-C reaches this process alone, which forwards it once.

        Args:
            command: program and arguments.
            environment: of the child.
            output: file descriptor of its stdout and stderr; by default they are this process's.
            stop: ends the child on a signal, which is INT or TERM.
            pass_fds: file descriptors that the child inherits.
            on_start: called with the child when it runs.
        """
        self._stop = stop
        child = subprocess.Popen(
            [*WITH_PARENT, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            preexec_fn=os.setpgrp,  # noqa: PLW1509 - process_group needs Python 3.11; other threads hold no locks
        )
        self._child = child
        if self.terminated:  # the signal may have come before there was a child
            self._stop_child()
        if on_start is not None:
            on_start(child)
        status = child.wait()
        self._child = None
        return status if status >= 0 else 128 - status

    def _on_signal(self, number: int, _frame: object) -> None:
        # Only the first: Slurm sends two at a time limit, and the second would interrupt the child's shutdown.
        if not self.terminated:
            self.terminated = _STATUSES[signal.Signals(number)]
            self._stop_child()

    def _stop_child(self) -> None:
        # Once: a signal may come between the start of a child and the check for an earlier signal.
        child, self._child = self._child, None
        if child is not None:
            self._stop(child, signal.SIGINT if self.terminated == INTERRUPTED else signal.SIGTERM)


@contextlib.contextmanager
def tee(file: Path) -> Iterator[int]:
    """Copy what is written to the yielded file descriptor to stdout and to the end of a file.

    A separate process copies: it survives a full disk, a closed stdout, the signals of the terminal and the death of
    this process. The block ends when the last writer has closed its output, so nothing of the trial is left then.
    """
    reader, writer = os.pipe()
    try:
        copier = subprocess.Popen(["tee", "-p", "-a", "--", str(file)], stdin=reader, start_new_session=True)
    finally:
        os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)
        copier.wait()
