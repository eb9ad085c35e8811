"""How far a tokenization is: a bar on a terminal, a plain line now and then in a pipe; both on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

# seconds between lines where there is no terminal
INTERVAL = 30.0


class Pace:
    """Shows bytes of the shards done, tokens a second and time left; leaving its `with` block removes the bar.

    Args:
        total: bytes of all shards, as stored.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: Progress | None = None
        self._started = self._told = time.monotonic()
        self._first: tuple[int, int] | None = None
        console = Console(stderr=True)
        # Not what rich takes for a terminal: FORCE_COLOR makes it one of a pipe, and a dumb one cannot redraw a line.
        if sys.stderr.isatty() and not console.is_dumb_terminal:
            columns = (BarColumn(), DownloadColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, position: int, tokens: int) -> None:
        """Take how many bytes are done and tokens written, those of an earlier start included, and show them."""
        now = time.monotonic()
        # What was there at the first call, an earlier start has done.
        self._first = self._first or (position, tokens)
        seconds = max(now - self._started, 1e-9)
        rate = f"{(tokens - self._first[1]) / seconds / 1e6:.2f} M tokens/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=position, description=rate)
        elif now - self._told >= INTERVAL:
            self._told = now
            left = (self._total - position) * seconds / max(position - self._first[0], 1)
            done = f"{position / 1e9:.1f} of {self._total / 1e9:.1f} GB of shards"
            typer.echo(f"{done}, {tokens:,} tokens, {rate}, {left:.0f} s left", err=True)
