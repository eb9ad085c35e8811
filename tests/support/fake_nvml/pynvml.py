"""A node of two H200, or FAKE_NVML_GPUS of them, in the place of nvidia-ml-py.

With this folder on PYTHONPATH, programs import it as `pynvml`.

Constants are nvidia-ml-py's (`tests/unit/test_telemetry_gpus.py` compares them). Each reading draws 10 W more.
"""

# ruff: noqa: N802
from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from types import SimpleNamespace

NVML_SUCCESS = 0
NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
NVML_TEMPERATURE_GPU = 0
NVML_FI_DEV_MEMORY_TEMP = 82

UUIDS = (
    "GPU-aaaa0000-1",
    "GPU-aabb0000-2",
    *(f"GPU-{n:08}" for n in range(2, int(os.environ.get("FAKE_NVML_GPUS", "2")))),
)
_CLOCKS = {NVML_CLOCK_SM: 1980, NVML_CLOCK_MEM: 3201}
_readings = itertools.count()


class NVMLError(Exception):
    """Error of the library."""


def nvmlInit() -> None:
    """Open the library. With FAKE_NVML_HANGS it creates the file of this name, and never answers."""
    if "FAKE_NVML_HANGS" in os.environ:
        Path(os.environ["FAKE_NVML_HANGS"]).touch()
        time.sleep(600)


def nvmlDeviceGetCount() -> int:
    return len(UUIDS)


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return range(len(UUIDS))[index]


def nvmlDeviceGetHandleByUUID(uuid: str) -> SimpleNamespace:
    """Return the handle of a MIG slice of the second GPU."""
    if uuid != "MIG-5":
        raise NVMLError("Not Found")
    return SimpleNamespace(parent=1)


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_handle: SimpleNamespace) -> int:
    parent: int = slice_handle.parent
    return parent


def nvmlDeviceGetUUID(gpu: int) -> str:
    return UUIDS[gpu]


def nvmlDeviceGetPowerUsage(gpu: int) -> int:
    """Return milliwatts."""
    return 600_000 + 10_000 * next(_readings)


def nvmlDeviceGetClockInfo(gpu: int, clock: int) -> int:
    return _CLOCKS[clock]


def nvmlDeviceGetTemperature(gpu: int, sensor: int) -> int:
    return {NVML_TEMPERATURE_GPU: 61 + 2 * gpu}[sensor]


def nvmlDeviceGetUtilizationRates(gpu: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=99, memory=40)


def nvmlDeviceGetMemoryInfo(gpu: int) -> SimpleNamespace:
    return SimpleNamespace(total=143_771 * 2**20, used=100 * 2**30)


def nvmlDeviceGetCurrentClocksEventReasons(gpu: int) -> int:
    """Return an idle GPU at its power cap."""
    return 0x05


def nvmlDeviceGetFieldValues(gpu: int, fields: list[int]) -> list[SimpleNamespace]:
    return [SimpleNamespace(nvmlReturn=NVML_SUCCESS, value=SimpleNamespace(uiVal=70)) for _ in fields]
