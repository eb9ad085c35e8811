"""Made-up machines: trees of /proc and /sys as the kernel lays them out, tools, and vendors' libraries."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from system_info.gpu_report import Gpu

# GPUs of the made-up nodes, as their libraries report them.
B200 = Gpu("NVIDIA B200", "570.124.06", 183359, None, None, 1965, 5, 16, uncorrectable_errors=0)
MI355X = Gpu("AMD Instinct MI355X", "6.14.14", 294896, "HBM3E", 8192, 2400, 5, 16, uncorrectable_errors=0)


def made_script(folder: Path, name: str, script: str) -> None:
    """Make an executable of shell commands in a folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def made_tool(folder: Path, name: str, answers: dict[str, str] | str, status: int = 0) -> None:
    """Make an executable that prints the first answer whose key is among its arguments, and exits.

    Args:
        folder: folder for the tool, on PATH.
        name: name of the tool.
        answers: texts by words of the arguments. A single text answers everything.
        status: exit status; 9 without an answer.
    """
    by_word = {"": answers} if isinstance(answers, str) else answers
    cases = [
        f'case "$*" in *{shlex.quote(key)}*) printf "%s\\n" {shlex.quote(printed)}; exit {status};; esac'
        for key, printed in by_word.items()
    ]
    made_script(folder, name, "\n".join([*cases, "exit 9"]))


def write_files(root: Path, files: Mapping[str, object]) -> Path:
    """Write files below a root by their names, each with a final line break as the kernel's have. Return the root."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n", encoding="utf-8")
    return root


def made_host(
    root: Path, *, sockets: int = 2, cores: int = 4, model: str | None = "INTEL(R) XEON(R) PLATINUM 8570"
) -> Path:
    """Write processors with two threads a core, caches, PCI devices and system of a node. Return the root."""
    files: dict[str, object] = {
        "proc/sys/kernel/osrelease": "6.8.0-60-generic",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.2 LTS"\nID=ubuntu',
        "sys/bus/pci/devices/0000:02:00.0/class": "0x030000",  # the board's own display, no accelerator
        "sys/bus/pci/devices/0000:02:00.0/vendor": "0x1a03",
    }
    total = sockets * cores
    blocks = []
    for cpu in range(total * 2):
        core = cpu % total  # Linux numbers all first threads, then all second ones
        socket, siblings, home = core // cores, f"{core},{core + total}", f"sys/devices/system/cpu/cpu{cpu}"
        files |= {f"{home}/topology/physical_package_id": socket, f"{home}/topology/thread_siblings_list": siblings}
        for index, (level, kind, size, sharing) in enumerate(
            [(1, "Data", "48K", siblings), (1, "Instruction", "32K", siblings), (2, "Unified", "2048K", siblings),
             (3, "Unified", "30720K", f"socket {socket}")]
        ):  # fmt: skip
            cache = {"level": level, "type": kind, "size": size, "shared_cpu_list": sharing}
            files |= {f"{home}/cache/index{index}/{name}": value for name, value in cache.items()}
        name = f"model name\t: {model}\n" if model else ""
        blocks.append(f"processor\t: {cpu}\n{name}cpu MHz\t\t: 1234.5\nflags\t\t: fpu sse2\n")
    return write_files(root, {**files, "proc/cpuinfo": "\n".join(blocks)})


def add_disk(root: Path, name: str, size: int, rotational: int = 0, **more: object) -> None:
    """Write a disk of ``size`` bytes, and files beside its size. ``device__transport`` stands for device/transport."""
    files = {"size": size // 512, "queue/rotational": rotational, "device/state": "live"}
    files |= {each.replace("__", "/"): value for each, value in more.items()}
    write_files(root, {f"sys/block/{name}/{each}": value for each, value in files.items()})


def nvidia_smi(count: int = 8) -> dict[str, str]:
    """Return answers of nvidia-smi on a node whose GPUs have 18 NVLinks each, by the words of its options."""
    links = "".join(f"\t Link {link}: 53.125 GB/s\n" for link in range(18))
    header = "\t".join(["\x1b[4m\t", *(f"GPU{n}" for n in range(count)), "NIC0", "CPU Affinity\tNUMA Affinity\x1b[0m"])
    rows = [
        "\t".join([f"GPU{row}", *("X" if row == n else "NV18" for n in range(count)), "PIX", "0-55,112-167\t0"])
        for row in range(count)
    ]
    nic, legend = "\t".join(["NIC0", *["SYS"] * count, "X"]), "Legend:\n\n  X    = Self"
    return {
        "--query-gpu": "\n".join(["NVIDIA B200, 570.124.06, 183359, 1965, 5, 16"] * count),
        "nvlink -s": "".join(f"GPU {n}: NVIDIA B200 (UUID: GPU-{n:08x})\n{links}" for n in range(count)),
        "topo -m": "\n".join([header, *rows, nic, "", legend]),
    }


def amd_smi(count: int = 8) -> dict[str, str]:
    """Return answers of amd-smi since ROCm 7, by its subcommands. The last GPU has two errors and a process."""
    static = [
        {
            "gpu": n,
            "asic": {"market_name": "AMD Instinct MI355X", "vendor_id": "0x1002", "num_compute_units": 256},
            "bus": {"max_pcie_width": 16, "pcie_interface_version": "Gen 5", "slot_type": "OAM"},
            "driver": {"name": "amdgpu", "version": "6.14.14"},
            "vram": {"type": "HBM3E", "vendor": "N/A", "size": {"value": 294896, "unit": "MB"}, "bit_width": 8192},
            "clock": {"sys": {"current_level": 1, "frequency_levels": {"Level 0": "143 MHz", "Level 1": "2400 MHz"}}},
        }
        for n in range(count)
    ]
    links = [{"links": [{"link_type": "SELF" if n == gpu else "XGMI"} for n in range(count)]} for gpu in range(count)]
    errors = [{"total_uncorrectable_count": 2 * (n == count - 1), "total_deferred_count": "N/A"} for n in range(count)]
    process: list[Any] = ["No running processes detected"] * (count - 1) + [{"name": "python3", "pid": 77}]
    rows = {
        "static": static,
        "metric --ecc": [{"gpu": n, "ecc": each} for n, each in enumerate(errors)],
        "process": [{"gpu": n, "process_list": [{"process_info": each}]} for n, each in enumerate(process)],
    }
    answers = {name: json.dumps({"gpu_data": each}) for name, each in rows.items()}
    return answers | {"topology": json.dumps(links)}


class LibraryError(Exception):
    """Error of a made-up library."""


class LibraryNotFoundError(LibraryError):
    """Error of a made-up pynvml without the driver's library."""


