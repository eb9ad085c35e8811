"""Exit statuses of the data commands, and the one place that turns exceptions into them."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Never

import typer

from gptoss20b.data.files import DataError
from system_info.entry_point import prepare_stdout

# no room on the disk, in the user's quota, or below the limit of a file's size
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ExitCode(IntEnum):
    """The exit statuses of `python -m data_scripts`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130
    TERMINATED = 143


class CommandError(Exception):
    """A command failed. The message is one line: place, got, expected, fix."""


class _TerminatedError(BaseException):
    """Raised on SIGTERM, as Python raises KeyboardInterrupt on SIGINT."""


@contextmanager
def cli_errors(place: Path | None = None) -> Iterator[None]:
    """Run a command's body; turn every failure into one line on stderr and its exit status.

    SIGTERM unwinds the stack like an interrupt, so that `finally` blocks run.

    Args:
        place: where the command writes, for an error of the system that names no file.
    """

    def terminate(number: int, frame: FrameType | None) -> Never:
        raise _TerminatedError

    previous_handler = signal.signal(signal.SIGTERM, terminate)
    prepare_stdout()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a failure can still be reported
    except (CommandError, DataError) as error:
        _exit_with(str(error), ExitCode.FAILED)
    except OSError as error:
        reason = str(error.strerror or error)
        if error.errno in _DISK_FULL:
            reason = f"got {reason}; expected a disk with room. To fix: make room and run the same command again."
        place = error.filename or place
        _exit_with(f"{place}: {reason}" if place else reason, ExitCode.FAILED)
    except MemoryError:
        _exit_with("got too little memory; expected more. To fix: run fewer processes.", ExitCode.FAILED)
    except KeyboardInterrupt:
        _exit_with("interrupted", ExitCode.INTERRUPTED)
    except _TerminatedError:
        _exit_with("terminated", ExitCode.TERMINATED)
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def log(line: str) -> None:
    """Write a line to stderr."""
    typer.echo(line, err=True)


def _exit_with(message: str, status: ExitCode) -> Never:
    log(f"error: {message}")
    raise typer.Exit(status) from None
