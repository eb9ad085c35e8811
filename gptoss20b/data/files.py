"""Open and read data files. Every error names the file, what was found, what was expected, and a fix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Self

REBUILD = "download the .bin and the .idx again, or rebuild them"


class DataError(ValueError):
    """A data file is missing, damaged or does not fit the run. The message names the file and a fix."""

    @classmethod
    def about(cls, path: Path, got: str, expected: str, fix: str = REBUILD) -> Self:
        """Build the error in the form shared by all data files: path, got, expected, fix."""
        return cls(f"{path}: got {got}; expected {expected}. To fix: {fix}.")


class Closing:
    """A context manager that closes itself at its end."""

    def close(self) -> None:
        """Release what is open; safe to call twice."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_binary(path: Path) -> BinaryIO:
    """Open a file for unbuffered reading.

    Raises:
        DataError: the file is missing or cannot be opened.
    """
    fix = "check the data directory, or download the dataset"
    if path.stem.endswith((".bin", ".idx")):
        fix = "give the prefix without .bin or .idx"
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise DataError.about(path, "no such file", "a file", fix) from None
    except (OSError, ValueError) as error:
        raise DataError.about(path, str(error), "a readable file", fix) from error


def read_exactly(path: Path, descriptor: int, size: int, offset: int) -> bytes:
    """Read `size` bytes at byte `offset`.

    Raises:
        DataError: the read failed, or the file ends earlier.
    """
    parts: list[bytes] = []
    missing = size
    # One system call may return less than was asked for.
    while missing:
        try:
            part = os.pread(descriptor, missing, offset + size - missing)
        except OSError as error:
            raise DataError.about(
                path, str(error), f"{size} bytes at byte {offset}", "check the file system"
            ) from error
        if not part:
            raise DataError.about(
                path, f"{size - missing} bytes at byte {offset}", f"{size}; the file was cut while it was in use"
            )
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def printable(text: str) -> str:
    """Return foreign text as one line of ASCII, escaped and cut to 200 characters, for use in a message."""
    return ascii(text)[1:-1][:200]


def append_suffix(prefix: Path, suffix: str) -> Path:
    """Return `PREFIX` with a suffix such as `.bin` appended."""
    # Path.with_suffix would cut the published name "c4-train.en_6_text_document" at its dot.
    return Path(f"{prefix}{suffix}")
