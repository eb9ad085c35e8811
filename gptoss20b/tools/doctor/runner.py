"""Run checks that cannot hang the doctor: each in a forked process with a time limit.

A process and not a thread, because a process that waits for a dead file system or driver can be left behind. A thread
would be joined when the interpreter exits.
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

from system_info.files import one_line

from ...stopping import die_with_parent
from .finding import Finding, Verdict, failed

# A killed process ends at once, unless it waits for a device: then it is left behind.
_KILL_GRACE_S = 1.0
_CRASH_FIX = "this is an error of the check itself: look at what it names, and report it if nothing is wrong there"


@dataclass(frozen=True)
class Check:
    """A check to run.

    Attributes:
        name: name of the finding if the check crashes or does not end.
        run: the check. Its process writes stdout and stderr to /dev/null.
        limit_s: seconds after which that process and all that it started are killed.
        timeout_fix: advice in that case.
    """

    name: str
    run: Callable[[], Sequence[Finding]]
    limit_s: float
    timeout_fix: str


def run_checks(checks: Sequence[Check]) -> list[Finding]:
    """Run all checks at the same time. Return their findings in the order of the checks."""
    processes: list[_CheckProcess] = []
    try:
        for check in checks:
            processes.append(_CheckProcess(check))
        return [finding for process in processes for finding in process.wait()]
    finally:
        for process in processes:
            process.kill()


class _CheckProcess:
    """A check in a child process."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._deadline = time.monotonic() + check.limit_s
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _run_in_child(check, writer)
        os.close(writer)
        self._status: int | None = None
        self._killed = False

    def wait(self) -> list[Finding]:
        """Return the findings of the check, or one that says that it crashed or did not end in time."""
        name, limit_s = self._check.name, self._check.limit_s
        answer = self._read_answer()
        self.kill()
        if answer is None:
            return [failed(name, f"no answer within {limit_s:g} s", self._check.timeout_fix)]
        try:
            rows = json.loads(answer)
        except ValueError:
            return [failed(name, f"the check ended without an answer ({self._exit_reason()})", _CRASH_FIX)]
        return [Finding(**{**row, "verdict": Verdict(row["verdict"])}) for row in rows]

    def kill(self) -> None:
        """Kill what is left of the check and of all that it started. Safe to call twice."""
        if self._killed:
            return
        self._killed = True
        os.close(self._reader)
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

    def _read_answer(self) -> bytes | None:
        """Return all that the child writes before it ends, or None at the deadline."""
        parts: list[bytes] = []
        while True:
            remaining = max(0.0, self._deadline - time.monotonic())
            if not select.select([self._reader], [], [], remaining)[0]:
                return None
            part = os.read(self._reader, 1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)

    def _exit_reason(self) -> str:
        code = os.waitstatus_to_exitcode(self._status) if self._status is not None else 0
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _run_in_child(check: Check, writer: int) -> NoReturn:
    """Run the check, write its findings, and exit without the parent's exit handlers."""
    try:
        os.setsid()  # tools and ranks then share a process group, which `kill` ends
        die_with_parent()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        try:
            findings = list(check.run())
        except Exception as error:
            findings = [failed(check.name, one_line(f"{type(error).__name__}: {error}"), _CRASH_FIX)]
        with os.fdopen(writer, "w", encoding="utf-8") as answer:
            json.dump([asdict(finding) for finding in findings], answer)
    finally:
        os._exit(0)
