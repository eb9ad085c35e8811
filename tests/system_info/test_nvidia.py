"""NVIDIA GPUs: answers of nvidia-smi from real subprocesses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from system_info.gpu_report import Gpu, GpuReport, Interconnect
from system_info.nvidia import read_gpus, read_interconnect
from tests.support.made_machines import made_tool, nvidia_process, nvidia_smi

B200 = Gpu(
    name="NVIDIA B200",
    driver_version="570.124.06",
    memory_mib=183359,
    max_clock_mhz=1965,
    pcie_generation=5,
    pcie_width=16,
    uncorrectable_errors=0,
)
NODE = Interconnect(("NV18",), "nvidia-smi topo -m", nvlinks=18, nvlink_speed="53.125 GB/s")


def report(tools: Path, answers: dict[str, str]) -> GpuReport:
    made_tool(tools, "nvidia-smi", answers)
    found = read_gpus()
    assert found is not None
    return found


def last_gpu(tools: Path, **of_last: str) -> Gpu:
    """Return the second of two GPUs, of which the first is healthy."""
    first, last = report(tools, nvidia_smi(count=2, **of_last)).gpus
    assert first == B200
    return last


def test_eight_healthy_gpus(tools: Path) -> None:
    assert report(tools, nvidia_smi()) == GpuReport("NVIDIA", "nvidia-smi", (B200,) * 8)
    assert report(tools, nvidia_smi()).driver_version == "570.124.06"
    assert report(tools, nvidia_smi(count=0)).gpus == ()
    assert report(tools, nvidia_smi("[N/A]", 1)).gpus[0].name is None


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ({"memory": "[Unknown Error]"}, {"memory_mib": None}),
        ({"clock": "[N/A]"}, {"max_clock_mhz": None}),
        ({"generation": "N/A"}, {"pcie_generation": None}),
        ({"ecc": "<dram_uncorrectable>2</dram_uncorrectable>"}, {"uncorrectable_errors": 2}),
        (
            {
                "ecc": "<dram_uncorrectable>N/A</dram_uncorrectable>"
                "<sram_uncorrectable_parity>1</sram_uncorrectable_parity>"
            },
            {"uncorrectable_errors": 1},
        ),
        ({"pending": "Yes"}, {"row_remap_pending": True}),
        ({"failure": "Yes"}, {"row_remap_failed": True}),
        (
            {"action": "<gpu_recovery_action>Drain and Reset</gpu_recovery_action>"},
            {"recovery_action": "Drain and Reset"},
        ),
        ({"processes": nvidia_process("G", "Xorg", 812)}, {}),
        (
            {"processes": nvidia_process("C", "python", 4242) + nvidia_process("C+G", "vlc", 5)},
            {"processes": ("python (4242)", "vlc (5)")},
        ),
        # An older driver does not have all elements.
        ({"action": "", "ecc": "", "reasons": "", "pending": "N/A"}, {}),
    ],
)
def test_one_value_of_one_gpu(tools: Path, printed: dict[str, str], expected: dict[str, Any]) -> None:
    assert last_gpu(tools, **printed) == replace(B200, **expected)


@pytest.mark.parametrize("family", ["event", "throttle"])
@pytest.mark.parametrize("reason", ["hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake"])
def test_a_gpu_that_lowers_its_clocks(tools: Path, family: str, reason: str) -> None:
    name = f"clocks_{family}_reason"
    printed = f"<{name}s><{name}_gpu_idle>Active</{name}_gpu_idle><{name}_{reason}>Active</{name}_{reason}></{name}s>"
    assert last_gpu(tools, reasons=printed).throttle_reasons == (reason,)


@pytest.mark.parametrize(
    ("printed", "status", "error"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, "couldn't communicate"),
        ("Unable to determine the device handle for GPU0: Unknown Error", 0, "XML"),
        ("", 0, "XML"),
    ],
)
def test_a_driver_that_does_not_answer(tools: Path, printed: str, status: int, error: str) -> None:
    assert read_gpus() is None
    made_tool(tools, "nvidia-smi", printed, status)
    found = read_gpus()
    assert found is not None
    assert found.gpus == ()
    assert found.error is not None
    assert error in found.error


def interconnect(tools: Path, count: int, **changed: str) -> Interconnect:
    made_tool(tools, "nvidia-smi", nvidia_smi(count=count) | {key.replace("_", " -"): changed[key] for key in changed})
    return read_interconnect(GpuReport("NVIDIA", "NVML", (B200,) * count))


def test_links_and_topology(tools: Path) -> None:
    assert interconnect(tools, 8) == NODE
    mixed = interconnect(tools, 2, topo_m="\tGPU0\tGPU1\nGPU0\t X \tSYS\nGPU1\tPIX\t X \n")
    assert mixed.pair_types == ("PIX", "SYS")


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
    assert old in answers[question]
    made_tool(tools, "nvidia-smi", answers | {question: answers[question].replace(old, new, 1)})
    unknown: dict[str, Any] = {"pair_types": ()}
    if question == "nvlink -s":
        unknown = {"nvlinks": None, "nvlink_speed": None}
    assert read_interconnect(GpuReport("NVIDIA", "NVML", (B200,) * 8)) == replace(NODE, **unknown)


def test_links_of_fewer_gpus_than_there_are(tools: Path) -> None:
    assert interconnect(tools, 8, nvlink_s=nvidia_smi(count=7)["nvlink -s"]).nvlinks is None


@pytest.mark.parametrize(
    "matrix",
    [
        "\tGPU0\tGPU1\nGPU0\tNV18\t X \nGPU1\t X \tNV18\n",  # in another order
        "\tGPU0\tGPU1\tNIC0\nGPU0\tNV18\tNV18\tX\nGPU1\tNV18\tNV18\tX\n",
    ],
)
def test_a_matrix_without_its_diagonal_is_unclear(tools: Path, matrix: str) -> None:
    assert interconnect(tools, 2, topo_m=matrix).pair_types == ()
