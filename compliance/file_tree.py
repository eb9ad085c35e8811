"""What lies below a folder, by name: files, folders and links, without following a link or opening a file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

# A submission has thousands of files; whoever names `/` by mistake must not wait for a listing of it.
MAX_ENTRIES = 100_000
_SOURCE = re.compile(
    r".*\.(py|sh|sub|c|cc|cpp|cxx|h|hh|hpp|hxx|cu|cuh|hip|rs|go|java|js|ts|jl)", re.IGNORECASE | re.DOTALL
)
_BINARY = re.compile(
    r".*\.(whl|egg|pyc|pyd|so(\.\d+)*|a|o|dll|dylib|exe|bin|jar|class|deb|rpm|tar|tgz|zip|gz|bz2|xz|zst|7z|rar|sqsh"
    r"|pt|pth|ckpt|safetensors|npy|npz)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A regular file, or a link to one below the same root: its name (`systems/a.json`) and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link to anything but a regular file below the same root.

    Attributes:
        name: the link.
        target: what it says.
        kind: "outside" of the root, "folder" inside it (listed where it lies, not here), or "broken".
    """

    name: str
    target: str
    kind: str


@dataclass(slots=True)
class FileTree:
    """Everything below a root; names are relative to it, with `/`, in order. Unlisted: a name, and why not."""

    files: list[TreeFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    unlisted: list[tuple[str, str]] = field(default_factory=list)


def list_tree(root: Path, enters: Callable[[str], bool]) -> FileTree:
    """Lists everything below a folder; it stops, and says so, after `MAX_ENTRIES` entries.

    Args:
        root: the folder.
        enters: whether to list what is in a folder, given its name below the root.
    """
    real = Path(os.path.realpath(root))
    listing = FileTree()
    pending, room = [""], MAX_ENTRIES
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(real / folder) as found:
                entries = list(islice(found, room + 1))
        except OSError as error:
            listing.unlisted.append((folder, f"cannot be listed: {error.strerror}"))
            continue
        if len(entries) > room:
            message = f"the tree has more than {MAX_ENTRIES:,} files and folders, and is not listed from here on"
            listing.unlisted.append((folder, message))
            break
        room -= len(entries)
        names = [f"{folder}/{entry.name}" if folder else entry.name for entry in entries]
        pending += [name for name in names if _sort_in(listing, real, name) and enters(name)]
    listing.files.sort(key=lambda file: file.name)
    listing.folders.sort()
    listing.links.sort(key=lambda link: link.name)
    return listing


def printable_path(path: Path | str) -> str:
    r"""A path as messages show it: on one line, and printable whatever bytes the name holds.

    >>> printable_path(Path("a\nb"))
    'a\\nb'
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(path))


def is_source(name: str) -> bool:
    """Whether a file is source code by its name."""
    return _SOURCE.fullmatch(name) is not None


def is_binary(name: str) -> bool:
    """Whether a file is a binary or an archive by its name.

    >>> is_binary("libx.so.1.2"), is_binary("a/model.tar.gz"), is_binary("notes.sow.txt")
    (True, True, False)
    """
    return _BINARY.fullmatch(name) is not None


def has_rejected_name(name: str) -> bool:
    """Whether mlperf-logging's repo_checker refuses the last part of a name: a leading dot, a blank."""
    last = name.rpartition("/")[2]
    return last.startswith(".") or " " in last


def _sort_in(listing: FileTree, real: Path, name: str) -> bool:
    """Puts one entry where it belongs; whether it is a folder."""
    try:
        status = (real / name).lstat()
        if stat.S_ISLNK(status.st_mode):
            target = Path(os.path.realpath(real / name))
            if (kind := _kind(target, real)) != "file":
                listing.links.append(Link(name, str((real / name).readlink()), kind))
                return False
            status = target.stat()
    except OSError as error:
        listing.unlisted.append((name, f"cannot be read: {error.strerror}"))
        return False
    if stat.S_ISDIR(status.st_mode):
        listing.folders.append(name)
        return True
    if stat.S_ISREG(status.st_mode):
        listing.files.append(TreeFile(name, status.st_size))
    else:
        listing.unlisted.append((name, "neither a file nor a folder; remove it"))
    return False


def _kind(target: Path, real: Path) -> str:
    """What a link leads to."""
    if not target.is_relative_to(real):
        return "outside"
    if target.is_dir():
        return "folder"
    return "file" if target.exists() else "broken"
