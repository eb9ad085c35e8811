"""MD5 lists in md5sum's format, and the MD5 of a file."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from data_scripts.c4 import SOURCE
from data_scripts.errors import CommandError
from data_scripts.fetching.web import shown

# The list is kept beside the data under the name it has on the server.
LIST_NAME = PurePosixPath(urlsplit(SOURCE).path).with_suffix(".md5").name
# Where everything unfinished is; no listed file may be in it.
WORK = ".download"
_LINE = re.compile(r"([0-9a-fA-F]{32})[ \t]+\*?(.*)")
_BLOCK = 1 << 20


class Listed(NamedTuple):
    """A file of the list: its path relative to the data's folder, with slashes, and its MD5 in lower case."""

    path: str
    md5: str


def parse_list(data: bytes, name: str) -> tuple[Listed, ...]:
    """The files of a list, in its order; blank lines are skipped.

    Args:
        data: the list as it was fetched or read.
        name: where it is from, for messages.

    Raises:
        CommandError: a line is not md5sum's, or its path is not one below the data's folder; the line is named.
    """
    files: dict[str, Listed] = {}
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), start=1):
        text = line.removesuffix("\r")
        if text.strip(" \t"):
            listed = _usable(text, f"{name}: line {number}")
            if listed.path in files:
                raise CommandError(f"{name}: line {number}: got {listed.path} again; expected each path once.")
            files[listed.path] = listed
    if not files:
        raise CommandError(f"{name}: got no file; expected lines of an MD5 and a path. To fix: check --source.")
    return tuple(files.values())


def _usable(text: str, where: str) -> Listed:
    try:
        listed = parse_line(text)
    except ValueError as error:
        raise CommandError(f"{where}: {error}.") from None
    if listed.path == LIST_NAME or listed.path.split("/")[0] == WORK:
        raise CommandError(
            f"{where}: got the path '{listed.path}'; expected another name: this one is kept for the download."
        )
    return listed


def parse_line(text: str) -> Listed:
    """One line of a list: 32 hexadecimal digits, blanks, maybe `*`, and a path, maybe from `./` on.

    Raises:
        ValueError: it is none, or the path is not one below the data's folder; the message is got and expected.
    """
    match = _LINE.fullmatch(text)
    if match is None:
        raise ValueError(f"got {shown(text)!r}; expected 32 hexadecimal digits, a space and a path")
    path = match[2].removeprefix("./")
    if not path.isprintable() or "\\" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError(
            f"got the path '{shown(path)}'; expected a relative one of plain names, without '..', backslashes and "
            "control characters"
        )
    return Listed(path, match[1].lower())


def md5_of(path: Path, watch: Callable[[int], None]) -> str:
    """The MD5 of a file, 32 lower-case digits; `watch` is called with the bytes read so far.

    Raises:
        OSError: the file cannot be read.
    """
    # an integrity check against the published list, not a defence against forgery
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            watch(done)
    return digest.hexdigest()
