"""Asking the node: small files of the kernel, and what a tool prints.

The readers of `compliance.machine` stay apart: a run must not import what judges it, and here it matters why a tool
failed. No time limit either: the check's own ends it with all that it started.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .limits import one_line


@dataclass(frozen=True)
class Answer:
    """What a tool printed.

    Attributes:
        status: its exit status; None if there is no such tool.
        printed: on stdout.
        complaint: the first thing to show if it failed, one line.
    """

    status: int | None
    printed: str = ""
    complaint: str = ""

    @property
    def missing(self) -> bool:
        """Whether there is no such tool on PATH."""
        return self.status is None


def ask(*command: str) -> Answer:
    """Run a tool, found on PATH, in plain English; no shell reads its arguments."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False
        )
    except OSError:
        return Answer(None)
    printed, complained = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    complaint = one_line(complained or printed) or f"exit status {done.returncode} and no word"
    return Answer(done.returncode, printed, complaint)


def text(path: Path) -> str:
    """All of a small file; empty if it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
