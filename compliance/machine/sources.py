"""Where facts come from: small files of the kernel, and what a tool prints within a time limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

# nvidia-smi without its persistence daemon wakes eight GPUs first.
LIMIT_S = 30.0


def text(path: Path) -> str | None:
    """All of a small file, None if it cannot be read; what is not UTF-8 is replaced."""
    try:
        # Without a size: files of /proc/sys refuse to be read by the megabyte.
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return None


def word(path: Path) -> str | None:
    """The one line of a small file, printable characters only; None if it is empty or cannot be read."""
    return clean(text(path)) or None


def whole(path: Path) -> int | None:
    """The whole number in a small file, None without one."""
    return number(word(path))


def number(words: str | None) -> int | None:
    """Text as a whole number, None if it is none."""
    return int(words) if words is not None and re.fullmatch(r"-?\d{1,18}", words, re.ASCII) else None


def clean(words: str | None) -> str:
    """Text on one line, with single spaces and printable characters only; nothing for None."""
    printable = "".join(letter if letter.isprintable() else " " for letter in words or "")
    return " ".join(printable.split())


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing if it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def counted(names: Iterable[str]) -> str:
    """`2 x A + 1 x B`: each name with its number, in order of first appearance. A comma would split the official
    summary, which is a line of comma-separated values.
    """
    return " + ".join(f"{count} x {name}" for name, count in Counter(names).items())


def named(names: Sequence[str | None]) -> str | None:
    """The name that all have, or each with its number; None if one is unknown."""
    known = [name for name in names if name]
    if not known or len(known) < len(names):
        return None
    return known[0] if len(set(known)) == 1 else counted(known)


def same(values: Iterable[str | None]) -> str | None:
    """The value that all have, None if they differ, or one is unknown, or there are none."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def output(*command: str, limit_s: float = LIMIT_S) -> str | None:
    """What a tool prints on stdout, in plain English; None if it is missing, fails, or takes too long.

    Args:
        command: the tool, found on PATH, and its arguments; no shell reads them.
        limit_s: seconds after which the tool and its children are ended.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError:
        return None
    with process:
        try:
            printed, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            # The whole session: a child that holds the pipe would keep us waiting.
            os.killpg(process.pid, signal.SIGKILL)
            return None
    return printed.decode("utf-8", "replace") if process.returncode == 0 else None
