"""Run a command-line tool, or a module of this package in a child process, and keep its output."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .files import one_line

_ROOT = Path(__file__).resolve().parents[1]
# A killed tool ends at once, unless it waits for a device: then it is left behind.
_KILL_GRACE_S = 1.0


@dataclass(frozen=True)
class ToolOutput:
    """Output of one call.

    Attributes:
        status: exit status; None if the tool is not on PATH or was killed at its time limit.
        stdout: standard output.
        failure: reason for a failure, in one line; None if the tool succeeded.
        timed_out: the time limit was reached.
    """

    status: int | None
    stdout: str = ""
    failure: str | None = None
    timed_out: bool = False

    @property
    def answer(self) -> str:
        """Standard output, or an empty string if the tool failed."""
        return self.stdout if self.failure is None else ""

    @property
    def is_missing(self) -> bool:
        """True if there is no such tool on PATH."""
        return self.status is None and not self.timed_out


def run_tool(*command: str, limit_s: float | None = None, env: Mapping[str, str] | None = None) -> ToolOutput:
    """Run a tool without a shell, with English messages.

    Args:
        command: the tool, found on PATH, and its arguments.
        limit_s: seconds after which the tool and its children are killed. None: the tool stays in the caller's process
            group, which whoever limits the caller kills.
        env: environment variables to add.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            start_new_session=limit_s is not None,
        )
    except OSError as error:
        return ToolOutput(None, failure=one_line(str(error)))
    try:
        streams = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        # Kill the whole session: a child that holds the pipe would keep communicate() waiting.
        os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_KILL_GRACE_S)
        return ToolOutput(None, failure=f"no answer within {limit_s:g} s", timed_out=True)
    stdout, stderr = (stream.decode("utf-8", "replace") for stream in streams)
    status = process.returncode
    failure = one_line(stderr or stdout) or f"exit status {status} without a message"
    return ToolOutput(status, stdout, failure if status else None)


def run_module(name: str, limit_s: float | None = None) -> ToolOutput:
    """Run a module of this package in a Python child process.

    Vendor libraries are called this way. A driver that hangs then costs the time limit, and a library that crashes does
    not take the caller with it.
    """
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    # -P: do not import from the working directory.
    return run_tool(sys.executable, "-P", "-m", f"system_info.{name}", limit_s=limit_s, env={"PYTHONPATH": path})
