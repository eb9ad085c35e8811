"""MD5 lists in the format of md5sum: one line per file, its MD5 and its path relative to the list's folder."""

from __future__ import annotations

import re
from typing import NamedTuple

from .files import printable

_LINE = re.compile(r"([0-9a-fA-F]{32})[ \t]+\*?(.*)")


class ListedFile(NamedTuple):
    """One entry: a path with slashes, relative to the list's folder, and the MD5 as 32 lower-case hex digits."""

    path: str
    md5: str


def list_lines(data: bytes) -> list[tuple[int, str]]:
    """Return the lines of a list that are not blank, each with its number, counted from 1."""
    # Bytes that are not UTF-8 become backslash escapes, which `parse_line` rejects in a path.
    text = data.decode("utf-8", "backslashreplace")
    lines = ((number, line.rstrip()) for number, line in enumerate(text.split("\n"), start=1))
    return [(number, line) for number, line in lines if line]


def parse_line(line: str) -> ListedFile:
    """Parse a line: 32 hex digits, white space, an optional `*` (binary mode) and a path, optionally with `./`.

    Raises:
        ValueError: the line has another form, or its path could lead out of the folder. The message holds
            got and expected.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"got {printable(line)!r}; expected 32 hexadecimal digits, a space and a path")
    path = match[2].removeprefix("./")
    if not path.isprintable() or "\\" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError(
            f"got the path '{printable(path)}'; expected a relative one of plain names, without '..', backslashes and "
            "control characters"
        )
    return ListedFile(path, match[1].lower())
