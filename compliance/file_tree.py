"""Names of everything below a folder: files, folders and links. Follows no link and opens no file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

# A submission has thousands of files. The limit keeps a mistaken `/` from being listed for hours.
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
    """Regular file, or link to one below the same root: name below the root, and size in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Link:
    """Symbolic link to anything except a regular file below the same root.

    ``kind`` is "outside" of the root, "folder" below it, or "broken". ``target`` is the text of the link.
    """

    name: str
    target: str
    kind: str


@dataclass(slots=True)
class FileTree:
    """Everything below a root, sorted by name. ``unlisted`` holds names with the reason."""

    files: list[TreeFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    unlisted: list[tuple[str, str]] = field(default_factory=list)


def list_tree(root: Path, should_enter: Callable[[str], bool]) -> FileTree:
    """List everything below a folder, at most `MAX_ENTRIES` entries.

    ``should_enter`` is called with a folder's name below the root; False leaves its contents out.
    """
    # Links are compared by their real targets, so the root has to be real, too.
    real_root = Path(os.path.realpath(root))
    tree = FileTree()
    pending, room = [""], MAX_ENTRIES
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(real_root / folder) as scan:
                entries = list(islice(scan, room + 1))
        except OSError as error:
            tree.unlisted.append((folder, f"cannot be listed: {error.strerror}"))
            continue
        if len(entries) > room:
            message = f"the tree has more than {MAX_ENTRIES:,} files and folders; the rest is not listed"
            tree.unlisted.append((folder, message))
            break
        room -= len(entries)
        names = [f"{folder}/{entry.name}" if folder else entry.name for entry in entries]
        pending += [name for name in names if _add_entry(tree, real_root, name) and should_enter(name)]
    tree.files.sort(key=lambda file: file.name)
    tree.folders.sort()
    tree.links.sort(key=lambda link: link.name)
    return tree


def printable(text: Path | str) -> str:
    r"""Return a path or a text on one line, with every character that does not print as its escape.

    >>> printable(Path("a\nb"))
    'a\\nb'
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


def is_source(name: str) -> bool:
    """Return True if a file name has the suffix of source code."""
    return _SOURCE.fullmatch(name) is not None


def is_binary(name: str) -> bool:
    """Return True if a file name has the suffix of a binary or an archive.

    >>> is_binary("libx.so.1.2"), is_binary("a/model.tar.gz"), is_binary("notes.sow.txt")
    (True, True, False)
    """
    return _BINARY.fullmatch(name) is not None


def has_rejected_name(name: str) -> bool:
    """Return True if mlperf-logging's repo_checker rejects the last part of a name: a leading dot, a blank."""
    last = name.rpartition("/")[2]
    return last.startswith(".") or " " in last


def _add_entry(tree: FileTree, real_root: Path, name: str) -> bool:
    """Add one entry to the tree. Return True if it is a folder."""
    try:
        status = (real_root / name).lstat()
        if stat.S_ISLNK(status.st_mode):
            target = Path(os.path.realpath(real_root / name))
            if (kind := _target_kind(target, real_root)) != "file":
                tree.links.append(Link(name, str((real_root / name).readlink()), kind))
                return False
            status = target.stat()
    except OSError as error:
        tree.unlisted.append((name, f"cannot be read: {error.strerror}"))
        return False
    if stat.S_ISDIR(status.st_mode):
        tree.folders.append(name)
        return True
    if stat.S_ISREG(status.st_mode):
        tree.files.append(TreeFile(name, status.st_size))
    else:
        tree.unlisted.append((name, "neither a file nor a folder; remove it"))
    return False


def _target_kind(target: Path, real_root: Path) -> str:
    if not target.is_relative_to(real_root):
        return "outside"
    if target.is_dir():
        return "folder"
    return "file" if target.exists() else "broken"
