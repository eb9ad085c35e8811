"""The last line of a rank that fails: on stderr, and for the launcher in the file that torchrun gives each rank."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .config.environment import read_error_file
from .durable import atomic_write


@dataclass(frozen=True)
class FailureReport:
    """Reason of a rank's end, and its time. ``timestamp``, in seconds, is the key that torchrun requires."""

    message: str
    timestamp: int
    time_ns: int


def report_failure(reason: str, line: str | None) -> None:
    """Print ``line``, if any, and leave the reason for the launcher."""
    if line is not None:
        print(line, file=sys.stderr, flush=True)
    if path := read_error_file():
        now = time.time_ns()
        report = FailureReport(reason, now // 10**9, now)
        with contextlib.suppress(OSError):
            atomic_write(Path(path), json.dumps(asdict(report)), flush=False)


def parse_report(data: dict[str, Any]) -> FailureReport | None:
    """Return the report of a rank from the content of its file, as torchrun has read it; None if it left none."""
    try:
        return FailureReport(**data)
    except TypeError:
        return None