def raising(error: Exception) -> Callable[..., None]:
    """Return a function that raises an error, whatever its arguments."""

    def fail(*arguments: object) -> None:
        raise error

    return fail


unsupported = raising(LibraryError("Not Supported"))


def made_pynvml(**changes: Any) -> SimpleNamespace:
    """Return a module like nvidia-ml-py on a node with two healthy B200. A change to None removes a member."""
    members = {
        "NVMLError": LibraryError, "NVMLError_LibraryNotFound": LibraryNotFoundError, "NVML_SUCCESS": 0,
        "NVML_CLOCK_SM": 1, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1, "NVML_VOLATILE_ECC": 0,
        "nvmlInit": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "570.124.06",
        "nvmlSystemGetProcessName": lambda pid: unsupported() if pid == 1 else "python",
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda gpu: "NVIDIA B200",
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(total=183359 * 2**20),
        "nvmlDeviceGetMaxClockInfo": lambda gpu, clock: {1: 1965}[clock],
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda gpu: 5,
        "nvmlDeviceGetMaxPcieLinkWidth": lambda gpu: 16,
        "nvmlDeviceGetTotalEccErrors": lambda gpu, kind, counter: {(1, 0): 0}[kind, counter],
        "nvmlDeviceGetRemappedRows": lambda gpu: (7, 0, 0, 0),
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: 0x01 | 0x04,  # idle, power cap
        "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [],
        "nvmlDeviceGetFieldValues": lambda gpu, fields: field_values(0),
    }  # fmt: skip
    return SimpleNamespace(**{name: each for name, each in (members | changes).items() if each is not None})


def field_values(value: int) -> list[SimpleNamespace]:
    """Return what pynvml answers for the value of one field."""
    return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=value))]


def made_amdsmi(**changes: Any) -> SimpleNamespace:
    """Return a module like amdsmi on a node with two MI355X, the second with errors and a process."""
    members = {
        "AmdSmiException": LibraryError, "AmdSmiClkType": SimpleNamespace(SYS=0),
        "amdsmi_wrapper": SimpleNamespace(amdsmi_vram_type_t__enumvalues={5: "AMDSMI_VRAM_TYPE_HBM3E"}),
        "amdsmi_init": lambda: None,
        "amdsmi_get_processor_handles": lambda: [0, 1],
        "amdsmi_get_gpu_asic_info": lambda gpu: {"market_name": "AMD Instinct MI355X"},
        "amdsmi_get_gpu_driver_info": lambda gpu: {"driver_version": "6.14.14"},
        "amdsmi_get_gpu_vram_info": lambda gpu: {"vram_type": 5, "vram_size": 294896, "vram_bit_width": 8192},
        "amdsmi_get_pcie_info": lambda gpu: {"pcie_static": {"pcie_interface_version": 5, "max_pcie_width": 16}},
        "amdsmi_get_clk_freq": lambda gpu, clock: {"frequency": [143_000_000, 2_400_000_000]},
        "amdsmi_get_gpu_total_ecc_count": lambda gpu: {"uncorrectable_count": 2 * gpu, "deferred_count": gpu},
        "amdsmi_get_gpu_process_list": lambda gpu: [{"name": "python3", "pid": 77}] if gpu else [],
    }  # fmt: skip
    return SimpleNamespace(**(members | changes))


# dmidecode -t 17, shortened: two modules and an empty slot.
MODULES = """# dmidecode 3.5

Memory Device
\tSize: 96 GB
\tType: DDR5
\tSpeed: 6400 MT/s
\tConfigured Memory Speed: 5600 MT/s

Memory Device
\tSize: 98304 MB
\tType: DDR5
\tConfigured Memory Speed: 5600 MT/s

Memory Device
\tSize: No Module Installed
\tType: Unknown
"""
