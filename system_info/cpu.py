"""Processors of this node, from /proc/cpuinfo and /sys/devices/system/cpu."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .files import list_folder, one_line, parse_int, read_int, read_line, read_text
from .tools import run_tool

_CACHE_KINDS = {"Data": "d", "Instruction": "i", "Unified": ""}
_KIB = {"K": 1, "M": 1024, "G": 1024**2}


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

    models: tuple[str, ...]
    cores: tuple[int, ...]
    threads: tuple[int, ...]
    base_ghz: float | None
    max_ghz: float | None
    caches: dict[str, tuple[int, ...]]
    offline: str | None
    is_virtual: bool


def read_processors(root: Path = Path("/"), limit_s: float | None = None) -> Processors:
    """Return the processors.

    Args:
        root: folder that holds ``proc`` and ``sys``.
        limit_s: time limit in seconds of lscpu, which names processors that the kernel does not name (ARM).
    """
    folders = list_folder(root / "sys/devices/system/cpu")
    cpus = [each for each in folders if re.fullmatch(r"cpu\d+", each.name, re.ASCII)]
    info = read_text(root / "proc/cpuinfo")
    names = re.findall(r"^model name\s*:(.*)$", info, re.MULTILINE)
    if not names:
        names = re.findall(r"^Model name:(.*)$", run_tool("lscpu", limit_s=limit_s).answer, re.MULTILINE)
    models = dict.fromkeys(name for each in names if (name := one_line(each)) not in ("", "-"))  # lscpu's unknown is -
    cores, threads = _count_cores(cpus)
    base_ghz = _highest_ghz(cpus, "base_frequency")
    # Intel writes the base frequency into the name. /proc/cpuinfo's `cpu MHz` is the current one, which says nothing.
    named = re.search(r"@ (\d+(?:\.\d+)?)\s*GHz", " ".join(models), re.ASCII)
    return Processors(
        models=tuple(models),
        cores=cores,
        threads=threads,
        base_ghz=float(named[1]) if base_ghz is None and named else base_ghz,
        max_ghz=_highest_ghz(cpus, "cpuinfo_max_freq"),
        caches=_read_caches(cpus),
        offline=read_line(root / "sys/devices/system/cpu/offline"),
        is_virtual=re.search(r"^flags\s*:.*\bhypervisor\b", info, re.MULTILINE) is not None,
    )


def read_cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the processors that a container's control group (version 2) allows, or None without a limit."""
    quota = re.fullmatch(r"(\d+) (\d+)\s*", read_text(root / "sys/fs/cgroup/cpu.max"), re.ASCII)
    return int(quota[1]) / int(quota[2]) if quota else None


def count_governors(root: Path = Path("/")) -> Counter[str]:
    """Return the number of logical processors by their frequency governor; empty if the system shows none."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return Counter(governor for file in files if (governor := read_line(file)))


def _count_cores(cpus: list[Path]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Count cores and threads of each processor. Return nothing if the firmware does not report the processor."""
    threads: Counter[int] = Counter()
    cores: dict[int, set[str]] = {}
    for cpu in cpus:
        topology = cpu / "topology"
        if not topology.is_dir():
            continue  # offline
        package = read_int(topology / "physical_package_id")
        core = read_line(topology / "core_cpus_list") or read_line(topology / "thread_siblings_list")
        if package is None or package < 0 or core is None:
            return (), ()
        threads[package] += 1
        cores.setdefault(package, set()).add(core)
    return tuple(map(len, cores.values())), tuple(threads.values())


def _highest_ghz(cpus: list[Path], name: str) -> float | None:
    """Return the highest of a frequency that cpufreq reports in kHz for each logical processor."""
    khz = [read_int(cpu / "cpufreq" / name) or 0 for cpu in cpus]
    return max(khz) / 1e6 if max(khz, default=0) > 0 else None


def _read_caches(cpus: list[Path]) -> dict[str, tuple[int, ...]]:
    """Return each cache once. Processors that share a cache list the same processors in it."""
    sizes: dict[str, dict[str, int]] = {}
    for cpu in cpus:
        for index in list_folder(cpu / "cache"):
            level, kind = read_int(index / "level"), _CACHE_KINDS.get(read_line(index / "type") or "")
            size, sharing = _parse_size(read_line(index / "size")), read_line(index / "shared_cpu_list")
            if level is not None and kind is not None and size is not None and sharing:
                sizes.setdefault(f"L{level}{kind}", {})[sharing] = size
    return {name: tuple(each.values()) for name, each in sorted(sizes.items())}


def _parse_size(size: str | None) -> int | None:
    """Return a cache's size in KiB."""
    number, unit = parse_int((size or "")[:-1]), _KIB.get((size or "")[-1:])
    return None if number is None or unit is None else number * unit
