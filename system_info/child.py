"""Call a function in a forked process, because a call into a driver or file system that hangs never returns.

A process and not a thread: a process that waits for a dead device can be left behind, while the interpreter joins a
thread when it exits. A library that crashes does not take the caller with it, either.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Generic, NoReturn, TypeVar

from .files import one_line

_Result = TypeVar("_Result")
# A killed process ends at once, unless it waits for a device: then it is left behind.
_KILL_GRACE_S = 1.0


class ChildError(RuntimeError):
    """The function raised an exception, or its process ended without an answer."""


class ChildCall(Generic[_Result]):
    """A function that begins to run in a child process, with stdout and stderr on /dev/null.

    Args:
        function: the function. Its result is pickled.
        limit_s: seconds after which the process and all that it started are killed.
    """

    def __init__(self, function: Callable[[], _Result], limit_s: float) -> None:
        self._limit_s, self._deadline = limit_s, time.monotonic() + limit_s
        self._status: int | None = None
        self._reader, writer = Pipe(duplex=False)
        self._pid = os.fork()
        if self._pid == 0:
            _run_in_child(function, writer)
        writer.close()  # so that the end of the child is the end of the pipe

    def result(self) -> _Result:
        """Wait for the result of the function, and end its process.

        Raises:
            TimeoutError: there is no result within the limit.
            ChildError: there will be none.
        """
        try:
            if not self._reader.poll(max(0.0, self._deadline - time.monotonic())):
                raise TimeoutError(f"no answer within {self._limit_s:g} s")
            answer: tuple[str | None, _Result] = self._reader.recv()
        except EOFError:
            self.kill()
            code = os.waitstatus_to_exitcode(self._status or 0)
            reason = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            raise ChildError(f"ended without an answer ({reason})") from None
        finally:
            self.kill()
        error, result = answer
        if error is not None:
            raise ChildError(error)
        return result

    def kill(self) -> None:
        """Kill what is left of the process and of all that it started. Safe to call twice."""
        if self._reader.closed:
            return
        self._reader.close()
        for kill in (os.killpg, os.kill):  # the group exists as soon as the child has made it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self._pid, signal.SIGKILL)
        end = time.monotonic() + _KILL_GRACE_S
        while self._status is None and time.monotonic() < end:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
            else:
                time.sleep(0.01)


def _run_in_child(function: Callable[[], object], writer: Connection[Any, Any]) -> NoReturn:
    """Call the function, send its error and its result, and exit without the parent's exit handlers."""
    try:
        os.setsid()  # what the function starts then shares a process group, which `kill` ends
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        answer: tuple[str | None, object]
        try:
            answer = (None, function())
        except Exception as error:
            answer = (one_line(f"{type(error).__name__}: {error}"), None)
        writer.send(answer)
    finally:
        os._exit(0)
