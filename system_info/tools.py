"""Run command-line tools with a time limit."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import partial

from .child import ChildCall, ChildError
from .files import one_line


@dataclass(frozen=True)
class ToolOutput:
    """Output of one call.

    Attributes:
        answer: standard output; empty if the tool failed.
        failure: reason for a failure, in one line; None if the tool succeeded.
        is_missing: there is no such tool on PATH.
    """

    answer: str = ""
    failure: str | None = None
    is_missing: bool = False


def run_tool(*command: str, limit_s: float | None = None) -> ToolOutput:
    """Run a tool of PATH and its arguments without a shell, with English messages."""
    if limit_s is None:
        return _run(command)
    try:
        return ChildCall(partial(_run, command), limit_s).result()
    except (TimeoutError, ChildError) as error:
        return ToolOutput(failure=str(error))


def _run(command: tuple[str, ...]) -> ToolOutput:
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except OSError as error:
        return ToolOutput(failure=one_line(str(error)), is_missing=True)
    if done.returncode == 0:
        return ToolOutput(done.stdout)
    return ToolOutput(failure=one_line(done.stderr or done.stdout) or f"exit status {done.returncode}")
