"""Facts about this machine, worded as the fields of a system description.

Each function returns only the fields whose values are known. The official summary is a line of comma-separated values,
so that lists are joined with ``+`` in the fields that it quotes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from system_info.accelerators import read_gpus, read_interconnect
from system_info.cpu import Processors
from system_info.devices import has_accelerator, read_disks, read_machine_model, read_network_ports
from system_info.gpu_report import Gpu, GpuReport, Interconnect
from system_info.memory import read_memory_modules
from system_info.software import (
    read_cuda_version,
    read_operating_system,
    read_package_versions,
    read_rocm_version,
)

_FRAMEWORK = {"torch": "PyTorch", "megatron-core": "Megatron-Core"}
# The CUDA libraries carry CUDA's major version in their names.
_LIBRARIES = {
    "transformer-engine": "Transformer Engine", "flash-attn": "FlashAttention",
    "nvidia-cuda-runtime": "CUDA runtime", "nvidia-cuda-runtime-cu12": "CUDA runtime",
    "nvidia-cudnn-cu12": "cuDNN", "nvidia-cudnn-cu13": "cuDNN",
    "nvidia-nccl-cu12": "NCCL", "nvidia-nccl-cu13": "NCCL",
    "triton": "Triton",
}  # fmt: skip
_INTERCONNECT = ("accelerator_interconnect", "accelerator_interconnect_topology")
_WITHOUT_ACCELERATOR = (
    "accelerator_model_name", "accelerator_host_interconnect", "accelerator_frequency", "accelerator_on-chip_memories",
    "accelerator_memory_configuration", "accelerator_memory_capacity", *_INTERCONNECT,
)  # fmt: skip
# Attached to a Grace processor by NVLink-C2C, whatever PCIe link they report beside it.
_GRACE = re.compile(r"\bG[BH]\d{3}\b", re.ASCII)


def processor_fields(processors: Processors) -> dict[str, str]:
    """Return the fields ``host_processor*``. Cores and threads are counted for each processor."""
    sockets = len(processors.cores)
    ghz = {"base": processors.base_ghz, "max": processors.max_ghz}
    caches = (f"{name}: {_count(map(_cache_size, sizes))}" for name, sizes in processors.caches.items())
    return _known(
        {
            "host_processor_model_name": " + ".join(processors.models),
            "host_processors_per_node": str(sockets) if sockets else None,
            "host_processor_core_count": _count(f"{each} cores" for each in processors.cores),
            "host_processor_vcpu_count": _count(f"{each} threads" for each in processors.threads),
            "host_processor_interconnect": "N/A (one processor)" if sockets == 1 else None,
            "host_processor_frequency": ", ".join(f"{value:.2f} GHz {kind}" for kind, value in ghz.items() if value),
            "host_processor_caches": ", ".join(caches),
        }
    )


def memory_fields(limit_s: float) -> dict[str, str]:
    """Return the fields ``host_memory_*``.

    Without the modules, which dmidecode shows to root only, the capacity is what the kernel can use. It is less than
    what is installed, and the field says so.
    """
    if modules := read_memory_modules(limit_s):
        return {
            "host_memory_capacity": f"{sum(each.size_gib for each in modules):g} GB",
            "host_memory_configuration": _count(f"{each.size_gib:g} GB {each.kind}".strip() for each in modules),
        }
    return {"host_memory_capacity": f"{psutil.virtual_memory().total / 2**30:.1f} GiB usable (MemTotal)"}


def device_fields(root: Path = Path("/")) -> dict[str, str]:
    """Return the fields of the local disks, in decimal units as disks are sold, and of the network ports.

    File systems are not read: one may be a network's.
    """
    disks = read_disks(root)
    sizes = (f"{_decimal_size(disk.size)} {disk.kind}" for disk in disks)
    kinds = dict.fromkeys(disk.kind for disk in disks)
    ports = _count(read_network_ports(root))
    return _known(
        {"host_storage_type": " + ".join(kinds), "host_storage_capacity": _count(sizes), "host_networking": ports}
    )


def hardware_notes(processors: Processors, root: Path = Path("/")) -> str:
    """Return what no field asks for: maker and product, a hypervisor, processors that are offline."""
    is_virtual, offline = processors.is_virtual, processors.offline
    notes = [
        read_machine_model(root),
        "virtual machine: processors, caches and disks are as the hypervisor shows them" if is_virtual else "",
        f"logical processors {offline} are offline and not counted" if offline else "",
    ]
    return "; ".join(filter(None, notes))


def accelerator_fields(root: Path, limit_s: float) -> dict[str, str]:
    """Return the fields ``accelerator*``, and ``driver`` for other_software_stack.

    Without an accelerator on the PCI bus the fields say so. With one that no tool describes, all are unknown.
    """
    report = read_gpus(limit_s)
    if report is not None and report.gpus:
        return gpu_fields(report, read_interconnect(report, limit_s))
    none = dict.fromkeys(_WITHOUT_ACCELERATOR, "N/A (no accelerator)") | {"accelerators_per_node": "0"}
    return none if has_accelerator(root) is False else {}


def gpu_fields(report: GpuReport, interconnect: Interconnect) -> dict[str, str]:
    """Return the fields that a report of at least one GPU gives. What differs between GPUs is left out."""
    gpus = report.gpus
    names = [gpu.name for gpu in gpus if gpu.name]
    model = names[0] if len(set(names)) == 1 else _count(names)
    driver = _common(gpu.driver_version for gpu in gpus)
    maker = "amdgpu" if report.source in ("amdsmi", "amd-smi") else "NVIDIA"
    links = dict.fromkeys(_INTERCONNECT, "N/A (one accelerator)")
    return _known(
        {
            "accelerators_per_node": str(len(gpus)),
            "accelerator_model_name": model if len(names) == len(gpus) else None,
            "accelerator_memory_capacity": _common(
                f"{gpu.memory_mib / 1024:.1f} GiB" if gpu.memory_mib else None for gpu in gpus
            ),
            "accelerator_memory_configuration": _common(map(_memory_kind, gpus)),
            "accelerator_frequency": _common(
                f"{gpu.max_clock_mhz} MHz max" if gpu.max_clock_mhz else None for gpu in gpus
            ),
            "accelerator_host_interconnect": None if _GRACE.search(model) else _common(map(_pcie_link, gpus)),
            "accelerator_interconnect": interconnect.link,
            "accelerator_interconnect_topology": interconnect.topology,
            "driver": driver and f"{maker} driver {driver}",
            **(links if len(gpus) == 1 else {}),
        }
    )


def software_fields(root: Path = Path("/"), driver: str | None = None) -> dict[str, str]:
    """Return operating system, framework and other_software_stack, to which the driver of the accelerators belongs.

    There is no framework unless torch is installed: it may be in another environment or image.
    """
    versions = read_package_versions([*_FRAMEWORK, *_LIBRARIES])
    framework, libraries = (
        [f"{name} {versions[key]}" for key, name in packages.items() if key in versions]
        for packages in (_FRAMEWORK, _LIBRARIES)
    )
    cuda, rocm = read_cuda_version(root), read_rocm_version(root)
    platform = [driver, cuda and f"CUDA toolkit {cuda}", rocm and f"ROCm {rocm}"]
    return _known(
        {
            "operating_system": read_operating_system(root),
            "framework": " + ".join(framework) if "torch" in versions else None,
            "other_software_stack": ", ".join([*libraries, *filter(None, platform)]),
        }
    )


def _memory_kind(gpu: Gpu) -> str | None:
    if gpu.memory_type and gpu.memory_bus_width:
        return f"{gpu.memory_type}, {gpu.memory_bus_width} bit wide"
    return gpu.memory_type


def _pcie_link(gpu: Gpu) -> str | None:
    return f"PCIe {gpu.pcie_generation}.0 x{gpu.pcie_width}" if gpu.pcie_generation and gpu.pcie_width else None


def _cache_size(kib: int) -> str:
    return f"{kib // 1024} MiB" if kib and kib % 1024 == 0 else f"{kib} KiB"


def _decimal_size(size: int) -> str:
    """Return bytes in GB below 1 TB, else in TB, with four significant digits."""
    return f"{size / 1e12:.4g} TB" if size >= 10**12 else f"{size / 1e9:.4g} GB"


def _count(names: Iterable[str]) -> str:
    """Return each name with its number, in order of first appearance.

    >>> _count(["A", "B", "A"])
    '2 x A + 1 x B'
    """
    return " + ".join(f"{count} x {name}" for name, count in Counter(names).items())


def _common(values: Iterable[str | None]) -> str | None:
    """Return the value that all have. Return None if they differ or one is unknown."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _known(fields: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value}
