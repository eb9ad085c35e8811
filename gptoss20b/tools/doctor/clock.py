"""The clock that times the run: it must be set, and synchronised to a time server."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from system_info.tools import run_tool

from .finding import Finding, failed, judged

_PACKAGE = Path(__file__).resolve().parents[2]
_TIME_ERROR = 5  # adjtimex's answer if no time server disciplines the clock, <linux/timex.h>
# Tolerance for the clock of the machine on which the code was committed.
_SLACK_S = 60.0


def is_synchronised() -> bool:
    """Check whether the clock follows a time server, by the kernel or by chronyd."""
    state = ctypes.create_string_buffer(1024)  # more than struct timex; modes = 0, so that the call only reads
    if 0 <= ctypes.CDLL(None).adjtimex(state) < _TIME_ERROR:
        return True
    # Without its option `rtcsync`, chronyd disciplines the clock and the kernel does not know.
    tracking = run_tool("chronyc", "-n", "tracking").answer
    return re.search(r"^Leap status\s*: Normal\s*$", tracking, re.MULTILINE) is not None


def check_clock(wall_clock: Callable[[], float] = time.time) -> list[Finding]:
    """Check the system clock, which returns seconds since 1970. Its time zone does not matter."""
    now, earliest = wall_clock(), read_code_time()
    shown = _format(now)
    if now + _SLACK_S < earliest:
        found = f"got {shown}, expected {_format(earliest)}, when this code was made, or later"
        return [failed("clock", found, "set the clock: start chronyd or another NTP client")]
    synchronised = is_synchronised()
    found = f"{shown}, {'synchronised' if synchronised else 'and neither the kernel nor chronyc reports a time server'}"
    fix = "start chronyd or systemd-timesyncd: a clock that is set during the run spoils its time"
    return [judged("clock", found, fix, warns=not synchronised)]


def read_code_time() -> float:
    """Return when the code was made, in seconds since 1970: its commit's date, or its newest file's without git."""
    printed = run_tool("git", "-C", str(_PACKAGE), "show", "--no-patch", "--format=%ct", "HEAD").answer
    return float(printed) if printed else max(path.stat().st_mtime for path in _PACKAGE.rglob("*.py"))


def _format(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
