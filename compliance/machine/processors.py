"""Processors and memory of this node, from /proc/cpuinfo, /proc/meminfo and /sys/devices/system/cpu.

lscpu is asked only for the name of a processor that the kernel does not name (ARM), and dmidecode, which wants root,
for the memory modules.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from .sources import LIMIT_S, clean, counted, entries, output, text, whole, word

_CACHES = {"Data": "d", "Instruction": "i", "Unified": ""}
_KIB = {"K": 1, "M": 1024, "G": 1024**2}
_MB = {"M": 1, "G": 1024, "T": 1024**2}


def processor_fields(root: Path = Path("/"), limit_s: float = LIMIT_S) -> dict[str, str]:
    """The fields `host_processor*` that are known.

    Args:
        root: folder that holds `proc` and `sys`.
        limit_s: time limit in seconds of each tool.

    Returns:
        Counts of cores and threads as `2 x 64 cores`, for each processor; frequencies in GHz; caches of the whole
        node in KiB or MiB. The frequency of the moment is not used: it is no property of the processor.
    """
    cpus = [each for each in entries(root / "sys/devices/system/cpu") if re.fullmatch(r"cpu\d+", each.name, re.ASCII)]
    name = _model_name(root, limit_s)
    fields = {
        "host_processor_model_name": name,
        **_counts(cpus),
        "host_processor_frequency": _frequency(cpus, name),
        "host_processor_caches": _caches(cpus),
    }
    return {field: value for field, value in fields.items() if value}


def memory_fields(root: Path = Path("/"), limit_s: float = LIMIT_S) -> dict[str, str]:
    """The fields `host_memory_*` that are known.

    Args:
        root: folder that holds `proc`.
        limit_s: time limit in seconds of each tool.

    Returns:
        The modules and their sum, if dmidecode may read them; else what the kernel can use, in GiB, and said so: it
        is less than what is installed.
    """
    modules = _modules(output("dmidecode", "-t", "17", limit_s=limit_s) or "")
    if modules:
        total = sum(size for size, _ in modules)
        kinds = counted(f"{size} GB {kind}".strip() for size, kind in modules)
        return {"host_memory_capacity": f"{total} GB", "host_memory_configuration": kinds}
    usable = re.search(r"^MemTotal:\s*(\d{1,15}) kB", text(root / "proc/meminfo") or "", re.ASCII | re.MULTILINE)
    return {"host_memory_capacity": f"{int(usable[1]) / 1024**2:.1f} GiB usable (MemTotal)"} if usable else {}


def machine_notes(root: Path = Path("/")) -> str:
    """What no field of a description asks for: maker and product, virtual or not, processors switched off."""
    product = [word(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name")]
    offline = word(root / "sys/devices/system/cpu/offline")
    virtual = re.search(r"^flags\s*:.*\bhypervisor\b", text(root / "proc/cpuinfo") or "", re.MULTILINE)
    notes = [
        " ".join(each for each in product if each),
        "virtual machine: processors, caches and disks are as the hypervisor shows them" if virtual else "",
        f"logical processors {offline} are offline and not counted" if offline else "",
    ]
    return "; ".join(filter(None, notes))


def _model_name(root: Path, limit_s: float) -> str | None:
    """Model name, or several with their numbers of logical processors."""
    names = re.findall(r"^model name\s*:(.*)$", text(root / "proc/cpuinfo") or "", re.MULTILINE)
    if not names:
        names = re.findall(r"^Model name:(.*)$", output("lscpu", limit_s=limit_s) or "", re.MULTILINE)
    known = dict.fromkeys(filter(None, map(clean, names)))
    known.pop("-", None)  # lscpu's word for unknown
    return " + ".join(known) or None


def _counts(cpus: list[Path]) -> dict[str, str | None]:
    """Processors, cores and threads of those that are online, from the topology of each logical processor."""
    threads: Counter[int] = Counter()
    cores: dict[int, set[str]] = {}
    for cpu in cpus:
        topology = cpu / "topology"
        if not topology.is_dir():
            continue  # offline
        package = whole(topology / "physical_package_id")
        core = word(topology / "core_cpus_list") or word(topology / "thread_siblings_list")
        if package is None or package < 0 or core is None:
            return {}  # -1: the firmware does not say
        threads[package] += 1
        cores.setdefault(package, set()).add(core)
    if not cores:
        return {}
    return {
        "host_processors_per_node": str(len(cores)),
        "host_processor_core_count": counted(f"{len(each)} cores" for each in cores.values()),
        "host_processor_vcpu_count": counted(f"{each} threads" for each in threads.values()),
        "host_processor_interconnect": "N/A (one processor)" if len(cores) == 1 else None,
    }


def _frequency(cpus: list[Path], name: str | None) -> str | None:
    """Base and highest frequency in GHz: cpufreq's, in kHz, or the nominal one that Intel writes into the name."""
    found = []
    for label, file in (("base", "base_frequency"), ("max", "cpuinfo_max_freq")):
        khz = [whole(cpu / "cpufreq" / file) for cpu in cpus]
        if known := [each for each in khz if each is not None and each > 0]:
            found.append(f"{max(known) / 1e6:.2f} GHz {label}")
    nominal = re.search(r"@ (\d+(?:\.\d+)?)\s*GHz", name or "", re.ASCII)
    if nominal and not any("base" in each for each in found):
        found.insert(0, f"{float(nominal[1]):.2f} GHz base")
    return ", ".join(found) or None


def _caches(cpus: list[Path]) -> str | None:
    """Caches of the node: level and kind, number and size. CPUs that share a cache list the same CPUs."""
    shared: dict[str, dict[str, str]] = {}
    for cpu in cpus:
        for index in entries(cpu / "cache"):
            level, kind = whole(index / "level"), _CACHES.get(word(index / "type") or "")
            size, sharing = _cache_size(word(index / "size")), word(index / "shared_cpu_list")
            if level is not None and kind is not None and size and sharing:
                shared.setdefault(f"L{level}{kind}", {})[sharing] = size
    return ", ".join(f"{name}: {counted(each.values())}" for name, each in sorted(shared.items())) or None


def _cache_size(size: str | None) -> str | None:
    match = re.fullmatch(r"(\d{1,9})([KMG])", size or "", re.ASCII)
    if not match:
        return None
    kib = int(match[1]) * _KIB[match[2]]
    return f"{kib // 1024} MiB" if kib and kib % 1024 == 0 else f"{kib} KiB"


def _modules(printed: str) -> list[tuple[int, str]]:
    """Memory modules as dmidecode lists them: size in its GB (of 1,024 MB), and `DDR5 5600 MT/s` as configured.

    None at all if the size of one cannot be read: the sum would be wrong.
    """
    modules = []
    for block in re.split(r"\n\s*\n", printed):
        values = dict(re.findall(r"^\s+([\w ]+): (.*)$", block, re.MULTILINE))
        size = clean(values.get("Size"))
        if not re.search(r"^Memory Device$", block, re.MULTILINE) or size == "No Module Installed":
            continue
        match = re.fullmatch(r"(\d{1,9}) ([MGT])B", size, re.ASCII)
        gigabytes, rest = divmod(int(match[1]) * _MB[match[2]], 1024) if match else (0, 0)
        if gigabytes == 0 or rest:
            return []
        kind = (clean(values.get(key)) for key in ("Type", "Configured Memory Speed"))
        modules.append((gigabytes, " ".join(each for each in kind if each not in ("", "Unknown"))))
    return modules
