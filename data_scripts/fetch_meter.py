"""How far a download or its check is, on stderr: a bar on a terminal, else a line every ten seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

# seconds between lines where there is no terminal
INTERVAL = 10.0

# Called often with the bytes done so far, out of the meter's total; they may become fewer.
Show = Callable[[int], None]


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
        yield lambda done: progress.update(task, completed=done)


def _lines(title: str, total: int, before: int) -> Show:
    began = last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < INTERVAL:
            return
        last = now
        rate = max(done - before, 0) / (now - began)
        left = f"{(total - done) / rate:,.0f} s left" if rate else "time left unknown"
        typer.echo(f"{title}: {decimal(done)} of {decimal(total)}, {decimal(round(rate))}/s, {left}", err=True)

    return show
