"""How far a verification is: a bar on a terminal, a plain line now and then in a pipe; both on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

# seconds between lines where there is no terminal
INTERVAL = 10.0


class Meter:
    """Shows bytes done, rate and time left; leaving its `with` block removes the bar."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar: Progress | None = None
        # Not what rich takes for a terminal: FORCE_COLOR makes it one of a pipe, and a dumb one cannot redraw a line.
        if sys.stderr.isatty() and not console.is_dumb_terminal:
            columns = (
                TextColumn("verifying"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
        self._total = self._done = 0
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, total: int) -> None:
        """Take the number of bytes to come."""
        self._total = total
        if self._bar is not None:
            self._bar.add_task("", total=total)

    def advance(self, size: int) -> None:
        """Count bytes, and show them if it is time."""
        self._done += size
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], size)
        elif time.monotonic() - self._told >= INTERVAL:
            self._told = time.monotonic()
            typer.echo(self._line(), err=True)

    def _line(self) -> str:
        rate = self._done / max(self._told - self._started, 1e-9)
        left = max(0, self._total - self._done) / max(rate, 1)
        return f"{self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB, {rate / 1e9:.2f} GB/s, {left:.0f} s left"
