"""The MD5 list of a download, and the MD5 of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from gptoss20b.data.md5_list import ListedFile, list_lines, parse_line

from .c4 import SOURCE
from .errors import CommandError

# The list is kept beside the data under the name it has on the server.
LIST_NAME = PurePosixPath(urlsplit(SOURCE).path).with_suffix(".md5").name
# Folder of all unfinished files below the data; no listed file may be in it.
WORK_FOLDER = ".download"
_BLOCK = 1 << 20


def parse_list(data: bytes, source: str) -> tuple[ListedFile, ...]:
    """Parse a list in which every line must be right and every path must be unique.

    Args:
        data: the list as it was fetched or read.
        source: address or path of the list, for messages.

    Raises:
        CommandError: a line is malformed, or its path is not usable. The message names the line.
    """
    files: dict[str, ListedFile] = {}
    for number, line in list_lines(data):
        place = f"{source}: line {number}"
        try:
            listed = parse_line(line)
        except ValueError as error:
            raise CommandError(f"{place}: {error}.") from None
        if listed.path == LIST_NAME or listed.path.split("/")[0] == WORK_FOLDER:
            raise CommandError(
                f"{place}: got the path '{listed.path}'; expected another name: the download itself uses this one."
            )
        if listed.path in files:
            raise CommandError(f"{place}: got {listed.path} again; expected each path once.")
        files[listed.path] = listed
    if not files:
        raise CommandError(f"{source}: got no file; expected lines of an MD5 and a path. To fix: check --source.")
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
