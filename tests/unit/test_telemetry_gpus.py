"""Telemetry of GPUs: the values of each vendor's library, and the GPUs of the run among those of the node."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gptoss20b.telemetry import amd, nvidia
from gptoss20b.telemetry.gpus import NoGpuError, Reading, open_gpus
from tests.support.fake_nvml import pynvml as fake
from tests.support.made_machines import LibraryError, raising

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
AMD_METRICS = {
    "current_socket_power": 1350, "average_socket_power": "N/A", "current_gfxclks": [2300, 2400, "N/A", 0],
    "current_gfxclk": 2300, "current_uclk": 1900, "temperature_hotspot": 71, "temperature_mem": 62,
    "average_gfx_activity": 98, "throttle_status": "N/A", "ppt_residency_acc": 10, "socket_thm_residency_acc": 5,
    "prochot_residency_acc": "N/A",
}  # fmt: skip
AMD_READING = Reading(1350, 2350.0, 1900, 71, 62, 98, 5000)


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the metrics of a made-up amdsmi with three MI355X, which HIP numbers backwards."""
    values = dict(AMD_METRICS)
    library = SimpleNamespace(
        AmdSmiException=LibraryError,
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: [2, 1, 0],
        amdsmi_get_gpu_enumeration_info=lambda gpu: {"hip_id": gpu, "hip_uuid": f"GPU-{gpu}"},
        amdsmi_get_gpu_device_uuid=lambda gpu: f"{gpu}{gpu}ff74a1",
        amdsmi_get_gpu_metrics_info=lambda gpu: dict(values),
        amdsmi_get_gpu_vram_usage=lambda gpu: {"vram_total": 294_896, "vram_used": 5000},
    )
    monkeypatch.setitem(sys.modules, "amdsmi", library)
    return values


@pytest.mark.usefixtures("nvml")
def test_a_reading_of_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "nvmlDeviceGetPowerUsage", lambda gpu: 612_345)
    first, second = nvidia.open_visible()
    assert (first.index, first.uuids, second.index, second.uuids) == (0, fake.UUIDS[:1], 1, fake.UUIDS[1:])
    assert first.read() == Reading(612.345, 1980, 3201, 61, 70, 99, 102_400, ("sw_power_cap",))
    monkeypatch.setattr(fake, "nvmlDeviceGetCurrentClocksEventReasons", lambda gpu: 0x1FF)
    assert second.read().throttle_reasons == tuple(nvidia.THROTTLE_REASONS.values())


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("PowerUsage", "power_w"),
        ("ClockInfo", "sm_clock_mhz"),
        ("Temperature", "temperature_c"),
        ("FieldValues", "memory_temperature_c"),
        ("UtilizationRates", "utilization_percent"),
        ("MemoryInfo", "memory_used_mib"),
        ("CurrentClocksEventReasons", "throttle_reasons"),
    ],
)
def test_a_value_that_nvml_does_not_report(monkeypatch: pytest.MonkeyPatch, function: str, field: str) -> None:
    monkeypatch.setattr(fake, f"nvmlDeviceGet{function}", raising(fake.NVMLError("Not Supported")))
    reading = nvidia.open_visible()[0].read()
    assert getattr(reading, field) is None
    assert reading.power_w or reading.temperature_c


@pytest.mark.usefixtures("nvml")
def test_a_gpu_that_is_lost_from_the_start_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    handles = {1: 1}  # and none for GPU 0
    monkeypatch.setattr(
        fake, "nvmlDeviceGetHandleByIndex", lambda index: handles.get(index) or raising(fake.NVMLError("GPU is lost"))()
    )
    lost, other = nvidia.open_visible()
    assert (lost.index, lost.uuids, lost.read()) == (0, (), Reading())
    assert (other.index, other.uuids, other.read().temperature_c) == (1, fake.UUIDS[1:], 63)


