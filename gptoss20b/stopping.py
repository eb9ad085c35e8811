"""How a run ends early: signals that work while a rank hangs, and the exit codes.

A Python signal handler runs only when the main thread comes back to the interpreter, which a rank that waits for a lost
peer inside a collective never does. The C-level handler still writes the signal's number to a file descriptor, so a
thread that reads it can log the end and leave.
"""

from __future__ import annotations

import enum
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ExitCode(enum.IntEnum):
    """What a run's exit status means."""

    CONVERGED = 0
    FAILED = 1
    BAD_CONFIGURATION = 2
    NOT_CONVERGED = 3
    INTERRUPTED = 130
    TERMINATED = 143


class NonFiniteLossError(RuntimeError):
    """A loss that is not a finite number."""


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A log on a dead file system must not keep the process: it leaves after this many seconds in any case.
_GRACE_SECONDS = 10.0


@contextmanager
def on_signal(last_words: Callable[[str], None]) -> Iterator[None]:
    """While active, SIGTERM and SIGINT call ``last_words("SIGTERM")`` from a thread and end the process.

    The exit status is 128 plus the signal's number. Must be entered on the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # The handlers do nothing, but without one Python leaves the default action, which ends the process at once.
    previous = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}

    def wait() -> None:
        while received := os.read(reader, 1):
            if received[0] in _SIGNALS:
                _leave(signal.Signals(received[0]), last_words)

    thread = threading.Thread(target=wait, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        os.close(writer)
        thread.join()
        os.close(reader)


def _leave(received: signal.Signals, last_words: Callable[[str], None]) -> None:
    status = 128 + received.value
    escape = threading.Timer(_GRACE_SECONDS, os._exit, (status,))
    escape.daemon = True
    escape.start()
    try:
        last_words(received.name)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # The main thread may be stuck in a collective for good: no interpreter shutdown, no destructors.
        os._exit(status)
