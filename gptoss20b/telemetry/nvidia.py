"""Telemetry of NVIDIA GPUs, through NVML (nvidia-ml-py)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..config.environment import visible_gpus
from .gpus import Reading, select_visible

LIBRARY = "NVML"
# Bits of nvmlClocksEventReasons with nvidia-smi's names, without those that are no throttling: an idle GPU, clocks that
# an administrator or an application chose.
THROTTLE_REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}


class NvidiaGpu:
    """One GPU of NVML. One that is lost from the start has no UUID and never answers."""

    def __init__(self, nvml: Any, index: int) -> None:
        self.index = index
        self.uuids: tuple[str, ...] = ()
        self._nvml = nvml
        self._handle = None
        with suppress(nvml.NVMLError):
            self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
            self.uuids = (nvml.nvmlDeviceGetUUID(self._handle),)

    def read(self) -> Reading:
        """Return the values at this moment."""
        if self._handle is None:
            return Reading()
        nvml, query = self._nvml, self._query
        milliwatts = query("PowerUsage")  # the mean of the last second, since Ampere
        utilization, memory = query("UtilizationRates"), query("MemoryInfo")
        temperature = query("Temperature", nvml.NVML_TEMPERATURE_GPU)
        if temperature is None and hasattr(nvml, "nvmlDeviceGetTemperatureV"):  # which replaces it in CUDA 14
            temperature = query("TemperatureV", nvml.NVML_TEMPERATURE_GPU)
        reasons = query("CurrentClocksEventReasons")
        if reasons is None:
            reasons = query("CurrentClocksThrottleReasons")  # its name before driver 535
        return Reading(
            power_w=None if milliwatts is None else milliwatts / 1000,
            sm_clock_mhz=query("ClockInfo", nvml.NVML_CLOCK_SM),
            memory_clock_mhz=query("ClockInfo", nvml.NVML_CLOCK_MEM),
            temperature_c=temperature,
            memory_temperature_c=self._memory_temperature(),
            utilization_percent=None if utilization is None else utilization.gpu,
            memory_used_mib=None if memory is None else memory.used // 2**20,
            throttle_reasons=None
            if reasons is None
            else tuple(name for bit, name in THROTTLE_REASONS.items() if reasons & bit),
        )

    def _query(self, name: str, *arguments: Any) -> Any:
        """Call nvmlDeviceGet<name>. Return None where the GPU, its driver or nvidia-ml-py does not support it."""
        try:
            return getattr(self._nvml, f"nvmlDeviceGet{name}")(self._handle, *arguments)
        except (self._nvml.NVMLError, AttributeError):
            return None

    def _memory_temperature(self) -> int | None:
        values = self._query("FieldValues", [self._nvml.NVML_FI_DEV_MEMORY_TEMP])
        if not values or values[0].nvmlReturn != self._nvml.NVML_SUCCESS:
            return None
        return int(values[0].value.uiVal)


def open_visible() -> list[NvidiaGpu]:
    """Open NVML and return the GPUs that CUDA_VISIBLE_DEVICES leaves.

    NVML numbers GPUs by their place on the bus, and so does CUDA where all GPUs are alike.

    Raises:
        ImportError, pynvml.NVMLError: there is no nvidia-ml-py, or no driver.
    """
    import pynvml  # type: ignore[import-untyped]

    pynvml.nvmlInit()
    gpus = [NvidiaGpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    names = visible_gpus("CUDA_VISIBLE_DEVICES")
    return select_visible(gpus, None if names is None else [_physical_uuid(pynvml, name) for name in names])


def _physical_uuid(nvml: Any, name: str) -> str:
    """Return the UUID of the GPU that a MIG slice is a part of, or the name unchanged. Slices have no power reading."""
    if not name.strip().startswith("MIG-"):
        return name
    try:
        slice_handle = nvml.nvmlDeviceGetHandleByUUID(name.strip())
        return str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_handle)))
    except nvml.NVMLError:
        return name
