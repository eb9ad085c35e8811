"""What every data command has in common: its exit statuses, and how a failure is told."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import Never

import typer

from gptoss20b.data.files import DataError


class ExitCode(IntEnum):
    """The exit statuses of `python -m data_scripts`, as the README lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130
    READER_GONE = 141
    TERMINATED = 143


class CommandError(Exception):
    """A command cannot go on. The message is one line: what, got, expected, how to fix it."""


class _Terminated(BaseException):
    """SIGTERM, as Python has KeyboardInterrupt for SIGINT."""


@contextmanager
def told() -> Iterator[None]:
    """Run a command's body: one line on stderr and the documented exit status for whatever ends it.

    SIGTERM unwinds like an interrupt, so that `finally` blocks run.
    """

    def terminate(number: int, frame: FrameType | None) -> Never:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # names and texts may hold what the terminal's encoding does not
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            # here, where a failure can still be told; there is no stdout where the caller closed it
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has gone; nothing can be told there, and flushing at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ExitCode.READER_GONE) from None
    except (CommandError, DataError) as error:
        _fail(str(error), ExitCode.FAILED)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}", ExitCode.FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", ExitCode.INTERRUPTED)
    except _Terminated:
        _fail("terminated", ExitCode.TERMINATED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, status: ExitCode) -> Never:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status) from None
