"""Finds log files and reads them. No other module opens a log."""

from __future__ import annotations

import gzip
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from .parse import parse
from .records import Log

_GZIP_MAGIC = b"\x1f\x8b"
# The name of the rules first. Published reference logs have other names.
_PATTERNS = (("result_*.txt", "result_*.txt.gz"), ("*.log", "*.log.gz", "*.txt", "*.txt.gz"))
# Output of the official tools beside the logs.
_NOT_LOGS = re.compile(r".*_checker\.log|compliance.*\.out")


class InputError(Exception):
    """Unreadable input. The message names it, the reason, and the fix."""


def find_logs(paths: Sequence[Path]) -> list[Path]:
    """Return the logs of a command's arguments: files unchanged, folders expanded.

    A folder's logs are its `result_*.txt`, or without any its `*.log` and `*.txt`, gzipped or not, in natural order.

    Raises:
        InputError: a path does not exist, a folder holds no log, or a log is given twice.
    """
    logs = [log for path in paths for log in _expand(path)]
    repeated = next((log for index, log in enumerate(logs) if log in logs[:index]), None)
    if repeated is not None:
        raise InputError(f"{repeated}: given twice; name each log once")
    return logs


def _expand(path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            if path.exists():
                return [path]
            raise InputError(f"{path}: no such file or folder")
        for patterns in _PATTERNS:
            files = {file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
            logs = [file for file in files if not _NOT_LOGS.fullmatch(file.name)]
            if logs:
                return sorted(logs, key=_natural_order)
    except OSError as error:  # name too long, folder without permission
        raise InputError(f"{path}: {error.strerror}") from error
    raise InputError(f"{path}: no logs in this folder; they are named result_0.txt, result_1.txt, ...")


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that puts result_2 before result_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def read_log(path: Path) -> Log:
    """Parse one log, gzipped or not.

    Raises:
        InputError: the file is not regular, may not be read, or is a damaged archive.
    """
    try:
        with open_log(path) as stream:
            return parse(stream, str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def read_plain_log(path: Path, max_bytes: int) -> Log:
    """Parse one file without decompressing it.

    Raises:
        InputError: the file may not be read, or is larger than ``max_bytes``.
    """
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise InputError(f"{path}: {size:,} bytes, expected at most {max_bytes:,}")
        with path.open("rb") as stream:
            return parse(stream, str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


@contextmanager
def open_log(path: Path) -> Iterator[BinaryIO]:
    """Open a log, and decompress it if it is gzipped.

    Raises:
        InputError: the file is not regular, or turns out to be a damaged archive.
        OSError: the file may not be read.
    """
    # A pipe would block, and a device may never end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path}: not a regular file; a log must be one")
    with path.open("rb") as raw:
        if raw.peek(2)[:2] != _GZIP_MAGIC:
            yield raw
            return
        try:
            with gzip.open(raw) as unpacked:
                yield cast("BinaryIO", unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: damaged gzip file ({error}); copy it again") from error