@pytest.mark.usefixtures("nvml")
def test_functions_that_another_version_of_nvml_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fake, "nvmlDeviceGetTemperature")
    monkeypatch.setattr(fake, "nvmlDeviceGetTemperatureV", lambda gpu, sensor: 55, raising=False)
    monkeypatch.delattr(fake, "nvmlDeviceGetCurrentClocksEventReasons")
    monkeypatch.setattr(fake, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda gpu: 0x40, raising=False)
    reading = nvidia.open_visible()[0].read()
    assert (reading.temperature_c, reading.throttle_reasons) == (55, ("hw_thermal_slowdown",))


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        ("1", [1]),
        ("1,0", [1, 0]),
        ("GPU-aabb", [1]),
        ("GPU-aabb, 0", [1, 0]),
        ("GPU-a", []),  # of both
        ("MIG-5", [1]),
        ("MIG-5,MIG-5,0", [1, 0]),
        ("MIG-7", []),
        ("0,-1,1", [0]),
        ("0,2,1", [0]),
        ("-1", []),
        ("", []),
    ],
)
def test_visible_nvidia_gpus(monkeypatch: pytest.MonkeyPatch, visible: str, indices: list[int]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.index for gpu in nvidia.open_visible()] == indices


def test_a_reading_of_amdsmi(metrics: dict[str, Any]) -> None:
    gpu = amd.open_visible()[0]
    assert (gpu.index, gpu.uuids) == (0, ("00ff74a1", "GPU-0"))
    assert gpu.read() == AMD_READING  # there is no earlier reading to compare the counters with
    assert gpu.read().throttle_reasons == ()
    metrics |= {"ppt_residency_acc": 12, "socket_thm_residency_acc": 6}
    assert gpu.read().throttle_reasons == ("ppt_power", "socket_thermal")


def test_a_gpu_before_mi300(metrics: dict[str, Any]) -> None:
    counters = dict.fromkeys(amd.THROTTLE_COUNTERS, "N/A")
    metrics |= counters | {"current_socket_power": "N/A", "average_socket_power": 500, "throttle_status": True}
    metrics |= {"current_gfxclks": ["N/A"] * 8}
    reading = amd.open_visible()[0].read()
    assert (reading.power_w, reading.sm_clock_mhz, reading.throttle_reasons) == (500, 2300, ("throttled",))
    del metrics["throttle_status"]
    assert amd.open_visible()[0].read().throttle_reasons is None


@pytest.mark.usefixtures("metrics")
@pytest.mark.parametrize(
    ("variables", "indices"),
    [
        ({}, [0, 1, 2]),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, [2, 0]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "2"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": "2,1", "HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-2", "HIP_VISIBLE_DEVICES": "0,2"}, [2]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
    ],
)
def test_visible_amd_gpus(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], indices: list[int]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [gpu.index for gpu in amd.open_visible()] == indices


@pytest.mark.usefixtures("metrics")
def test_the_library_that_has_gpus_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert [gpu.index for gpu in open_gpus(2)] == [0, 1]
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert [gpu.uuids for gpu in open_gpus()] == [(uuid,) for uuid in fake.UUIDS]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(NoGpuError, match=r"NVML: .*; amdsmi: "):
        open_gpus()


def test_nvidia_ml_py_has_every_name() -> None:
    real = pytest.importorskip("pynvml")
    for name, value in vars(fake).items():
        if name.startswith("NVML_"):
            assert value == getattr(real, name)
        elif name.startswith(("nvml", "NVML")):
            assert callable(getattr(real, name))
    for name in ("TemperatureV", "CurrentClocksThrottleReasons"):
        assert hasattr(real, f"nvmlDeviceGet{name}")
    bits = {name: value for name, value in vars(real).items() if name.startswith("nvmlClocksEventReason")}
    by_value = {value: name.removeprefix("nvmlClocksEventReason").lower() for name, value in bits.items()}
    assert all(by_value[bit] == name.replace("_", "") for bit, name in nvidia.THROTTLE_REASONS.items())


def test_amdsmi_has_every_name(metrics: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = vars(sys.modules["amdsmi"])
    monkeypatch.delitem(sys.modules, "amdsmi")
    spec = find_spec("amdsmi")
    if spec is None or spec.origin is None:
        pytest.skip("amdsmi is not installed")
    folder = Path(spec.origin).parent  # it cannot be imported without ROCm
    source = "".join((folder / name).read_text() for name in ("amdsmi_interface.py", "amdsmi_exception.py"))
    assert {*made} <= {*re.findall(r"^(?:def|class) (\w+)", source, re.MULTILINE)}
    keys = {*metrics, *amd.THROTTLE_COUNTERS, "hip_id", "hip_uuid", "vram_used"}
    assert {key for key in keys if f'"{key}": ' not in source} == set()
