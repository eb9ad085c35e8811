"""The vendors' management libraries, as made-up modules: in this process, and in the child that calls them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from system_info import accelerators, amdsmi_library, nvml
from system_info.gpu_report import Gpu, GpuReport
from tests.support.made_machines import amd_smi, hanging_tool, made_tool, nvidia_smi

LIMIT_S = 20.0
# nvidia-ml-py on a node whose second GPU has the values of the constants.
PYNVML = """
import types

class NVMLError(Exception): pass
class NVMLError_LibraryNotFound(NVMLError): pass

NVML_CLOCK_SM, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC, NVML_SUCCESS = 1, 1, 0, 0
ERRORS, ACTION, REASONS, REMAPPED, PIDS, INIT = 0, 0, 0, (7, 0, 0, 0), (), None

def nvmlInit():
    if INIT is not None:
        raise INIT

def nvmlSystemGetDriverVersion(): return "570.124.06"
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(handle): return "NVIDIA B200"
def nvmlDeviceGetMemoryInfo(handle): return types.SimpleNamespace(total=183359 * 2**20)
def nvmlDeviceGetMaxClockInfo(handle, clock): return {NVML_CLOCK_SM: 1965}[clock]
def nvmlDeviceGetMaxPcieLinkGeneration(handle): return 5
def nvmlDeviceGetMaxPcieLinkWidth(handle): return 16
def nvmlDeviceGetTotalEccErrors(handle, kind, counter): return {(1, 0): ERRORS}[kind, counter] if handle else 0
def nvmlDeviceGetRemappedRows(handle): return REMAPPED if handle else (0, 0, 0, 0)
def nvmlDeviceGetCurrentClocksThrottleReasons(handle): return REASONS if handle else 1
def nvmlDeviceGetComputeRunningProcesses(handle):
    return [types.SimpleNamespace(pid=pid) for pid in (PIDS if handle else ())]

def nvmlSystemGetProcessName(pid):
    if pid == 1:
        raise NVMLError("Not Found")
    return "python"

def nvmlDeviceGetFieldValues(handle, fields):
    assert fields == [230]
    value = types.SimpleNamespace(uiVal=ACTION if handle else 0)
    return [types.SimpleNamespace(nvmlReturn=NVML_SUCCESS, value=value)]
"""
B200 = Gpu(
    name="NVIDIA B200",
    driver_version="570.124.06",
    memory_mib=183359,
    max_clock_mhz=1965,
    pcie_generation=5,
    pcie_width=16,
    uncorrectable_errors=0,
)
AMDSMI = """
import enum, types

class AmdSmiException(Exception): pass
class AmdSmiClkType(enum.IntEnum): SYS = 0

print("a message that amdsmi prints")
amdsmi_wrapper = types.SimpleNamespace(amdsmi_vram_type_t__enumvalues={5: "AMDSMI_VRAM_TYPE_HBM3E"})

