"""What every command line of this project does at its start: stdout without surprises, and one line for early ends.

Standard library only, because it explains packages that are missing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FAILED_STATUS, _USAGE_STATUS, _INTERRUPTED_STATUS = 1, 2, 130


class StdoutError(OSError):
    """stdout cannot be written, for example on a full disk."""

    def __str__(self) -> str:
        return f"stdout: {self.strerror}; send it to a place with room"


class _Stdout(io.FileIO):
    """File of stdout. What comes after a failure is discarded, so that the flush at exit does not fail again."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                return len(data)  # the reader has left, as `head` does
            raise StdoutError(error.errno, error.strerror, "stdout") from None


def prepare_stdout() -> None:
    """Replace stdout by one that a command can always write to.

    The exit status stays that of the command's work when the reader leaves. Other failures raise `StdoutError`.
    Characters that the terminal's encoding lacks, e.g. of a file name, become escapes. A stdout that tests replaced
    stays.
    """
    old = sys.__stdout__
    if old is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # the caller closed it
    if old is None or sys.stdout is not old:
        return
    old.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(old.fileno(), "w", closefd=False)),
        encoding=old.encoding,
        errors="backslashreplace",
        line_buffering=old.line_buffering or old.write_through,
    )


@contextlib.contextmanager
def entry_point(extra: str) -> Iterator[None]:
    """Run a command with a prepared stdout; turn what ends it early into one line and an exit status.

    A third-party package that is missing exits with 2, an interrupt with 130, a stdout that cannot be written with 1.

    Args:
        extra: the extra of this project that brings the packages of the command.
    """
    prepare_stdout()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a failure can still be reported
    except ModuleNotFoundError as error:
        print(
            f"error: Python package '{error.name}' is not installed in {sys.prefix}. Install what this command needs: "
            f"pip install '.[{extra}]' in a checkout of this project, or make run, and then source .venv/bin/activate",
            file=sys.stderr,
        )
        sys.exit(_USAGE_STATUS)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)  # while importing: a running command reports its own interrupt
        sys.exit(_INTERRUPTED_STATUS)
    except StdoutError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_FAILED_STATUS)
