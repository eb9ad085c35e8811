"""The clock that times the run: set, kept by a time server, and even."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from .finding import Finding, failed, passed, warned
from .tools import ask

_PACKAGE = Path(__file__).resolve().parents[1]
_STA_UNSYNC = 0x40  # <linux/timex.h>
_SAMPLE_S = 0.2
# NTP slews by 0.05 %, and chronyd by 8 % at most, which is 17 ms here: what is more is a step.
_UNEVEN_S = 0.02
# Two builds of one commit may be a time zone's mistake apart; a clock is not.
_SLACK_S = 60.0


class _Timex(ctypes.Structure):
    """The head of struct timex of <linux/timex.h>; the kernel writes no more than `room` behind it."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("room", ctypes.c_byte * 512),
    ]


def kernel_says_synchronised() -> bool | None:
    """Whether the kernel's clock is disciplined (adjtimex(2), which only reads here); None where it does not say."""
    state = _Timex()
    try:
        answered = ctypes.CDLL(None).adjtimex(ctypes.byref(state)) >= 0
    except (OSError, AttributeError):
        return None
    return not state.status & _STA_UNSYNC if answered else None


def look_at_clock(
    built: float | None = None,
    synchronised: Callable[[], bool | None] = kernel_says_synchronised,
    wall: Callable[[], float] = time.time,
) -> list[Finding]:
    """Check the system clock; its time zone does not matter.

    Args:
        built: when the code was made, in seconds since 1970; None: looked up.
        synchronised: asks the kernel.
        wall: the clock, in seconds since 1970.
    """
    now, made = wall(), built if built is not None else code_date()
    shown = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if now + _SLACK_S < made:
        expected = f"{datetime.fromtimestamp(made, UTC):%Y-%m-%d %H:%M:%S} UTC, when this code was made, or later"
        return [
            failed("clock", f"got {shown}, expected {expected}", "set the clock: start chronyd or another NTP client")
        ]
    uneven = _unevenness(wall)
    if uneven > _UNEVEN_S:
        found = f"{shown}; in {_SAMPLE_S:g} s it went {uneven * 1000:.0f} ms astray of the monotonic clock"
        return [
            warned(
                "clock",
                found,
                "let one time service keep the clock, by slewing, and look at the host of a virtual machine",
            )
        ]
    keeper = _keeper(synchronised)
    if keeper is None:
        found = f"{shown}; neither the kernel, timedatectl nor chronyc says that a time server keeps it"
        return [
            warned(
                "clock", found, "start chronyd or systemd-timesyncd: a clock that is set during the run spoils its time"
            )
        ]
    return [passed("clock", f"{shown}, synchronised ({keeper})")]


def code_date() -> float:
    """When the code was made, in seconds since 1970: its commit's date, or without git its newest file's."""
    answer = ask("git", "-C", str(_PACKAGE), "show", "--no-patch", "--format=%ct", "HEAD")
    if answer.status == 0 and answer.printed.strip().isdecimal():
        return float(answer.printed)
    return max(path.stat().st_mtime for path in _PACKAGE.rglob("*.py"))


def _keeper(synchronised: Callable[[], bool | None]) -> str | None:
    """Who says that the clock follows a time server."""
    if synchronised():
        return "kernel"
    if ask("timedatectl", "show", "--property=NTPSynchronized", "--value").printed.strip() == "yes":
        return "timedatectl"
    # Without `rtcsync`, chronyd keeps the clock and the kernel does not know.
    tracking = ask("chronyc", "-n", "tracking").printed
    return "chronyc" if re.search(r"^Leap status\s*: Normal\s*$", tracking, re.MULTILINE) else None


def _unevenness(wall: Callable[[], float]) -> float:
    """How far the clock leaves what the monotonic one says around each reading, in seconds, over `_SAMPLE_S`."""
    earliest, first, latest = time.monotonic(), wall(), time.monotonic()
    worst, after = 0.0, latest
    while after - latest < _SAMPLE_S:
        before, passed_s, after = time.monotonic(), wall() - first, time.monotonic()
        worst = max(worst, before - latest - passed_s, passed_s - (after - earliest))
        time.sleep(_SAMPLE_S / 50)
    return worst
