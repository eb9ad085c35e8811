"""Wait for a condition in another process, such as its end."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def wait_until(condition: Callable[[], object], limit_s: float, what: str) -> None:
    """Poll the condition until it is true, and fail the test after ``limit_s`` seconds."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    """Return True if a process has ended, although its parent may not have collected it yet."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
