"""Checks that cannot hang the doctor: each in a process of its own, with a limit, and with all it started ended.

A process and not a thread: what waits for a dead file system or driver can be left behind, and never asks to be joined.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

from ...stopping import die_with_parent
from .finding import Finding, Verdict, failed

# A killed process is gone at once, or waits for a device and is left behind.
_GRACE_S = 1.0
_CRASH_FIX = "this is an error of the check itself: look at what it names, and report it if nothing is wrong there"


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        name: for the row that says that it crashed or did not end.
        look: does it; runs in a process of its own, whose output goes nowhere.
        limit_s: seconds after which that process and all that it started are killed.
        stuck_fix: what to do if that happens.
    """

    name: str
    look: Callable[[], Sequence[Finding]]
    limit_s: float
    stuck_fix: str


def run_all(checks: Sequence[Check]) -> list[Finding]:
    """What all checks find, in their order; they run at the same time, so the longest limit bounds them all."""
    started: list[_Started] = []
    try:
        for check in checks:
            started.append(_Started(check))
        return [finding for each in started for finding in each.findings()]
    finally:
        for each in started:
            each.end()


class _Started:
    """A check under way in a child process."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._deadline = time.monotonic() + check.limit_s
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _look(check, writer)
        os.close(writer)
        self._status: int | None = None
        self._ended = False

    def findings(self) -> list[Finding]:
        """What the check found, or that it crashed or did not end in time."""
        name, limit_s = self._check.name, self._check.limit_s
        answer = self._answer()
        self.end()
        if answer is None:
            return [failed(name, f"no answer within {limit_s:g} s", self._check.stuck_fix)]
        try:
            rows = json.loads(answer)
        except ValueError:
            return [failed(name, f"the check ended without an answer ({self._how()})", _CRASH_FIX)]
        return [Finding(**{**row, "verdict": Verdict(row["verdict"])}) for row in rows]

    def end(self) -> None:
        """Kill what is left of the check and of all that it started; safe to call twice."""
        if self._ended:
            return
        self._ended = True
        os.close(self._reader)
        for kill in (os.killpg, os.kill):  # the group is there as soon as the child made it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self._pid, signal.SIGKILL)
        end = time.monotonic() + _GRACE_S
        while self._status is None and time.monotonic() < end:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
            else:
                time.sleep(0.01)

    def _answer(self) -> bytes | None:
        """All that the child writes before it ends; None if that takes too long."""
        parts: list[bytes] = []
        while True:
            left = max(0.0, self._deadline - time.monotonic())
            if not select.select([self._reader], [], [], left)[0]:
                return None
            part = os.read(self._reader, 1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)

    def _how(self) -> str:
        code = os.waitstatus_to_exitcode(self._status) if self._status is not None else 0
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _look(check: Check, writer: int) -> NoReturn:
    """The child: look, answer, and end without the parent's clean-up."""
    try:
        os.setsid()  # a group of its own: tools and ranks end with it
        die_with_parent()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        try:
            findings = list(check.look())
        except Exception as error:
            findings = [failed(check.name, one_line(f"{type(error).__name__}: {error}"), _CRASH_FIX)]
        with os.fdopen(writer, "w", encoding="utf-8") as answer:
            json.dump([asdict(finding) for finding in findings], answer)
    finally:
        os._exit(0)


def one_line(text: str, most: int = 500) -> str:
    """Text with single spaces instead of line breaks, cut at `most` characters.

    >>> one_line(" a\\n  b ")
    'a b'
    """
    words = " ".join(text.split())
    return words if len(words) <= most else f"{words[: most - 3]}..."
