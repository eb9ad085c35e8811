"""The CSV file of telemetry: one row per GPU and sample, appended as whole rows."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path

from .gpus import Reading

# compliance/telemetry.py reads these names, and docs/results-and-compliance.md explains them.
COLUMNS = ("time_ms", "gpu", "uuid", *(field.name for field in fields(Reading)))
_HEADER = ",".join(COLUMNS).encode() + b"\n"


class CsvFile:
    """A file that this process appends to. Its last row is whole even where the disk is full."""

    def __init__(self, path: Path) -> None:
        """Open a file, or create it with a header.

        Raises:
            BlockingIOError: another process writes it.
            OSError: it cannot be written.
        """
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock(path)
            self._start()
        except OSError:
            self.close()
            raise

    def append(self, rows: Iterable[str]) -> None:
        """Append rows, all of them or none.

        Raises:
            OSError: the disk is full or gone.
        """
        self._write("".join(f"{row}\n" for row in rows).encode())

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self._descriptor)

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{path}: another process writes it") from None
        except OSError:
            pass  # a file system without locks

    def _start(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if not size:
            self._write(_HEADER)
        elif os.pread(self._descriptor, 1, size - 1) != b"\n":
            self._write(b"\n")  # a power cut has cut the last row, and a new one must not continue it

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise


def format_row(time_ms: int, index: int, uuid: str, reading: Reading) -> str:
    """Return the row of a reading. An unknown value is empty; no throttle reason is ``none``.

    >>> format_row(1771600000000, 0, "GPU-5", Reading(power_w=612.345, throttle_reasons=("sw_power_cap",)))
    '1771600000000,0,GPU-5,612.345,,,,,,,sw_power_cap'
    """
    *numbers, reasons = astuple(reading)
    cells = ["" if value is None else f"{value:.7g}" for value in numbers]
    names = "" if reasons is None else "|".join(reasons) or "none"
    return ",".join((str(time_ms), str(index), uuid, *cells, names))
