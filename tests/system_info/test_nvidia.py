"""NVIDIA GPUs: made-up answers of NVML, and of nvidia-smi from real subprocesses."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from system_info.gpu_report import Gpu, GpuReport, Interconnect
from system_info.nvidia import read_interconnect, read_nvidia_smi, read_nvml
from tests.support.made_machines import B200, field_values, made_pynvml, made_tool, nvidia_smi, unsupported

NODE = Interconnect(
    "NVLink, 18 links of 53.125 GB/s per accelerator (nvidia-smi nvlink -s)",
    "every pair: NV18 (nvidia-smi topo -m)",
)


REASONS, PROCESSES = "CurrentClocksThrottleReasons", "ComputeRunningProcesses"
PIDS = [SimpleNamespace(pid=4242), SimpleNamespace(pid=1)]


@pytest.mark.parametrize(
    ("field", "value", "function", "answer"),
    [
        ("uncorrectable_errors", 2, "TotalEccErrors", 2),
        ("row_remap_pending", True, "RemappedRows", (0, 0, 1, 0)),
        ("row_remap_failed", True, "RemappedRows", (0, 0, 0, 1)),
        ("recovery_action", "Drain and Reset", "FieldValues", field_values(4)),
        ("recovery_action", "action 99", "FieldValues", field_values(99)),
        ("recovery_action", None, "FieldValues", [SimpleNamespace(nvmlReturn=3)]),
        ("throttle_reasons", ("hw_thermal_slowdown",), REASONS, 0x45),
        ("throttle_reasons", ("hw_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown"), REASONS, 0xA8),
        ("processes", ("python (4242)", "a process (1)"), PROCESSES, PIDS),
    ],
)
def test_an_answer_of_nvml(monkeypatch: pytest.MonkeyPatch, field: str, value: Any, function: str, answer: Any) -> None:
    healthy, name = made_pynvml(), f"nvmlDeviceGet{function}"
    second = made_pynvml(**{name: lambda gpu, *asked: answer if gpu == 1 else getattr(healthy, name)(gpu, *asked)})
    monkeypatch.setitem(sys.modules, "pynvml", second)
    assert read_nvml() == GpuReport("NVML", (B200, replace(B200, **{field: value})))


def test_the_newest_cuda_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, text in ((12080, "12.8"), (13010, "13.1")):
        driver = made_pynvml(nvmlSystemGetCudaDriverVersion=lambda version=version: version)
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        assert read_nvml() == GpuReport("NVML", (replace(B200, cuda_version=text),) * 2)
    monkeypatch.setitem(sys.modules, "pynvml", made_pynvml(nvmlSystemGetCudaDriverVersion=unsupported))
    assert read_nvml() == GpuReport("NVML", (B200, B200))


@pytest.mark.parametrize("function", [None, unsupported])  # of another version, and not of this GPU
def test_a_value_that_nvml_does_not_report_is_none(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    unknown: dict[str, Any] = {"name": None, "memory_mib": None, "uncorrectable_errors": None}
    functions = ("Name", "MemoryInfo", "TotalEccErrors", "RemappedRows", "FieldValues", "ComputeRunningProcesses")
    lacking = made_pynvml(**{f"nvmlDeviceGet{each}": function for each in functions})
    monkeypatch.setitem(sys.modules, "pynvml", lacking)
    assert read_nvml() == GpuReport("NVML", (replace(B200, **unknown),) * 2)


@pytest.mark.parametrize(
    ("printed", "gpus"),
    [
        (nvidia_smi()["--query-gpu"], (replace(B200, uncorrectable_errors=None),) * 8),
        ("[N/A], 570.124.06, [Unknown Error], N/A, [N/A], 16", (Gpu(driver_version="570.124.06", pcie_width=16),)),
    ],
)
def test_nvidia_smi(tools: Path, printed: str, gpus: tuple[Any, ...]) -> None:
    assert read_nvidia_smi() is None
    made_tool(tools, "nvidia-smi", {"--query-gpu": printed})
    assert read_nvidia_smi() == GpuReport("nvidia-smi", gpus)


@pytest.mark.parametrize(
    ("printed", "status"),
    [("couldn't communicate with the NVIDIA driver.", 9), ("Unable to determine the device handle for GPU0", 0)],
)
def test_a_driver_that_does_not_answer(tools: Path, printed: str, status: int) -> None:
    made_tool(tools, "nvidia-smi", printed, status)
    assert read_nvidia_smi() == GpuReport("nvidia-smi", error=printed)


@pytest.mark.parametrize(
    ("question", "old", "new"),
    [
        ("nvlink -s", "Link 3: 53.125 GB/s", "Link 3: <inactive>"),
        ("nvlink -s", "Link 3: 53.125", "Link 3: 26.562"),
        ("nvlink -s", "GPU 5: NVIDIA B200", "GPU five"),
        ("topo -m", "GPU5\tNV18", "GPU5\t?"),
        ("topo -m", "GPU5\tNV18", "GPUx\tNV18"),
        ("topo -m", "\tX\t", "\tNV18\t"),
    ],
)
def test_an_unclear_answer_leaves_that_part_unknown(tools: Path, question: str, old: str, new: str) -> None:
    answers = nvidia_smi()
    made_tool(tools, "nvidia-smi", answers)
    assert read_interconnect(8) == NODE
    assert old in answers[question]
    made_tool(tools, "nvidia-smi", answers | {question: answers[question].replace(old, new, 1)})
    unknown = replace(NODE, link=None) if question == "nvlink -s" else replace(NODE, topology=None)
    assert read_interconnect(8) == unknown
    assert read_interconnect(9) == Interconnect()  # more GPUs than the answer has


def test_pairs_with_different_connections(tools: Path) -> None:
    made_tool(tools, "nvidia-smi", {"topo -m": "\tGPU0\tGPU1\nGPU0\t X \tSYS\nGPU1\tPIX\t X \n"})
    assert read_interconnect(2) == Interconnect(None, "every pair: PIX or SYS (nvidia-smi topo -m)")
