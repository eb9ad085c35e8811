"""Machines for tests: trees of /proc and /sys as the kernel lays them out, and tools that print what they are told."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

GPU_CLASS = "0x030200"


def made_tool(folder: Path, name: str, answers: dict[str, str] | str, status: int = 0) -> None:
    """An executable that prints an answer by the first of its keys found among its arguments, and exits.

    Args:
        folder: where it lies, for PATH.
        name: of the tool.
        answers: texts by a word of the arguments; one text answers everything.
        status: exit status; without an answer it is 9.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_word = {"": answers} if isinstance(answers, str) else answers
    lines = ["#!/bin/sh"]
    for number, (key, printed) in enumerate(by_word.items()):
        text = folder / f".{name}.{number}"
        text.write_text(printed, encoding="utf-8")
        lines.append(f'case "$*" in *{shlex.quote(key)}*) while IFS= read -r line || [ -n "$line" ]; do')
        lines.append(f'printf "%s\\n" "$line"; done < {shlex.quote(str(text))}; exit {status};; esac')
    _executable(folder / name, "\n".join([*lines, "exit 9"]))


def hanging_tool(folder: Path, name: str) -> None:
    """An executable with a child that holds its output for a minute."""
    folder.mkdir(parents=True, exist_ok=True)
    _executable(folder / name, f"#!/bin/sh\n{sys.executable} -c 'import time; time.sleep(60)'\necho late\n")


