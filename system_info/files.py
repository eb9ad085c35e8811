"""Small files of the kernel and the firmware, below /proc, /sys and /etc."""

from __future__ import annotations

import re
from pathlib import Path


def read_text(path: Path) -> str:
    """Return a small file's text, or an empty string if it cannot be read. Bytes that are not UTF-8 are replaced."""
    try:
        # Read without a size: some files of /proc/sys reject large reads.
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def read_line(path: Path) -> str | None:
    """Return a file's text as one line, or None if the file is empty or cannot be read."""
    return one_line(read_text(path)) or None


def read_int(path: Path) -> int | None:
    """Return the integer in a file, or None."""
    return parse_int(read_line(path))


def parse_int(text: str | None) -> int | None:
    """Return text as an integer of at most 18 digits, or None.

    >>> parse_int("-1"), parse_int("1 MB"), parse_int(None)
    (-1, None, None)
    """
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,18}", text, re.ASCII) else None


def one_line(text: str | None) -> str:
    r"""Return text as one line of printable characters with single spaces, cut at 500 characters.

    >>> one_line(" a\n\x1b b ")
    'a b'
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text or "")
    return " ".join(printable.split())[:500]
