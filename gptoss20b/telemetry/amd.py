"""Telemetry of AMD GPUs, through amdsmi, which comes with ROCm."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ..config.environment import visible_gpus
from .gpus import Reading, select_visible

LIBRARY = "amdsmi"
# Counters of the time in which each limit lowered the clocks, with the names of amd-smi's violations. Reading the
# violations themselves would wait 100 ms for each GPU.
THROTTLE_COUNTERS = {
    "ppt_residency_acc": "ppt_power",
    "prochot_residency_acc": "prochot_thermal",
    "socket_thm_residency_acc": "socket_thermal",
    "vr_thm_residency_acc": "vr_thermal",
    "hbm_thm_residency_acc": "hbm_thermal",
}


class AmdGpu:
    """One GPU of amdsmi, numbered as HIP does if amdsmi knows that number."""

    def __init__(self, amdsmi: Any, handle: Any, position: int) -> None:
        self._amdsmi, self._handle = amdsmi, handle
        names = self._query("enumeration_info")
        number = _number(names, "hip_id")
        self.index = position if number is None else int(number)
        uuids = (self._query("device_uuid"), (names or {}).get("hip_uuid"))
        self.uuids = tuple(uuid for uuid in uuids if uuid)
        self._counters: dict[str, float] = {}

    def read(self) -> Reading:
        """Return the values at this moment."""
        metrics = self._query("metrics_info") or {}
        power = _number(metrics, "current_socket_power")
        return Reading(
            power_w=_number(metrics, "average_socket_power") if power is None else power,  # the mean before MI300
            sm_clock_mhz=_compute_clock(metrics),
            memory_clock_mhz=_number(metrics, "current_uclk"),
            temperature_c=_number(metrics, "temperature_hotspot"),
            memory_temperature_c=_number(metrics, "temperature_mem"),
            utilization_percent=_number(metrics, "average_gfx_activity"),
            memory_used_mib=_number(self._query("vram_usage"), "vram_used"),
            throttle_reasons=self._throttle_reasons(metrics),
        )

    def _query(self, name: str) -> Any:
        """Call amdsmi_get_gpu_<name>. Return None where the GPU or this version of amdsmi does not support it."""
        try:
            return getattr(self._amdsmi, f"amdsmi_get_gpu_{name}")(self._handle)
        except (self._amdsmi.AmdSmiException, AttributeError):
            return None

    def _throttle_reasons(self, metrics: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return the limits that lowered the clocks since the last reading; before MI300, that any does."""
        counters = {key: value for key in THROTTLE_COUNTERS if (value := _number(metrics, key)) is not None}
        before, self._counters = self._counters, counters
        if counters:
            grown = [key for key, value in counters.items() if key in before and value > before[key]]
            return tuple(THROTTLE_COUNTERS[key] for key in grown) if before else None
        status = metrics.get("throttle_status")
        return (("throttled",) if status else ()) if isinstance(status, bool) else None


def open_visible() -> list[AmdGpu]:
    """Open amdsmi and return the GPUs that ROCR_VISIBLE_DEVICES, and then HIP's or CUDA's list, leave.

    Raises:
        Exception: amdsmi, its shared library or the driver is missing.
    """
    amdsmi = import_module("amdsmi")
    amdsmi.amdsmi_init()
    gpus = [AmdGpu(amdsmi, handle, n) for n, handle in enumerate(amdsmi.amdsmi_get_processor_handles())]
    gpus = select_visible(sorted(gpus, key=lambda gpu: gpu.index), visible_gpus("ROCR_VISIBLE_DEVICES"))
    # HIP numbers what ROCr left.
    return select_visible(gpus, visible_gpus("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"))


def _compute_clock(metrics: Mapping[str, Any]) -> float | None:
    """Return the mean clock of the compute dies, or that of the only one."""
    dies = metrics.get("current_gfxclks") or ()
    clocks = [clock for clock in dies if isinstance(clock, int) and clock > 0]  # "N/A" or 0 for dies that it lacks
    return sum(clocks) / len(clocks) if clocks else _number(metrics, "current_gfxclk")


def _number(values: Any, key: str) -> float | None:
    """Return a number of a mapping; None for "N/A"."""
    value = values.get(key) if isinstance(values, Mapping) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
