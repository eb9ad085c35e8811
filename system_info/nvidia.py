"""NVIDIA GPUs, as NVML reports them or, where NVML is not available, nvidia-smi."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .files import one_line, parse_int
from .gpu_report import Gpu, GpuReport, Interconnect, read_library
from .tools import run_tool

# Bits of nvmlClocksEventReasons, with the names that nvidia-smi gives them. The other reasons are normal operation.
_THROTTLE_REASONS = {
    0x08: "hw_slowdown", 0x20: "sw_thermal_slowdown", 0x40: "hw_thermal_slowdown", 0x80: "hw_power_brake_slowdown",
}  # fmt: skip
# NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, from driver 560 on; older nvidia-ml-py has no name for it.
_RECOVERY_ACTION_FIELD = 230
# nvmlDeviceGpuRecoveryAction_t, in nvidia-smi's words.
_RECOVERY_ACTIONS = {0: None, 1: "Reset", 2: "Reboot", 3: "Drain P2P", 4: "Drain and Reset"}
# nvidia-smi rejects the whole query for a field that it does not know. It has known these since PCIe 3.
_QUERY = ("name", "driver_version", "memory.total", "clocks.max.sm", "pcie.link.gen.max", "pcie.link.width.max")


def read_nvml(limit_s: float | None = None) -> GpuReport | None:
    """Return the report of the driver's library, or None without it or without nvidia-ml-py."""
    return read_library("NVML", _list_nvml_gpus, limit_s)


def read_nvidia_smi(limit_s: float | None = None) -> GpuReport | None:
    """Return what nvidia-smi reports for a description, without health and processes. None if it is not installed."""
    query = f"--query-gpu={','.join(_QUERY)}"
    output = run_tool("nvidia-smi", query, "--format=csv,noheader,nounits", limit_s=limit_s)
    if output.is_missing:
        return None
    rows = [[one_line(cell) for cell in line.split(",")] for line in output.answer.splitlines()]
    if output.failure or any(len(row) != len(_QUERY) for row in rows):
        return GpuReport("nvidia-smi", error=output.failure or one_line(output.answer))
    return GpuReport("nvidia-smi", tuple(map(_parse_gpu, rows)))


def read_interconnect(count: int, limit_s: float | None = None) -> Interconnect:
    """Return NVLinks and topology, each only where nvidia-smi reports it for ``count`` GPUs."""
    links = _parse_nvlinks(run_tool("nvidia-smi", "nvlink", "-s", limit_s=limit_s).answer, count)
    pair_types = _parse_topology(run_tool("nvidia-smi", "topo", "-m", limit_s=limit_s).answer, count)
    return Interconnect(
        links and f"NVLink, {links} per accelerator (nvidia-smi nvlink -s)",
        f"every pair: {' or '.join(sorted(pair_types))} (nvidia-smi topo -m)" if pair_types else None,
    )


def _list_nvml_gpus() -> list[Gpu] | None:
    """Return the GPUs in NVML's order, which is nvidia-smi's."""
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return None
    driver, cuda = pynvml.nvmlSystemGetDriverVersion(), _read_cuda_version(pynvml)
    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    return [replace(_read_nvml_gpu(pynvml, handle), driver_version=driver, cuda_version=cuda) for handle in handles]


def _read_nvml_gpu(nvml: Any, handle: Any) -> Gpu:
    def query(function: str, *arguments: Any) -> Any:
        """Call a function of NVML. Return None where this GPU or this version of the library does not support it."""
        try:
            return getattr(nvml, function)(handle, *arguments)
        except (nvml.NVMLError, AttributeError):
            return None

    memory = query("nvmlDeviceGetMemoryInfo")
    errors = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    remapped = query("nvmlDeviceGetRemappedRows") or (0, 0, 0, 0)  # correctable, uncorrectable, pending, failed
    reasons = query("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
    processes = query("nvmlDeviceGetComputeRunningProcesses") or ()
    return Gpu(
        name=query("nvmlDeviceGetName"),
        memory_mib=memory and memory.total // 2**20,
        max_clock_mhz=query("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
        pcie_generation=query("nvmlDeviceGetMaxPcieLinkGeneration"),
        pcie_width=query("nvmlDeviceGetMaxPcieLinkWidth"),
        uncorrectable_errors=query("nvmlDeviceGetTotalEccErrors", *errors),
        row_remap_pending=bool(remapped[2]),
        row_remap_failed=bool(remapped[3]),
        recovery_action=_recovery_action(nvml, query),
        throttle_reasons=tuple(name for bit, name in _THROTTLE_REASONS.items() if reasons & bit),
        processes=tuple(_describe_process(nvml, each.pid) for each in processes),
    )


def _read_cuda_version(nvml: Any) -> str | None:
    """Return the newest CUDA that the driver supports. NVML has 12.8 as 12080."""
    try:
        version = nvml.nvmlSystemGetCudaDriverVersion()
    except (nvml.NVMLError, AttributeError):
        return None
    return f"{version // 1000}.{version % 1000 // 10}"


def _recovery_action(nvml: Any, query: Callable[..., Any]) -> str | None:
    values = query("nvmlDeviceGetFieldValues", [_RECOVERY_ACTION_FIELD])
    if not values or values[0].nvmlReturn != nvml.NVML_SUCCESS:
        return None
    action = values[0].value.uiVal
    return _RECOVERY_ACTIONS.get(action, f"action {action}")


def _describe_process(nvml: Any, pid: int) -> str:
    try:
        name = nvml.nvmlSystemGetProcessName(pid)
    except nvml.NVMLError:
        name = "a process"  # of another container
    return f"{name} ({pid})"


def _parse_gpu(row: Sequence[str]) -> Gpu:
    name, driver = (None if re.fullmatch(r"\[.*\]|N/A|", cell) else cell for cell in row[:2])
    memory, clock, generation, width = map(parse_int, row[2:])
    return Gpu(name, driver, memory, max_clock_mhz=clock, pcie_generation=generation, pcie_width=width)


def _parse_nvlinks(printed: str, count: int) -> str | None:
    """Return number and speed of each GPU's active links, if all are equal, from ``nvidia-smi nvlink -s``."""
    blocks = re.split(r"^GPU \d+:", printed, flags=re.MULTILINE)[1:]
    links = [re.findall(r"^\s+Link \d+: (\d[\d.]* GB/s)\s*$", block, re.MULTILINE) for block in blocks]
    if len(links) != count or not links[0] or any(each != [links[0][0]] * len(links[0]) for each in links):
        return None
    return f"{len(links[0])} links of {links[0][0]}"


def _parse_topology(printed: str, count: int) -> set[str]:
    """Return the connection types (NV18, PIX, SYS) between all pairs, from the matrix of ``nvidia-smi topo -m``."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed)  # the header is underlined
    rows = [row.split()[:count] for row in re.findall(r"^GPU\d+\s+(.*X.*)$", plain, re.ASCII | re.MULTILINE)]
    if len(rows) != count or any(len(row) < count or row[index] != "X" for index, row in enumerate(rows)):
        return set()
    types = {cell for index, row in enumerate(rows) for column, cell in enumerate(row) if column != index}
    return types if all(re.fullmatch(r"[A-Z]{2,4}\d*", each, re.ASCII) for each in types) else set()
