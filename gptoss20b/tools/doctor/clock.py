"""The clock that times the run: it must be set, synchronised to a time server, and steady."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from system_info.tools import run_tool

from .finding import Finding, failed, judged, warned

_PACKAGE = Path(__file__).resolve().parents[2]
_TIME_ERROR = 5  # adjtimex's answer if no time server disciplines the clock, <linux/timex.h>
_SAMPLE_S = 0.2
# NTP slews by 0.05 %, and chronyd by 8 % at most, which is 17 ms in the sample. Larger differences are steps.
_MAX_DEVIATION_S = 0.02
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
    deviation = _measure_deviation(wall_clock)
    if deviation > _MAX_DEVIATION_S:
        found = f"{shown}; in {_SAMPLE_S:g} s it deviated {deviation * 1000:.0f} ms from the monotonic clock"
        fix = "let a single time service slew the clock; on a virtual machine, check the host"
        return [warned("clock", found, fix)]
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


def _measure_deviation(wall_clock: Callable[[], float]) -> float:
    """Return the largest difference in seconds between elapsed wall and monotonic time, over `_SAMPLE_S`.

    Each reading of the wall clock lies between two readings of the monotonic clock, so that a busy machine does not
    count as a deviation.
    """
    before_first, first, after_first = time.monotonic(), wall_clock(), time.monotonic()
    worst, after = 0.0, after_first
    while after - after_first < _SAMPLE_S:
        before, elapsed, after = time.monotonic(), wall_clock() - first, time.monotonic()
        worst = max(worst, before - after_first - elapsed, elapsed - (after - before_first))
        time.sleep(_SAMPLE_S / 50)
    return worst
