"""The clock that times the run: it must be synchronised to a time server."""

from __future__ import annotations

import ctypes
import re
from datetime import UTC, datetime

from system_info.tools import run_tool

from .finding import Finding, judged

_TIME_ERROR = 5  # adjtimex's answer if no time server disciplines the clock, <linux/timex.h>


def is_synchronised() -> bool:
    """Check whether the clock follows a time server, by the kernel or by chronyd."""
    state = ctypes.create_string_buffer(1024)  # more than struct timex; modes = 0, so that the call only reads
    if 0 <= ctypes.CDLL(None).adjtimex(state) < _TIME_ERROR:
        return True
    # Without its option `rtcsync`, chronyd disciplines the clock and the kernel does not know.
    tracking = run_tool("chronyc", "-n", "tracking").answer
    return re.search(r"^Leap status\s*: Normal\s*$", tracking, re.MULTILINE) is not None


def check_clock() -> list[Finding]:
    """Check the system clock. Its time zone does not matter."""
    synchronised = is_synchronised()
    server = "synchronised" if synchronised else "and neither the kernel nor chronyc reports a time server"
    fix = "start chronyd or systemd-timesyncd: a clock that is set during the run spoils its time"
    return [judged("clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {server}", fix, warns=not synchronised)]
