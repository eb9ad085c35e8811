"""The report that `python -m data_scripts verify` leaves beside the data, as its readers find it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPORT_NAME = "verified.json"
REPORT_KIND = "data verification"
# A report is a few kilobytes. A file beyond 16 MiB is something else, possibly 80 GB of tokens: do not read it.
_MAX_BYTES = 1 << 24


def load_report(path: Path) -> dict[str, Any] | None:
    """Return the report in a file, or None if the file is missing or is no report.

    Raises:
        OSError: the file exists and cannot be read.
    """
    try:
        report = json.loads(path.read_bytes()) if path.stat().st_size < _MAX_BYTES else None
    # json raises RecursionError for deep nesting
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) and report.get("kind") == REPORT_KIND else None
