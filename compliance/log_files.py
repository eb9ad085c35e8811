"""Which files are logs, and their bytes. The only module that opens a log."""

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

_GZIP = b"\x1f\x8b"
# The rules' name first; published reference logs are named otherwise.
_PATTERNS = (("result_*.txt", "result_*.txt.gz"), ("*.log", "*.log.gz", "*.txt", "*.txt.gz"))
# What the official tools write beside logs.
_NOT_LOGS = re.compile(r".*_checker\.log|compliance.*\.out")


class InputError(Exception):
    """The input cannot be read at all; says what, why, and what to do."""


def find_logs(paths: Sequence[Path]) -> list[Path]:
    """The logs that a command was given: files as they are, folders by the names of logs.

    A folder's logs are its `result_*.txt`, or without any its `*.log` and `*.txt`, gzipped or not, in natural order.

    Raises:
        InputError: a path does not exist, or a folder holds no log.
    """
    logs = [log for path in paths for log in _at(path)]
    doubled = next((log for index, log in enumerate(logs) if log in logs[:index]), None)
    if doubled is not None:
        raise InputError(f"{doubled}: given twice; name each log once")
    return logs


def _at(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return _in_folder(path)
        if path.exists():
            return [path]
    except OSError as error:  # a name too long, a folder that may not be entered
        raise InputError(f"{path}: {error.strerror}") from error
    raise InputError(f"{path}: no such file or folder")


def _in_folder(folder: Path) -> list[Path]:
    try:
        for patterns in _PATTERNS:
            found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
            found = {path for path in found if not _NOT_LOGS.fullmatch(path.name)}
            if found:
                return sorted(found, key=lambda path: _natural(path.name))
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}") from error
    raise InputError(f"{folder}: no logs in this folder; they are named result_0.txt, result_1.txt, ...")


def _natural(name: str) -> list[tuple[int, str]]:
    """result_2 before result_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def read_log(path: Path, name: str | None = None) -> Log:
    """Parses one log, gzipped or not.

    Args:
        path: the file.
        name: how messages name it; the path if None.

    Raises:
        InputError: it is no regular file, may not be read, or is a damaged archive.
    """
    try:
        with _opened(path) as stream:
            return parse(stream, name or str(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged gzip file ({error}); copy it again") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    # A pipe or a device would block, or never end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path}: not a regular file; a log is one")
    with path.open("rb") as raw:
        if raw.peek(2)[:2] == _GZIP:
            with gzip.open(raw) as unpacked:
                yield cast("BinaryIO", unpacked)
        else:
            yield raw
