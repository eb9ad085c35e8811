"""AMD GPUs: answers of amd-smi and rocm-smi from real subprocesses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from system_info.amd import read_gpus, read_interconnect
from system_info.gpu_report import Gpu, GpuReport, Interconnect
from tests.support.made_machines import amd_smi, made_tool, rocm_smi

BY_ROCM_SMI = Gpu(name="AMD Instinct MI355X", driver_version="6.14.14", memory_mib=294896)
BY_AMD_SMI = replace(
    BY_ROCM_SMI,
    memory_type="HBM3E",
    memory_bus_width=8192,
    max_clock_mhz=2400,
    pcie_generation=5,
    pcie_width=16,
    uncorrectable_errors=0,
)
WARNING = "WARNING: AMD GPU device(s) is/are in a low-power state\n"


@pytest.mark.parametrize("wrapped", [True, False])
def test_amd_smi(tools: Path, wrapped: bool) -> None:
    made_tool(tools, "amd-smi", amd_smi(wrapped=wrapped))
    made_tool(tools, "rocm-smi", json.dumps(rocm_smi(count=3)))  # not used
    report = GpuReport("AMD", "amd-smi", (BY_AMD_SMI,) * 8)
    assert read_gpus() == report
    assert read_interconnect(report) == Interconnect(("XGMI",), "amd-smi topology")


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(("reported", "errors"), [(2, 2), ("N/A", 0)])
def test_errors_and_processes_belong_to_their_gpu(tools: Path, wrapped: bool, reported: Any, errors: int) -> None:
    process = {"name": "python3", "pid": 77}
    made_tool(tools, "amd-smi", amd_smi(count=2, wrapped=wrapped, uncorrectable=reported, process=process))
    last = replace(BY_AMD_SMI, uncorrectable_errors=errors, processes=("python3 (77)",))
    assert read_gpus() == GpuReport("AMD", "amd-smi", (BY_AMD_SMI, last))


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("asic", "name"),
        ("vram.size.unit", "memory_mib"),
        ("vram.type", "memory_type"),
        ("bus.max_pcie_width", "pcie_width"),
        ("clock", "max_clock_mhz"),
        ("driver.version", "driver_version"),
    ],
)
def test_a_value_that_amd_smi_does_not_report_is_none(tools: Path, path: str, field: str) -> None:
    answers = amd_smi(count=1)
    for absent in (True, False):
        static = json.loads(answers["static"])
        *above, last = path.split(".")
        parent = static["gpu_data"][0]
        for key in above:
            parent = parent[key]
        if absent:
            del parent[last]
        else:
            parent[last] = "N/A"
        made_tool(tools, "amd-smi", answers | {"static": json.dumps(static)})
        unknown: dict[str, Any] = {field: None}
        assert read_gpus() == GpuReport("AMD", "amd-smi", (replace(BY_AMD_SMI, **unknown),))


def test_rocm_smi_answers_where_amd_smi_fails(tools: Path) -> None:
    made_tool(tools, "amd-smi", "AMDSMI_STATUS_NOT_INIT", status=1)
    assert read_gpus() == GpuReport("AMD", "amd-smi", error="AMDSMI_STATUS_NOT_INIT")
    made_tool(tools, "rocm-smi", {"--json": WARNING + json.dumps(rocm_smi())})
    report = GpuReport("AMD", "rocm-smi", (BY_ROCM_SMI,) * 8)
    assert read_gpus() == report
    assert read_interconnect(report) == Interconnect(("XGMI",), "rocm-smi --showtopotype")


@pytest.mark.parametrize(
    ("key", "field"),
    [("Card Series", "name"), ("VRAM Total Memory (B)", "memory_mib")],
)
def test_a_key_that_one_card_lacks(tools: Path, key: str, field: str) -> None:
    answer = rocm_smi(count=2)
    del answer["card1"][key]
    made_tool(tools, "rocm-smi", json.dumps(answer))
    unknown: dict[str, Any] = {field: None}
    assert read_gpus() == GpuReport("AMD", "rocm-smi", (BY_ROCM_SMI, replace(BY_ROCM_SMI, **unknown)))


def test_older_answers_of_rocm_smi(tools: Path) -> None:
    made_tool(tools, "rocm-smi", json.dumps({"card0": {"Card series": "AMD Instinct MI250X"}}))
    assert read_gpus() == GpuReport("AMD", "rocm-smi", (Gpu(name="AMD Instinct MI250X"),))


@pytest.mark.parametrize("lost", ["(Topology) Link type between DRM devices 0 and 1", None])
def test_a_pair_without_a_link_leaves_the_links_unknown(tools: Path, lost: str | None) -> None:
    answer = rocm_smi()
    if lost is None:
        del answer["system"]
    else:
        del answer["system"][lost]
    made_tool(tools, "rocm-smi", json.dumps(answer))
    assert read_interconnect(GpuReport("AMD", "rocm-smi", (BY_ROCM_SMI,) * 8)) == Interconnect()


@pytest.mark.parametrize("printed", ["", "[]", "{", "[" * 100_000, '{"gpu_data": 3}', "[1, 2]"])
def test_an_answer_without_gpus_is_an_error(tools: Path, printed: str) -> None:
    assert read_gpus() is None
    made_tool(tools, "amd-smi", printed)
    report = read_gpus()
    assert report is not None
    assert report.error
    (tools / "amd-smi").rename(tools / "rocm-smi")
    report = read_gpus()
    assert report is not None
    assert report.gpus == ()
