"""MD5 lists in the format of md5sum: one line per file, its MD5 and its path relative to the list's folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from gptoss20b.data.files import DataError, printable

from .c4 import SOURCE

# The list is kept beside the data under the name it has on the server.
LIST_NAME = PurePosixPath(urlsplit(SOURCE).path).with_suffix(".md5").name
# Folder of all unfinished files below the data; no listed file may be in it.
WORK_FOLDER = ".download"
LIST_AGAIN = "download the list again"
_LINE = re.compile(r"([0-9a-fA-F]{32})[ \t]+\*?(.*)")
_BLOCK = 1 << 20


class ListedFile(NamedTuple):
    """One entry: a path with slashes, relative to the list's folder, and the MD5 as 32 lower-case hex digits."""

    path: str
    md5: str


def parse_list(data: bytes, source: str) -> tuple[ListedFile, ...]:
    """Parse a list, in which every line must be right and every path must be unique.

    A line holds 32 hex digits, white space, an optional `*` (binary mode) and a path, optionally with `./`. A path that
    could lead out of the folder is malformed.

    Args:
        data: the list as it was fetched or read.
        source: address or path of the list, for messages.

    Raises:
        DataError: a line is malformed, or its path is not usable. The message names the line.
    """
    files: dict[str, ListedFile] = {}
    # Bytes that are not UTF-8 become backslash escapes, which no path may hold.
    for number, line in enumerate(data.decode("utf-8", "backslashreplace").split("\n"), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.rstrip())
        path = match[2].removeprefix("./") if match else ""
        difference = None
        if match is None:
            difference = f"{printable(line.rstrip())!r}; expected 32 hexadecimal digits, a space and a path"
        elif not path.isprintable() or "\\" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
            plain = "a relative one of plain names, without '..', backslashes and control characters"
            difference = f"the path '{printable(path)}'; expected {plain}"
        elif path == LIST_NAME or path.split("/")[0] == WORK_FOLDER:
            difference = f"the path '{path}'; expected another name: the download itself uses this one"
        elif path in files:
            difference = f"{path} again; expected each path once"
        if match is None or difference:
            raise DataError(f"{source}: line {number}: got {difference}. To fix: {LIST_AGAIN}.")
        files[path] = ListedFile(path, match[1].lower())
    if not files:
        raise DataError(f"{source}: got no file; expected lines of an MD5 and a path. To fix: {LIST_AGAIN}.")
    return tuple(files.values())


def file_md5(path: Path, advance: Callable[[int], None]) -> str:
    """Return the MD5 of a file as 32 lower-case digits; call `advance` with the size of each block read."""
    # an integrity check against the published list, not a defence against forgery
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
