"""How far a command is, on stderr: a bar on a terminal, else a line every ten seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

# seconds between lines where there is no terminal
INTERVAL = 10.0


class Show(Protocol):
    """What a command calls, often."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show how many of the meter's bytes are done, which may become fewer, and a note beside them."""


@contextmanager
def metered(title: str, total: int, done: int = 0) -> Iterator[Show]:
    """Show bytes, rate and time left while the body runs; the bar goes when it ends.

    Args:
        title: what is being done, in one word.
        total: bytes in all.
        done: bytes that were there before; they are no part of the rate.
    """
    console = Console(stderr=True)
    # Rich alone would take a pipe for a terminal under FORCE_COLOR; a dumb terminal cannot draw a line again.
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield _lines(title, total, done)
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total, completed=done)

        def show(done: int, note: str = "") -> None:
            progress.update(task, completed=done, description=f"{title}, {note}" if note else title)

        yield show


def _lines(title: str, total: int, before: int) -> Show:
    began = last = time.monotonic()

    def show(done: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < INTERVAL:
            return
        last = now
        rate = max(done - before, 0) / (now - began)
        left = f"{(total - done) / rate:,.0f} s left" if rate else "time left unknown"
        parts = (f"{decimal(done)} of {decimal(total)}", note, f"{decimal(round(rate))}/s", left)
        typer.echo(f"{title}: {', '.join(filter(None, parts))}", err=True)

    return show
