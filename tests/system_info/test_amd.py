"""AMD GPUs: made-up answers of amdsmi, and of amd-smi from real subprocesses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from system_info.amd import read_amd_smi, read_amdsmi, read_interconnect
from system_info.gpu_report import Gpu, GpuReport, Interconnect
from tests.support.made_machines import MI355X, amd_smi, made_amdsmi, made_tool, unsupported


def test_amdsmi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", made_amdsmi())
    last = replace(MI355X, uncorrectable_errors=3, processes=("python3 (77)",))
    assert read_amdsmi() == GpuReport("amdsmi", (MI355X, last))


def test_a_value_that_amdsmi_does_not_support_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = made_amdsmi(
        amdsmi_get_clk_freq=unsupported,
        amdsmi_get_gpu_vram_info=unsupported,
        amdsmi_get_pcie_info=lambda gpu: {"pcie_static": {"max_pcie_width": "N/A"}},
        amdsmi_get_gpu_process_list=unsupported,
        amdsmi_wrapper=SimpleNamespace(),
    )
    del lacking.amdsmi_get_gpu_total_ecc_count
    monkeypatch.setitem(sys.modules, "amdsmi", lacking)
    known = Gpu("AMD Instinct MI355X", "6.14.14", uncorrectable_errors=0)
    assert read_amdsmi() == GpuReport("amdsmi", (known, known))


def test_amdsmi_without_its_shared_library_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "amdsmi.py").write_text("raise KeyError('libamd_smi.so')")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_amdsmi() is None


def test_amd_smi(tools: Path) -> None:
    answers = amd_smi()
    last = replace(MI355X, uncorrectable_errors=2, processes=("python3 (77)",))
    before_rocm_7 = {key: json.dumps(json.loads(text)["gpu_data"]) for key, text in answers.items() if "gpu_" in text}
    warning = "WARNING: AMD GPU device(s) is/are in a low-power state\n"
    for printed in (answers, before_rocm_7, {key: warning + text for key, text in answers.items()}):
        made_tool(tools, "amd-smi", printed)
        assert read_amd_smi() == GpuReport("amd-smi", (*[MI355X] * 7, last))


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("asic.market_name", "name"),
        ("vram.size.unit", "memory_mib"),
        ("vram.type", "memory_type"),
        ("bus.max_pcie_width", "pcie_width"),
        ("clock.sys", "max_clock_mhz"),
        ("driver.version", "driver_version"),
    ],
)
def test_a_value_that_amd_smi_does_not_report_is_none(tools: Path, path: str, field: str) -> None:
    static = json.loads(amd_smi(count=1)["static"])
    *above, key = path.split(".")
    parent = static["gpu_data"][0]
    for each in above:
        parent = parent[each]
    for value in ("N/A", None):
        parent[key] = value
        made_tool(tools, "amd-smi", {"static": json.dumps(static)})
        unknown: dict[str, Any] = {field: None}
        assert read_amd_smi() == GpuReport("amd-smi", (replace(MI355X, **unknown),))


@pytest.mark.parametrize("printed", ["", "[]", "{", '{"gpu_data": 3}', "[1, 2]"])
def test_an_answer_without_gpus_is_an_error(tools: Path, printed: str) -> None:
    assert read_amd_smi() is None
    made_tool(tools, "amd-smi", printed)
    report = read_amd_smi()
    assert report is not None
    assert (report.gpus, bool(report.error)) == ((), True)
    made_tool(tools, "amd-smi", "AMDSMI_STATUS_NOT_INIT", status=1)
    assert read_amd_smi() == GpuReport("amd-smi", error="AMDSMI_STATUS_NOT_INIT")


def test_links_are_unknown_unless_each_pair_has_one(tools: Path) -> None:
    made_tool(tools, "amd-smi", amd_smi())
    assert read_interconnect(8) == Interconnect("XGMI", "every pair: XGMI (amd-smi topology)")
    made_tool(tools, "amd-smi", {"topology": amd_smi()["topology"].replace("XGMI", "N/A", 1)})
    assert read_interconnect(8) == Interconnect()