def _executable(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
    path.chmod(0o755)


def write(root: Path, files: dict[str, object]) -> Path:
    """Files below a root by their names, each with a line break as the kernel's have; returns the root."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n", encoding="utf-8")
    return root


def made_host(
    root: Path,
    *,
    sockets: int = 2,
    cores: int = 4,
    threads_per_core: int = 2,
    model: str | None = "INTEL(R) XEON(R) PLATINUM 8570",
    caches: bool = True,
    cores_per_l3: int | None = None,
    flags: str = "fpu sse2",
    memory_kb: int = 2_113_408_000,
) -> Path:
    """A node's processors, caches, memory and system; counts are per socket and per core."""
    per_socket = cores * threads_per_core
    files: dict[str, object] = {
        "proc/meminfo": f"MemTotal:       {memory_kb} kB\nMemFree:        1024 kB",
        "proc/sys/kernel/osrelease": "6.8.0-60-generic",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.2 LTS"\nID=ubuntu',
        "sys/bus/pci/devices/0000:00:1f.0/class": "0x060100",
        "sys/bus/pci/devices/0000:00:1f.0/vendor": "0x8086",
        "sys/bus/pci/devices/0000:02:00.0/class": "0x030000",  # the board's own display, no accelerator
        "sys/bus/pci/devices/0000:02:00.0/vendor": "0x1a03",
    }
    blocks = []
    for cpu in range(sockets * per_socket):
        # As Linux numbers them: all first threads, then all second ones.
        core = cpu % (sockets * cores)
        socket = core // cores
        siblings = ",".join(str(core + each * sockets * cores) for each in range(threads_per_core))
        home = f"sys/devices/system/cpu/cpu{cpu}"
        files |= {f"{home}/topology/physical_package_id": socket, f"{home}/topology/core_cpus_list": siblings}
        group = core // (cores_per_l3 or cores)
        if caches:
            for index, (level, kind, size, sharing) in enumerate(
                [(1, "Data", "48K", siblings), (1, "Instruction", "32K", siblings), (2, "Unified", "2048K", siblings),
                 (3, "Unified", "30720K", f"group {group}")]
            ):  # fmt: skip
                cache = {"level": level, "type": kind, "size": size, "shared_cpu_list": sharing}
                files |= {f"{home}/cache/index{index}/{name}": value for name, value in cache.items()}
        name = f"model name\t: {model}\n" if model else ""
        blocks.append(f"processor\t: {cpu}\n{name}cpu MHz\t\t: 1234.5\nflags\t\t: {flags}\n")
    return write(root, {**files, "proc/cpuinfo": "\n".join(blocks)})


def add_accelerators(root: Path, vendor: str, count: int = 8, kind: str = GPU_CLASS) -> None:
    """PCI devices of a vendor (`0x10de`) and class (six hexadecimal digits)."""
    for number in range(count):
        device = f"sys/bus/pci/devices/0000:{number + 16:02x}:00.0"
        write(root, {f"{device}/class": kind, f"{device}/vendor": vendor})


def add_disk(root: Path, name: str, size: int, rotational: int = 0, **more: object) -> None:
    """A disk of so many bytes; `more` are files beside its size, `device__transport` one in its device."""
    disk = f"sys/block/{name}"
    files = {f"{disk}/{each.replace('__', '/')}": value for each, value in more.items()}
    write(root, {f"{disk}/size": size // 512, f"{disk}/queue/rotational": rotational, f"{disk}/device/state": "live"})
    write(root, files)


def nvidia(
    name: str = "NVIDIA B200", count: int = 8, *, memory: str = "183359", clock: str = "1965", speed: str = "53.125"
) -> dict[str, str]:
    """What nvidia-smi prints for its three questions on a node whose accelerators have 18 links each."""
    row = f"570.124.06, {memory}, {clock}, 5, 16, {name}"
    links = "".join(f"\t Link {link}: {speed} GB/s\n" for link in range(18))
    header = "\t".join(["\x1b[4m\t", *(f"GPU{n}" for n in range(count)), "NIC0", "CPU Affinity\tNUMA Affinity\x1b[0m"])
    rows = [
        "\t".join([f"GPU{own}", *("X" if own == n else "NV18" for n in range(count)), "PIX", "0-55,112-167\t0"])
        for own in range(count)
    ]
    nic = "\t".join(["NIC0", *["SYS"] * count, "X"])
    legend = "Legend:\n\n  X    = Self\n  SYS  = Connection traversing PCIe as well as the SMP interconnect"
    return {
        "--query-gpu": "\n".join([row] * count),
        "nvlink": "".join(f"GPU {n}: {name} (UUID: GPU-{n:08x})\n{links}" for n in range(count)),
        "topo": "\n".join([header, *rows, nic, "", legend]),
    }


def amd_smi(name: str = "AMD Instinct MI355X", count: int = 8, *, wrapped: bool = True) -> dict[str, str]:
    """What amd-smi prints for `static --json` and `topology --json`; wrapped in gpu_data as since ROCm 7."""
    static: list[dict[str, Any]] = [
        {
            "gpu": n,
            "asic": {"market_name": name, "vendor_id": "0x1002", "num_compute_units": 256, "oam_id": n},
            "bus": {
                "bdf": f"0000:{n + 16:02x}:00.0", "max_pcie_width": 16, "max_pcie_speed": {"value": 32, "unit": "GT/s"},
                "pcie_interface_version": "Gen 5", "slot_type": "OAM",
            },
            "driver": {"name": "amdgpu", "version": "6.14.14"},
            "vram": {"type": "HBM3E", "vendor": "N/A", "size": {"value": 294896, "unit": "MB"}, "bit_width": 8192},
            "clock": {"sys": {"current_level": 1, "frequency_levels": {"Level 0": "143 MHz", "Level 1": "2400 MHz"}}},
        }
        for n in range(count)
    ]  # fmt: skip
    topology = [
        {
            "gpu": own,
            "links": [{"gpu": n, "link_type": "SELF" if n == own else "XGMI", "num_hops": 1} for n in range(count)],
        }
        for own in range(count)
    ]
    return {
        "static": json.dumps({"gpu_data": static} if wrapped else static),
        "topology": json.dumps(topology),
    }


def rocm_smi(name: str = "AMD Instinct MI355X", count: int = 8) -> dict[str, dict[str, str]]:
    """What rocm-smi prints, before it is made JSON."""
    card = {"Card Series": name, "Card Model": "0x75a3", "VRAM Total Memory (B)": "309220868096"}
    pairs = [(left, right) for left in range(count) for right in range(left + 1, count)]
    links = {f"(Topology) Link type between DRM devices {left} and {right}": "XGMI" for left, right in pairs}
    return {**{f"card{n}": dict(card) for n in range(count)}, "system": {"Driver version": "6.14.14", **links}}


# dmidecode -t 17, shortened: two modules and an empty slot.
MODULES = """# dmidecode 3.5
Getting SMBIOS data from sysfs.
SMBIOS 3.5.0 present.

Handle 0x0030, DMI type 17, 92 bytes
Memory Device
\tTotal Width: 80 bits
\tSize: 96 GB
\tLocator: DIMM_A1
\tType: DDR5
\tSpeed: 6400 MT/s
\tConfigured Memory Speed: 5600 MT/s

Handle 0x0031, DMI type 17, 92 bytes
Memory Device
\tTotal Width: 80 bits
\tSize: 98304 MB
\tLocator: DIMM_B1
\tType: DDR5
\tConfigured Memory Speed: 5600 MT/s

Handle 0x0032, DMI type 17, 92 bytes
Memory Device
\tTotal Width: Unknown
\tSize: No Module Installed
\tType: Unknown
"""
