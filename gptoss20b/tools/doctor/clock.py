"""The clock that times the run: it must be set, synchronised to a time server, and steady."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from system_info.tools import run_tool

from .finding import Finding, failed, passed, warned

_PACKAGE = Path(__file__).resolve().parents[2]
_STA_UNSYNC = 0x40  # <linux/timex.h>
_SAMPLE_S = 0.2
# NTP slews by 0.05 %, and chronyd by 8 % at most, which is 17 ms in the sample. Larger differences are steps.
_MAX_DEVIATION_S = 0.02
# Tolerance for the clock of the machine on which the code was committed.
_SLACK_S = 60.0


class _Timex(ctypes.Structure):
    """The head of struct timex of <linux/timex.h>. ``room`` is larger than the rest, which the kernel writes."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("room", ctypes.c_byte * 512),
    ]


def is_kernel_synchronised() -> bool | None:
    """Ask the kernel whether a time server disciplines its clock. Return None where it does not answer."""
    state = _Timex()
    try:
        answered = ctypes.CDLL(None).adjtimex(ctypes.byref(state)) >= 0  # with modes = 0 the call only reads
    except (OSError, AttributeError):
        return None
    return not state.status & _STA_UNSYNC if answered else None


def check_clock(
    code_time: float | None = None,
    kernel_synchronised: Callable[[], bool | None] = is_kernel_synchronised,
    wall_clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Check the system clock. Its time zone does not matter.

    Args:
        code_time: time of the code's commit in seconds since 1970; None: looked up.
        kernel_synchronised: asks the kernel.
        wall_clock: the clock, in seconds since 1970.
    """
    now, earliest = wall_clock(), code_time if code_time is not None else read_code_time()
    shown = _format(now)
    if now + _SLACK_S < earliest:
        found = f"got {shown}, expected {_format(earliest)}, when this code was made, or later"
        return [failed("clock", found, "set the clock: start chronyd or another NTP client")]
    deviation = _measure_deviation(wall_clock)
    if deviation > _MAX_DEVIATION_S:
        found = f"{shown}; in {_SAMPLE_S:g} s it deviated {deviation * 1000:.0f} ms from the monotonic clock"
        fix = "let a single time service slew the clock; on a virtual machine, check the host"
        return [warned("clock", found, fix)]
    source = _find_time_source(kernel_synchronised)
    if source is None:
        found = f"{shown}; neither the kernel, timedatectl nor chronyc reports a time server"
        fix = "start chronyd or systemd-timesyncd: a clock that is set during the run spoils its time"
        return [warned("clock", found, fix)]
    return [passed("clock", f"{shown}, synchronised ({source})")]


def read_code_time() -> float:
    """Return when the code was made, in seconds since 1970: its commit's date, or its newest file's without git."""
    printed = run_tool("git", "-C", str(_PACKAGE), "show", "--no-patch", "--format=%ct", "HEAD").answer
    if printed.strip().isdecimal():
        return float(printed)
    return max(path.stat().st_mtime for path in _PACKAGE.rglob("*.py"))


def _format(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _find_time_source(kernel_synchronised: Callable[[], bool | None]) -> str | None:
    """Return who reports that the clock follows a time server."""
    if kernel_synchronised():
        return "kernel"
    if run_tool("timedatectl", "show", "--property=NTPSynchronized", "--value").answer.strip() == "yes":
        return "timedatectl"
    # Without its option `rtcsync`, chronyd disciplines the clock and the kernel does not know.
    tracking = run_tool("chronyc", "-n", "tracking").answer
    return "chronyc" if re.search(r"^Leap status\s*: Normal\s*$", tracking, re.MULTILINE) else None


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