def amdsmi_init(): pass
def amdsmi_get_processor_handles(): return [0, 1]
def amdsmi_get_gpu_asic_info(handle): return {"market_name": "AMD Instinct MI355X"}
def amdsmi_get_gpu_driver_info(handle): return {"driver_version": "6.14.14"}
def amdsmi_get_gpu_vram_info(handle): return {"vram_type": 5, "vram_size": 294896, "vram_bit_width": 8192}
def amdsmi_get_pcie_info(handle): return {"pcie_static": {"pcie_interface_version": 5, "max_pcie_width": 16}}
def amdsmi_get_clk_freq(handle, clock): return {"frequency": [143000000, 2400000000]}
def amdsmi_get_gpu_total_ecc_count(handle): return {"uncorrectable_count": 2 * handle, "deferred_count": handle}
def amdsmi_get_gpu_process_list(handle): return [{"name": "python3", "pid": 77}] if handle else []
"""
MI355X = Gpu(
    name="AMD Instinct MI355X",
    driver_version="6.14.14",
    memory_mib=294896,
    memory_type="HBM3E",
    memory_bus_width=8192,
    max_clock_mhz=2400,
    pcie_generation=5,
    pcie_width=16,
    uncorrectable_errors=0,
)
Inject = Callable[..., Any]


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Inject:
    """Make a module from source text and changed values, in the place of an installed one. None removes a value."""

    def make(name: str, source: str, **values: Any) -> Any:
        module = ModuleType(name)
        exec(source, vars(module))  # noqa: S102
        vars(module).update(values)
        for absent in (key for key, value in values.items() if value is None):
            delattr(module, absent)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, {}),
        ({"ERRORS": 2}, {"uncorrectable_errors": 2}),
        ({"REMAPPED": (0, 0, 1, 0)}, {"row_remap_pending": True}),
        ({"REMAPPED": (0, 0, 0, 1)}, {"row_remap_failed": True}),
        ({"ACTION": 4}, {"recovery_action": "Drain and Reset"}),
        ({"ACTION": 99}, {"recovery_action": "action 99"}),
        ({"REASONS": 0x01 | 0x04 | 0x40}, {"throttle_reasons": ("hw_thermal_slowdown",)}),
        ({"REASONS": 0xA8}, {"throttle_reasons": ("hw_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown")}),
        ({"PIDS": (4242, 1)}, {"processes": ("python (4242)", "a process (1)")}),
        # Functions that this version of the library does not have.
        ({"nvmlDeviceGetMemoryInfo": None, "nvmlDeviceGetFieldValues": None}, {"memory_mib": None}),
        ({"nvmlDeviceGetTotalEccErrors": None, "nvmlDeviceGetRemappedRows": None}, {"uncorrectable_errors": None}),
    ],
)
def test_nvml(inject: Inject, answers: dict[str, Any], expected: dict[str, Any]) -> None:
    inject("pynvml", PYNVML, **answers)
    assert list(nvml.read_gpus())[1] == replace(B200, **expected)


def test_a_value_that_nvml_does_not_support_is_none(inject: Inject) -> None:
    def fail(*arguments: Any) -> None:
        raise module.NVMLError("Not Supported")

    module = inject("pynvml", PYNVML, nvmlDeviceGetTotalEccErrors=fail, nvmlDeviceGetName=fail)
    assert list(nvml.read_gpus()) == [replace(B200, name=None, uncorrectable_errors=None)] * 2


def test_amdsmi(inject: Inject) -> None:
    inject("amdsmi", AMDSMI)
    last = replace(MI355X, uncorrectable_errors=3, processes=("python3 (77)",))
    assert list(amdsmi_library.read_gpus()) == [MI355X, last]


def test_a_value_that_amdsmi_does_not_support_is_none(inject: Inject) -> None:
    def fail(*arguments: Any) -> None:
        raise module.AmdSmiException("AMDSMI_STATUS_NOT_SUPPORTED")

    module = inject(
        "amdsmi",
        AMDSMI,
        amdsmi_get_clk_freq=None,
        amdsmi_get_gpu_vram_info=fail,
        amdsmi_get_pcie_info=lambda handle: {"pcie_static": {"max_pcie_width": "N/A"}},
        amdsmi_get_gpu_process_list=fail,
        amdsmi_wrapper=SimpleNamespace(),
    )
    known = Gpu(name="AMD Instinct MI355X", driver_version="6.14.14", uncorrectable_errors=0)
    assert next(amdsmi_library.read_gpus()) == known


# The child process, and what it means for the tools.


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of modules that a child process imports first. In it, both libraries are missing."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name in ("pynvml", "amdsmi"):
        (folder / f"{name}.py").write_text("raise ImportError")
    return folder


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    return tmp_path / "tools"


def read_source() -> tuple[str, int, str | None]:
    """Return the source that answered, its number of GPUs, and its error."""
    found = accelerators.read_gpus(LIMIT_S)
    assert found is not None
    return found.source, len(found.gpus), found.error


def test_libraries_are_asked_before_tools(modules: Path, tools: Path) -> None:
    assert accelerators.read_gpus(LIMIT_S) is None
    made_tool(tools, "nvidia-smi", nvidia_smi(count=4))
    made_tool(tools, "amd-smi", amd_smi(count=4))
    (modules / "amdsmi.py").write_text(AMDSMI)
    assert read_source() == ("nvidia-smi", 4, None)
    (modules / "pynvml.py").write_text(PYNVML)
    assert accelerators.read_gpus(LIMIT_S) == GpuReport("NVIDIA", "NVML", (B200, B200))
    (modules / "pynvml.py").write_text(PYNVML + "\nINIT = NVMLError_LibraryNotFound()")
    (tools / "nvidia-smi").unlink()
    assert read_source() == ("amdsmi", 2, None)
    (modules / "amdsmi.py").write_text("raise KeyError('libamd_smi.so')")
    assert read_source() == ("amd-smi", 4, None)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        ("INIT = NVMLError('Driver/library version mismatch')", "mismatch"),
        ("def nvmlDeviceGetHandleByIndex(index): raise NVMLError('GPU is lost')", "lost"),
        ("def nvmlInit():\n    import os; os.abort()", "exit status -6"),
    ],
)
def test_where_the_library_fails_the_tool_is_asked(modules: Path, tools: Path, failure: str, error: str) -> None:
    (modules / "pynvml.py").write_text(f"{PYNVML}\n{failure}")
    source, gpus, message = read_source()
    assert (source, gpus, error in (message or "")) == ("NVML", 0, True)
    made_tool(tools, "nvidia-smi", nvidia_smi(count=1))
    assert read_source() == ("nvidia-smi", 1, None)


def test_where_the_library_hangs_the_tool_is_not_asked(modules: Path, tools: Path) -> None:
    (modules / "pynvml.py").write_text(PYNVML + "\ndef nvmlInit():\n    import time; time.sleep(60)")
    hanging_tool(tools, "nvidia-smi")
    began = time.monotonic()
    found = accelerators.read_gpus(limit_s=3.0)
    assert time.monotonic() - began < LIMIT_S
    assert found is not None
    assert (found.source, found.gpus, found.timed_out) == ("NVML", (), True)
