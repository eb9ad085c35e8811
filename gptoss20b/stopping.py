"""Early ends of a run: exit codes, reasons in the log, and signals that work while a rank hangs.

A Python signal handler runs only when the main thread returns to the interpreter. A rank that waits inside a collective
for a lost peer never returns. CPython's C-level handler still writes the signal's number to a file descriptor
(`signal.set_wakeup_fd`). A thread reads the number, logs the end and exits the process.
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
    """Exit statuses of a run."""

    CONVERGED = 0
    FAILED = 1
    BAD_CONFIGURATION = 2
    NOT_CONVERGED = 3
    DIVERGED = 4
    NOT_COMPLIANT = 5  # from run_and_time.sh: converged, but the official checker rejected the log
    INTERRUPTED = 130
    TERMINATED = 143


def exit_code_for(status: str, reason: str | None) -> ExitCode:
    """Return the exit status of a run whose log ends with this status and reason.

    >>> exit_code_for("aborted", target_not_reached_reason(3.34, 10)).name
    'NOT_CONVERGED'
    >>> exit_code_for("aborted", signal_reason("SIGTERM")).name
    'TERMINATED'
    """
    if status == "success":
        return ExitCode.CONVERGED
    if reason in (signal_reason("SIGTERM"), signal_reason("SIGHUP")):
        return ExitCode.TERMINATED
    if reason == signal_reason("SIGINT"):
        return ExitCode.INTERRUPTED
    if (reason or "").startswith((f"{NonFiniteLossError.__name__}: ", f"{NonFiniteGradientError.__name__}: ")):
        return ExitCode.DIVERGED
    if (reason or "").startswith((f"{SelfTestError.__name__}: ", "ConversionError: ")):  # the last is of INIT_FROM
        return ExitCode.BAD_CONFIGURATION
    return ExitCode.NOT_CONVERGED if re.fullmatch(_TARGET_NOT_REACHED, reason or "") else ExitCode.FAILED


def target_not_reached_reason(target: float, steps: int) -> str:
    """Return the log's reason for a run that ended at max_steps."""
    return f"target {target} not reached in {steps} steps"


_TARGET_NOT_REACHED = r"target \S+ not reached in \d+ steps"


def signal_reason(signal_name: str) -> str:
    """Return the log's reason for a run that a signal ended."""
    return f"received {signal_name}"


class RunError(RuntimeError):
    """An error that all ranks raise together, and whose message is all that a person needs."""


class DivergedError(RunError):
    """Training cannot continue from the state that it has reached."""


class NonFiniteLossError(DivergedError):
    """The loss of an evaluation is NaN or infinite."""


class NonFiniteGradientError(DivergedError):
    """A gradient was NaN or infinite."""


class SelfTestError(RunError):
    """A kernel is wrong, and there is no other: the message names it, and the setting that avoids it."""


_PR_SET_PDEATHSIG = 1  # of prctl(2)


def die_with_parent() -> None:
    """Ask the kernel to send SIGTERM to this process when its parent dies. Linux only; elsewhere do nothing.

    An orphan would keep its GPU.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


# A closed terminal sends SIGHUP, which torchrun forwards.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_NO_SIGNAL = 0
# The process exits after this time at the latest, even if its log is on a dead file system.
GRACE_SECONDS = 10.0


@contextmanager
def exit_on_signal(on_exit: Callable[[str], None]) -> Iterator[None]:
    """Exit on SIGTERM, SIGINT and SIGHUP, after a call of ``on_exit`` with the signal's name from another thread.

    The exit status is 130 for SIGINT, else 143. Enter this context on the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # The handlers do nothing, but without one the default action would end the process at once.
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
        # Closing the pipe would not end the thread if a forked child still holds the other end.
        os.write(writer, bytes([_NO_SIGNAL]))
        thread.join()
        os.close(writer)
        os.close(reader)


def _exit_on_signal(received: signal.Signals, on_exit: Callable[[str], None]) -> None:
    status = ExitCode.INTERRUPTED if received is signal.SIGINT else ExitCode.TERMINATED
    escape = threading.Timer(GRACE_SECONDS, os._exit, (status,))
    escape.daemon = True
    escape.start()
    try:
        on_exit(received.name)
    finally:
        # The main thread may be stuck in a collective, so a normal exit may never finish.
        hard_exit(status)


def hard_exit(status: int) -> NoReturn:
    """Flush the output and end the process at once, without destructors or other shutdown of the interpreter."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
