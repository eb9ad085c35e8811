"""Progress of a command on stderr: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from .errors import log

# seconds between lines where there is no terminal
INTERVAL = 10.0


class ByteProgress:
    """Bytes done of a total, with rate and time left. A context manager; the bar disappears at its end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._total = self._done = self._initial = 0
        self._started = self._last_line = 0.0
        self._bar: Progress | None = None

    def begin(self, total: int, done: int = 0) -> Self:
        """Set the total in bytes, and the bytes that an earlier run has done, which do not count for the rate."""
        self._total, self._done, self._initial = total, done, done
        self._started = self._last_line = time.monotonic()
        console = Console(stderr=True)
        # Under FORCE_COLOR, rich alone would take a pipe for a terminal. A dumb terminal cannot redraw a line.
        if sys.stderr.isatty() and not console.is_dumb_terminal:
            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Progress(
                TextColumn("{task.description}", markup=False), *columns, console=console, transient=True
            )
            self._bar.add_task(self._title, total=total, completed=done)
            self._bar.start()
        return self

    def update(self, done: int, note: str = "") -> None:
        """Show the bytes done, which may decrease, and a note."""
        self._done = done
        if self._bar is not None:
            description = f"{self._title}, {note}" if note else self._title
            self._bar.update(self._bar.task_ids[0], completed=done, description=description)
        elif (now := time.monotonic()) - self._last_line >= INTERVAL:
            self._last_line = now
            rate = max(done - self._initial, 0) / (now - self._started)
            time_left = f"{(self._total - done) / rate:,.0f} s left" if rate else "time left unknown"
            parts = (f"{decimal(done)} of {decimal(self._total)}", note, f"{decimal(round(rate))}/s", time_left)
            log(f"{self._title}: {', '.join(filter(None, parts))}")

    def advance(self, size: int) -> None:
        """Add to the bytes done."""
        self.update(self._done + size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
