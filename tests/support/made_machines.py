"""Made-up machines: trees of /proc and /sys as the kernel lays them out, and tools that print given answers."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GPU_CLASS = "0x030200"


def made_tool(folder: Path, name: str, answers: dict[str, str] | str, status: int = 0) -> None:
    """Make an executable that prints the first answer whose key is among its arguments, and exits.

    Args:
        folder: folder for the tool, on PATH.
        name: name of the tool.
        answers: texts by words of the arguments. A single text answers everything.
        status: exit status; 9 without an answer.
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
    """Make an executable with a child that holds its output for a minute."""
    folder.mkdir(parents=True, exist_ok=True)
    _executable(folder / name, f"#!/bin/sh\n{sys.executable} -c 'import time; time.sleep(60)'\necho late\n")


def _executable(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
    path.chmod(0o755)


def write_files(root: Path, files: Mapping[str, object]) -> Path:
    """Write files below a root by their names, each with a final line break as the kernel's have. Return the root."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n", encoding="utf-8")
    return root


def meminfo(total_kb: int, available_kb: int = 1024, swap_kb: int = 0) -> str:
    """Return /proc/meminfo with the fields that psutil reads, of a node with 4 GiB of swap."""
    sizes = {"MemTotal": total_kb, "MemFree": 1024, "MemAvailable": available_kb, "Buffers": 0, "Cached": 0}
    sizes |= {"Shmem": 0, "Active": 0, "Inactive": 0, "SwapTotal": 4 * 2**20, "SwapFree": 4 * 2**20 - swap_kb}
    return "\n".join(f"{name + ':':<16}{kb:>8} kB" for name, kb in sizes.items())


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
    """Write a node's processors, caches, memory and system. Counts are per socket and per core. Return the root."""
    per_socket = cores * threads_per_core
    files: dict[str, object] = {
        "proc/meminfo": meminfo(memory_kb),
        "proc/vmstat": "pswpin 0\npswpout 0",
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
    return write_files(root, {**files, "proc/cpuinfo": "\n".join(blocks)})


def add_accelerators(root: Path, vendor: str, count: int = 8, kind: str = GPU_CLASS) -> None:
    """Write PCI devices of a vendor (``0x10de``) and class (six hexadecimal digits)."""
    for number in range(count):
        device = f"sys/bus/pci/devices/0000:{number + 16:02x}:00.0"
        write_files(root, {f"{device}/class": kind, f"{device}/vendor": vendor})


def add_disk(root: Path, name: str, size: int, rotational: int = 0, **more: object) -> None:
    """Write a disk of ``size`` bytes, and files beside its size. ``device__transport`` stands for device/transport."""
    disk = f"sys/block/{name}"
    files = {f"{disk}/{each.replace('__', '/')}": value for each, value in more.items()}
    write_files(
        root, {f"{disk}/size": size // 512, f"{disk}/queue/rotational": rotational, f"{disk}/device/state": "live"}
    )
    write_files(root, files)


def nvidia_smi(name: str = "NVIDIA B200", count: int = 8, *, speed: str = "53.125", **of_last: str) -> dict[str, str]:
    """Return answers of nvidia-smi on a node whose GPUs have 18 NVLinks each, by the words of its options.

    Args:
        name: model of all GPUs.
        count: number of GPUs.
        speed: of one link in GB/s.
        of_last: values of the last GPU, by the names in `_HEALTHY`.
    """
    gpus = [_HEALTHY | {"name": name} | (of_last if number == count - 1 else {}) for number in range(count)]
    links = "".join(f"\t Link {link}: {speed} GB/s\n" for link in range(18))
    header = "\t".join(["\x1b[4m\t", *(f"GPU{n}" for n in range(count)), "NIC0", "CPU Affinity\tNUMA Affinity\x1b[0m"])
    rows = [
        "\t".join([f"GPU{row}", *("X" if row == n else "NV18" for n in range(count)), "PIX", "0-55,112-167\t0"])
        for row in range(count)
    ]
    nic = "\t".join(["NIC0", *["SYS"] * count, "X"])
    legend = "Legend:\n\n  X    = Self\n  SYS  = Connection traversing PCIe as well as the SMP interconnect"
    return {
        "-q -x": f"{_XML_HEAD}{''.join(_GPU_XML.format(**gpu) for gpu in gpus)}</nvidia_smi_log>",
        "nvlink -s": "".join(f"GPU {n}: {name} (UUID: GPU-{n:08x})\n{links}" for n in range(count)),
        "topo -m": "\n".join([header, *rows, nic, "", legend]),
    }


_HEALTHY = {
    "memory": "183359 MiB", "clock": "1965 MHz", "generation": "5", "pending": "No", "failure": "No", "processes": "",
    "ecc": "<sram_correctable>7</sram_correctable><dram_uncorrectable>0</dram_uncorrectable>",
    "action": "<gpu_recovery_action>None</gpu_recovery_action>",
    "reasons": "<clocks_event_reasons><clocks_event_reason_hw_slowdown>Not Active</clocks_event_reason_hw_slowdown>"
    "<clocks_event_reason_sw_power_cap>Active</clocks_event_reason_sw_power_cap></clocks_event_reasons>",
}  # fmt: skip
_XML_HEAD = (
    '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>'
    "<driver_version>570.124.06</driver_version>"
)
_GPU_XML = """<gpu id="00000000:1B:00.0"><product_name>{name}</product_name>{action}
<pci><pci_gpu_link_info><pcie_gen><max_link_gen>{generation}</max_link_gen><current_link_gen>1</current_link_gen></pcie_gen>
<link_widths><max_link_width>16x</max_link_width></link_widths></pci_gpu_link_info></pci>
{reasons}<fb_memory_usage><total>{memory}</total></fb_memory_usage>
<ecc_errors><volatile>{ecc}</volatile><aggregate><dram_uncorrectable>9</dram_uncorrectable></aggregate></ecc_errors>
<remapped_rows><remapped_row_pending>{pending}</remapped_row_pending>
<remapped_row_failure>{failure}</remapped_row_failure></remapped_rows>
<clocks><sm_clock>345 MHz</sm_clock></clocks><max_clocks><sm_clock>{clock}</sm_clock></max_clocks>
<processes>{processes}</processes></gpu>
"""


def nvidia_process(kind: str, name: str, pid: int) -> str:
    """Return a process in nvidia-smi's XML. Its kind is C (compute), G (graphics) or C+G."""
    return (
        f"<process_info><pid>{pid}</pid><type>{kind}</type><process_name>{name}</process_name>"
        "<used_memory>502 MiB</used_memory></process_info>"
    )


def amd_smi(
    name: str = "AMD Instinct MI355X",
    count: int = 8,
    *,
    wrapped: bool = True,
    uncorrectable: Any = 0,
    process: Any = "No running processes detected",
) -> dict[str, str]:
    """Return answers of amd-smi, by its subcommands.

    Args:
        name: model of all GPUs.
        count: number of GPUs.
        wrapped: in an object with the key gpu_data, as since ROCm 7.
        uncorrectable: number of uncorrectable errors of the last GPU.
        process: the last GPU's process.
    """
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
    metric: list[dict[str, Any]] = [
        {"gpu": n, "ecc": {"total_correctable_count": 3, "total_uncorrectable_count": 0, "total_deferred_count": "N/A"}}
        for n in range(count)
    ]
    metric[-1]["ecc"]["total_uncorrectable_count"] = uncorrectable
    processes = [{"gpu": count - 1, "process_list": [{"process_info": process}]}]
    rows = {"static": static, "metric --ecc": metric, "process": processes}
    answers = {name: json.dumps({"gpu_data": each} if wrapped else each) for name, each in rows.items()}
    return answers | {"topology": json.dumps(topology)}


def rocm_smi(name: str = "AMD Instinct MI355X", count: int = 8) -> dict[str, dict[str, str]]:
    """Return the answer of rocm-smi, as the object that it prints as JSON."""
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
