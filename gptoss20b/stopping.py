"""How a run ends early: signals that work while a rank hangs, and the exit codes.

A Python signal handler runs only when the main thread comes back to the interpreter, which a rank that waits for a lost
peer inside a collective never does. The C-level handler still writes the signal's number to a file descriptor, so a
thread that reads it can log the end and leave.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class ExitCode(enum.IntEnum):
    """What a run's exit status means."""

    CONVERGED = 0
    FAILED = 1
    BAD_CONFIGURATION = 2
    NOT_CONVERGED = 3
    DIVERGED = 4
    NOT_COMPLIANT = 5  # run_and_time.sh: the official checker refused the log of a run that converged
    INTERRUPTED = 130
    TERMINATED = 143


def exit_code_for(status: str, reason: str | None) -> ExitCode:
    """The exit status of a run whose log ends with this status and reason.

    >>> exit_code_for("aborted", target_not_reached_reason(3.34, 10)).name, exit_code_for("aborted", signal_reason("SIGTERM")).name
    ('NOT_CONVERGED', 'TERMINATED')
    """
    if status == "success":
        return ExitCode.CONVERGED
    if reason in (signal_reason("SIGTERM"), signal_reason("SIGHUP")):
        return ExitCode.TERMINATED
    if reason == signal_reason("SIGINT"):
        return ExitCode.INTERRUPTED
    if (reason or "").startswith(f"{NonFiniteLossError.__name__}: "):
        return ExitCode.DIVERGED
    return ExitCode.NOT_CONVERGED if re.fullmatch(_TARGET_NOT_REACHED, reason or "") else ExitCode.FAILED


def target_not_reached_reason(target: float, steps: int) -> str:
    """The log's reason for a run that ended at max_steps."""
    return f"target {target} not reached in {steps} steps"


_TARGET_NOT_REACHED = r"target \S+ not reached in \d+ steps"


def signal_reason(signal_name: str) -> str:
    """The log's reason for a run that a signal ended."""
    return f"received {signal_name}"


class NonFiniteLossError(RuntimeError):
    """A loss that is not a finite number."""


_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have this process get SIGTERM when its parent ends first, however that ends: an orphan keeps its accelerator.

    Linux only (prctl(2)); elsewhere nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


# A terminal that goes away sends SIGHUP, which torchrun passes on.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_NO_SIGNAL = 0
# A log on a dead file system must not keep the process: it leaves after this many seconds in any case.
_GRACE_SECONDS = 10.0


@contextmanager
def exit_on_signal(on_exit: Callable[[str], None]) -> Iterator[None]:
    """While active, SIGTERM, SIGINT and SIGHUP call ``on_exit("SIGTERM")`` from a thread and end the process.

    The exit status is 130 for SIGINT, else 143. Must be entered on the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # The handlers do nothing, but without one Python leaves the default action, which ends the process at once.
    previous = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}

    def wait() -> None:
        while (received := os.read(reader, 1)[0]) != _NO_SIGNAL:
            if received in _SIGNALS:
                _exit_on_signal(signal.Signals(received), on_exit)

    thread = threading.Thread(target=wait, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        # Not by closing the pipe: a forked child may keep its other end open.
        os.write(writer, bytes([_NO_SIGNAL]))
        thread.join()
        os.close(writer)
        os.close(reader)


def _exit_on_signal(received: signal.Signals, on_exit: Callable[[str], None]) -> None:
    status = ExitCode.INTERRUPTED if received is signal.SIGINT else ExitCode.TERMINATED
    escape = threading.Timer(_GRACE_SECONDS, os._exit, (status,))
    escape.daemon = True
    escape.start()
    try:
        on_exit(received.name)
    finally:
        # The main thread may be stuck in a collective for good.
        hard_exit(status)


def hard_exit(status: int) -> NoReturn:
    """End the process at once: no interpreter shutdown, no destructors."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
