"""GPUs as NVIDIA's management library reports them: ``python -m system_info.nvml`` prints JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .gpu_report import Gpu
from .library import print_library_report

# Bits of nvmlClocksEventReasons, with the names that nvidia-smi gives them. The other reasons are normal operation.
_THROTTLE_REASONS = {
    0x08: "hw_slowdown", 0x20: "sw_thermal_slowdown", 0x40: "hw_thermal_slowdown", 0x80: "hw_power_brake_slowdown",
}  # fmt: skip
# NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, from driver 560 on; older nvidia-ml-py has no name for it.
_RECOVERY_ACTION_FIELD = 230
# nvmlDeviceGpuRecoveryAction_t, in nvidia-smi's words.
_RECOVERY_ACTIONS = {1: "Reset", 2: "Reboot", 3: "Drain P2P", 4: "Drain and Reset"}


def read_gpus() -> Iterator[Gpu]:
    """Yield the GPUs in NVML's order, which is nvidia-smi's.

    Raises:
        ImportError: nvidia-ml-py or the driver's library is not installed.
        pynvml.NVMLError: the driver does not answer for a GPU.
    """
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound as error:
        raise ImportError(str(error)) from error
    driver = pynvml.nvmlSystemGetDriverVersion()
    for index in range(pynvml.nvmlDeviceGetCount()):
        yield _read_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index), driver)


def _read_gpu(nvml: Any, handle: Any, driver: str) -> Gpu:
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
        driver_version=driver,
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


def _recovery_action(nvml: Any, query: Callable[..., Any]) -> str | None:
    values = query("nvmlDeviceGetFieldValues", [_RECOVERY_ACTION_FIELD])
    if not values or values[0].nvmlReturn != nvml.NVML_SUCCESS or values[0].value.uiVal == 0:
        return None
    action = values[0].value.uiVal
    return _RECOVERY_ACTIONS.get(action, f"action {action}")


def _describe_process(nvml: Any, pid: int) -> str:
    try:
        name = nvml.nvmlSystemGetProcessName(pid)
    except nvml.NVMLError:
        name = "a process"  # of another container
    return f"{name} ({pid})"


if __name__ == "__main__":
    print_library_report(read_gpus)
