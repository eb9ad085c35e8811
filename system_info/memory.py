"""Memory of this node beyond what psutil reads: installed modules, and the limit of a container."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .files import one_line, read_int, read_text
from .tools import run_tool

_GIB = {"M": 1 / 1024, "G": 1, "T": 1024}  # dmidecode's GB is 1,024 MB


@dataclass(frozen=True)
class MemoryModule:
    """A memory module: its size in GiB, and its kind and configured speed, such as ``DDR5 5600 MT/s``."""

    size_gib: float
    kind: str


def read_cgroup_memory_left(root: Path = Path("/")) -> int | None:
    """Return the bytes that a container's control group (version 2) leaves, or None without a limit."""
    group = root / "sys/fs/cgroup"
    limit, used = read_int(group / "memory.max"), read_int(group / "memory.current")
    if limit is None or used is None:
        return None
    # The group counts cached pages of files as used, although the kernel drops them when memory is needed.
    inactive = re.search(r"^inactive_file (\d+)$", read_text(group / "memory.stat"), re.ASCII | re.MULTILINE)
    return max(0, limit - used + (int(inactive[1]) if inactive else 0))


def read_memory_modules(limit_s: float | None = None) -> list[MemoryModule]:
    """Return the installed modules, as dmidecode shows them to root.

    The list is empty if the size of one module cannot be read: a sum of the others would be wrong.
    """
    modules = []
    for block in run_tool("dmidecode", "-t", "17", limit_s=limit_s).answer.split("\n\n"):
        values = {key: one_line(text) for key, text in re.findall(r"^\s+([\w ]+): (.*)$", block, re.MULTILINE)}
        if values.get("Size", "No Module Installed") == "No Module Installed":
            continue
        size = re.fullmatch(r"(\d{1,9}) ([MGT])B", values["Size"], re.ASCII)
        if size is None:
            return []
        kind = (values.get(key, "Unknown") for key in ("Type", "Configured Memory Speed"))
        modules.append(MemoryModule(int(size[1]) * _GIB[size[2]], " ".join(each for each in kind if each != "Unknown")))
    return modules
