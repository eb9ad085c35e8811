"""Memory of this node."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from .files import one_line, parse_int, read_text
from .tools import run_tool

_MIB = {"M": 1, "G": 1024, "T": 1024**2}


@dataclass(frozen=True)
class Memory:
    """Memory of a node in bytes: in total for programs, available for new ones, and swapped out."""

    total: int
    available: int
    swap_used: int


@dataclass(frozen=True)
class MemoryModule:
    """A memory module: its size in GiB, and its kind and configured speed, such as ``DDR5 5600 MT/s``."""

    size_gib: int
    kind: str


def read_memory() -> Memory | None:
    """Return the kernel's figures, or None if it shows none."""
    try:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    except (OSError, LookupError, ValueError):  # what psutil raises for a missing or damaged /proc/meminfo
        return None
    return Memory(memory.total, memory.available, swap.used)


def read_cgroup_memory_left(root: Path = Path("/")) -> int | None:
    """Return the bytes that a container's control group (version 2) leaves, or None without a limit."""
    group = root / "sys/fs/cgroup"
    limit, used = (parse_int(read_text(group / f"memory.{name}").strip()) for name in ("max", "current"))
    if limit is None or used is None:
        return None
    # The group counts cached pages of files as used, although the kernel drops them when memory is needed.
    inactive = re.search(r"^inactive_file (\d+)$", read_text(group / "memory.stat"), re.ASCII | re.MULTILINE)
    return max(0, limit - used + (int(inactive[1]) if inactive else 0))


def read_memory_modules(limit_s: float | None = None) -> list[MemoryModule]:
    """Return the installed modules, as dmidecode shows them to root.

    Args:
        limit_s: time limit in seconds of dmidecode.

    Returns:
        An empty list if the size of one module cannot be read: a sum of the others would be wrong.
    """
    output = run_tool("dmidecode", "-t", "17", limit_s=limit_s)
    modules = []
    for block in re.split(r"\n\s*\n", output.answer):
        values = {key: one_line(text) for key, text in re.findall(r"^\s+([\w ]+): (.*)$", block, re.MULTILINE)}
        size = values.get("Size", "")
        if not re.search(r"^Memory Device$", block, re.MULTILINE) or size == "No Module Installed":
            continue
        match = re.fullmatch(r"(\d{1,9}) ([MGT])B", size, re.ASCII)  # dmidecode's GB is 1,024 MB
        gib, rest = divmod(int(match[1]) * _MIB[match[2]], 1024) if match else (0, 0)
        if gib == 0 or rest:
            return []
        kind = (values.get(key, "") for key in ("Type", "Configured Memory Speed"))
        modules.append(MemoryModule(gib, " ".join(each for each in kind if each not in ("", "Unknown"))))
    return modules
