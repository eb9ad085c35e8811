"""Processors of this node, from /proc/cpuinfo and /sys/devices/system/cpu."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .files import one_line, parse_int, read_int, read_line, read_text
from .tools import run_tool

_CPUS = "sys/devices/system/cpu"
_CACHE_KINDS = {"Data": "d", "Instruction": "i", "Unified": ""}


@dataclass(frozen=True)
class Processors:
    """Processors of a node, without logical processors that are offline.

    Attributes:
        models: model names, each once.
        cores: number of cores of each processor (socket); empty if the firmware does not report sockets.
        threads: number of logical processors of each processor.
        base_ghz: base frequency.
        max_ghz: highest frequency.
        caches: size in KiB of each cache of the node, by level and kind (L1d, L1i, L2, L3).
        offline: logical processors that are offline, such as ``2-3``; None if there are none.
        is_virtual: a hypervisor shows these processors.
    """

    models: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    base_ghz: float | None = None
    max_ghz: float | None = None
    caches: dict[str, tuple[int, ...]] = field(default_factory=dict)
    offline: str | None = None
    is_virtual: bool = False


def read_processors(root: Path = Path("/"), limit_s: float | None = None) -> Processors:
    """Return the processors. lscpu names those that the kernel does not name (ARM)."""
    cpus = sorted((root / _CPUS).glob("cpu[0-9]*"))
    info = read_text(root / "proc/cpuinfo")
    names = re.findall(r"^model name\s*:(.*)$", info, re.MULTILINE)
    if not names:
        names = re.findall(r"^Model name:(.*)$", run_tool("lscpu", limit_s=limit_s).answer, re.MULTILINE)
    models = dict.fromkeys(name for each in names if (name := one_line(each)) not in ("", "-"))  # lscpu's unknown is -
    cores = _count_threads(cpus)
    # Intel writes the base frequency into the name. /proc/cpuinfo's `cpu MHz` is the current one, which says nothing.
    named = re.search(r"@ (\d+(?:\.\d+)?)\s*GHz", " ".join(models), re.ASCII)
    return Processors(
        models=tuple(models),
        cores=tuple(len(each) for each in cores),
        threads=tuple(sum(each.values()) for each in cores),
        base_ghz=_highest_ghz(cpus, "base_frequency") or (float(named[1]) if named else None),
        max_ghz=_highest_ghz(cpus, "cpuinfo_max_freq"),
        caches=_read_caches(cpus),
        offline=read_line(root / _CPUS / "offline"),
        is_virtual=re.search(r"^flags\s*:.*\bhypervisor\b", info, re.MULTILINE) is not None,
    )


def read_cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the processors that a container's control group (version 2) allows, or None without a limit."""
    quota = re.fullmatch(r"(\d+) (\d+)\s*", read_text(root / "sys/fs/cgroup/cpu.max"), re.ASCII)
    return int(quota[1]) / int(quota[2]) if quota else None


def count_governors(root: Path = Path("/")) -> Counter[str]:
    """Return the number of logical processors by their frequency governor; empty if the system shows none."""
    files = (root / _CPUS).glob("cpu[0-9]*/cpufreq/scaling_governor")
    return Counter(governor for file in files if (governor := read_line(file)))


def _count_threads(cpus: list[Path]) -> list[Counter[str]]:
    """Return the threads of each core of each processor. Return nothing if the firmware does not report processors."""
    sockets: dict[int, Counter[str]] = {}
    for cpu in cpus:
        socket, core = read_int(cpu / "topology/physical_package_id"), read_line(cpu / "topology/thread_siblings_list")
        if socket is not None and core is not None:  # an offline one has no topology
            sockets.setdefault(socket, Counter())[core] += 1
    return [] if -1 in sockets else list(sockets.values())


def _highest_ghz(cpus: list[Path], name: str) -> float | None:
    """Return the highest of a frequency that cpufreq reports in kHz for each logical processor."""
    khz = max((read_int(cpu / "cpufreq" / name) or 0 for cpu in cpus), default=0)
    return khz / 1e6 if khz > 0 else None


def _read_caches(cpus: list[Path]) -> dict[str, tuple[int, ...]]:
    """Return each cache once. Processors that share a cache list the same processors in it."""
    sizes: dict[str, dict[str, int]] = {}
    for cpu in cpus:
        for index in (cpu / "cache").glob("index*"):
            level, kind = read_int(index / "level"), _CACHE_KINDS.get(read_line(index / "type") or "")
            kib = parse_int((read_line(index / "size") or "").removesuffix("K"))  # the kernel writes no other unit
            sharing = read_line(index / "shared_cpu_list")
            if level is not None and kind is not None and kib is not None and sharing:
                sizes.setdefault(f"L{level}{kind}", {})[sharing] = kib
    return {name: tuple(each.values()) for name, each in sorted(sizes.items())}
