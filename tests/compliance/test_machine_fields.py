"""Fields of a system description, from what `system_info` reads of made-up machines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compliance.machine_fields import (
    accelerator_fields,
    device_fields,
    gpu_fields,
    hardware_notes,
    memory_fields,
    processor_fields,
    software_fields,
)
from system_info.cpu import Processors, read_processors
from system_info.devices import Disk
from system_info.gpu_report import Gpu, GpuReport, Interconnect
from tests.support.made_machines import (
    B200,
    MODULES,
    add_disk,
    amd_smi,
    made_host,
    made_script,
    made_tool,
    nvidia_smi,
    write_files,
)

LIMIT_S = 20.0
ALONE = "N/A (one accelerator)"
H200 = replace(B200, name="NVIDIA H200", memory_mib=143771)
B200_FIELDS = {
    "accelerators_per_node": "8",
    "accelerator_model_name": "NVIDIA B200",
    "accelerator_memory_capacity": "179.1 GiB",
    "accelerator_frequency": "1965 MHz max",
    "accelerator_host_interconnect": "PCIe 5.0 x16",
    "accelerator_interconnect": "NVLink, 18 links of 53.125 GB/s per accelerator (nvidia-smi nvlink -s)",
    "accelerator_interconnect_topology": "every pair: NV18 (nvidia-smi topo -m)",
    "driver": "NVIDIA driver 570.124.06",
}
MI355X_FIELDS = {
    "accelerators_per_node": "8",
    "accelerator_model_name": "AMD Instinct MI355X",
    "accelerator_memory_capacity": "288.0 GiB",
    "accelerator_memory_configuration": "HBM3E, 8192 bit wide",
    "accelerator_frequency": "2400 MHz max",
    "accelerator_host_interconnect": "PCIe 5.0 x16",
    "accelerator_interconnect": "XGMI",
    "accelerator_interconnect_topology": "every pair: XGMI (amd-smi topology)",
    "driver": "amdgpu driver 6.14.14",
}


def test_processors_of_two_kinds_of_one_and_of_none() -> None:
    caches = {"L1d": (48,) * 12, "L3": (30720, 30720, 512)}
    assert processor_fields(Processors(("A", "B"), (8, 4), (16, 4), 2.1, 4.0, caches)) == {
        "host_processor_model_name": "A + B",
        "host_processors_per_node": "2",
        "host_processor_core_count": "1 x 8 cores + 1 x 4 cores",
        "host_processor_vcpu_count": "1 x 16 threads + 1 x 4 threads",
        "host_processor_frequency": "2.10 GHz base, 4.00 GHz max",
        "host_processor_caches": "L1d: 12 x 48 KiB, L3: 2 x 30 MiB + 1 x 512 KiB",
    }
    one = processor_fields(Processors(cores=(72,), threads=(72,), max_ghz=3.7))
    assert one["host_processor_interconnect"] == "N/A (one processor)"
    assert one["host_processor_frequency"] == "3.70 GHz max"
    assert processor_fields(Processors()) == {}


def test_notes_on_the_hardware(tmp_path: Path) -> None:
    virtual, offline = hardware_notes(Processors(offline="2-3", is_virtual=True), tmp_path).split("; ")
    assert virtual.startswith("virtual machine")
    assert "2-3" in offline
    assert hardware_notes(Processors(), tmp_path) == ""
    dmi = {"sys/class/dmi/id/sys_vendor": "Dell Inc.", "sys/class/dmi/id/product_name": "PowerEdge XE9680"}
    assert hardware_notes(Processors(), write_files(tmp_path, dmi)) == "Dell Inc. PowerEdge XE9680"


def test_memory_is_installed_or_usable(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=24_641_224 * 1024))
    assert memory_fields(LIMIT_S) == {"host_memory_capacity": "23.5 GiB usable (MemTotal)"}
    made_tool(tools, "dmidecode", {"-t 17": MODULES})
    assert memory_fields(LIMIT_S) == {
        "host_memory_capacity": "192 GB",
        "host_memory_configuration": "2 x 96 GB DDR5 5600 MT/s",
    }


def test_disks_and_ports_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_fields(tmp_path) == {}
    disks = [*[Disk("NVMe SSD", 3_840_755_982_336)] * 8, Disk("SSD", 960_197_124_096), Disk("HDD", 20_000_588_955_648)]
    monkeypatch.setattr("compliance.machine_fields.read_disks", lambda root: disks)
    ports = ["Ethernet 100 Gb/s", "Ethernet (rate not reported)", "Ethernet 100 Gb/s"]
    monkeypatch.setattr("compliance.machine_fields.read_network_ports", lambda root: ports)
    assert device_fields(tmp_path) == {
        "host_storage_type": "NVMe SSD + SSD + HDD",
        "host_storage_capacity": "8 x 3.841 TB NVMe SSD + 1 x 960.2 GB SSD + 1 x 20 TB HDD",
        "host_networking": "2 x Ethernet 100 Gb/s + 1 x Ethernet (rate not reported)",
    }


@pytest.mark.parametrize(
    ("tool", "answers", "expected"),
    [("nvidia-smi", nvidia_smi(), B200_FIELDS), ("amd-smi", amd_smi(), MI355X_FIELDS)],
)
def test_eight_accelerators(
    tmp_path: Path, tools: Path, tool: str, answers: dict[str, str], expected: dict[str, str]
) -> None:
    made_tool(tools, tool, answers)
    assert accelerator_fields(tmp_path, LIMIT_S) == expected


def gpus(*models: Gpu) -> dict[str, str]:
    return gpu_fields(GpuReport("NVML", models), Interconnect())


@pytest.mark.parametrize(
    ("unknown", "field"),
    [
        ("name", "accelerator_model_name"),
        ("driver_version", "driver"),
        ("memory_mib", "accelerator_memory_capacity"),
        ("max_clock_mhz", "accelerator_frequency"),
        ("pcie_width", "accelerator_host_interconnect"),
        ("pcie_generation", "accelerator_host_interconnect"),
    ],
)
def test_a_value_that_one_gpu_lacks_leaves_only_its_field_unknown(unknown: str, field: str) -> None:
    whole = gpus(B200, B200)
    assert field in whole
    changes: dict[str, Any] = {unknown: None}
    assert gpus(B200, replace(B200, **changes)) == {key: whole[key] for key in whole if key != field}


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ((B200,), {"accelerator_interconnect": ALONE, "accelerator_interconnect_topology": ALONE}),
        # Fields of what all share.
        ((B200, B200, H200), {"accelerator_model_name": "2 x NVIDIA B200 + 1 x NVIDIA H200"}),
        ((B200, B200, H200), {"accelerator_memory_capacity": None, "accelerator_frequency": "1965 MHz max"}),
        # On a Grace system the PCIe link is not the host interconnect.
        ((replace(B200, name="NVIDIA GB200"),), {"accelerator_host_interconnect": None}),
    ],
)
def test_accelerators_that_are_one_or_different(models: tuple[Gpu, ...], expected: dict[str, str | None]) -> None:
    found = gpus(*models)
    assert {name: found.get(name) for name in expected} == expected


def test_no_accelerator_on_the_bus_is_said(tmp_path: Path, tools: Path) -> None:
    found = accelerator_fields(made_host(tmp_path / "root"), LIMIT_S)
    assert found.pop("accelerators_per_node") == "0"
    assert set(found.values()) == {"N/A (no accelerator)"}
    write_files(tmp_path / "root", {"sys/bus/pci/devices/0000:16:00.0/class": "0x030200"})  # which no tool describes
    assert accelerator_fields(tmp_path / "root", LIMIT_S) == accelerator_fields(tmp_path / "nothing", LIMIT_S) == {}


def test_software(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.9.0+cu130", "megatron-core": "0.16.1", "nvidia-nccl-cu13": "2.27.7"}
    monkeypatch.setattr("compliance.machine_fields.read_package_versions", lambda names: versions)
    write_files(made_host(tmp_path), {"opt/rocm/.info/version": "7.0.2-56"})
    write_files(tmp_path, {"usr/local/cuda/version.json": json.dumps({"cuda": {"version": "13.0.48"}})})
    assert software_fields(tmp_path, "NVIDIA driver 580.95.05") == {
        "operating_system": "Ubuntu 24.04.2 LTS, Linux 6.8.0-60-generic",
        "framework": "PyTorch 2.9.0+cu130 + Megatron-Core 0.16.1",
        "other_software_stack": "NCCL 2.27.7, NVIDIA driver 580.95.05, CUDA toolkit 13.0.48, ROCm 7.0.2-56",
    }
    del versions["torch"]
    assert "framework" not in software_fields(tmp_path)


NAMES = ["gpu_data", "asic", "market_name", "vram", "size", "value", "clock", "sys", "frequency_levels", "bus", "links"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["N/A", "XGMI"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=15,
)
LINES = st.lists(
    st.sampled_from([*nvidia_smi(count=2).values(), "GPU0 X", "GPU 0: x", "\t Link 0: 1 GB/s", ",,,,,", "1,2,3,4,5,6"])
    | st.text(max_size=20)
).map("\n".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(printed=JSON.map(json.dumps) | LINES)
def test_no_output_crashes_a_reader(tools: Path, printed: str) -> None:
    readers: dict[str, Callable[[], dict[str, str]]] = {
        **dict.fromkeys(("nvidia-smi", "amd-smi"), lambda: accelerator_fields(tools, LIMIT_S)),
        "lscpu": lambda: processor_fields(read_processors(tools)),
        "dmidecode": lambda: memory_fields(LIMIT_S),
    }
    # Bytes that no text has, too.
    (tools / ".answer").write_bytes(printed.encode("utf-8", "replace") + b"\xff\x00")
    for name, read in readers.items():
        made_script(tools, name, f"exec /bin/cat {tools}/.answer")
        found = read()
        (tools / name).unlink()
        assert all(value and value.isprintable() for value in found.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=30) | st.integers().map(lambda n: b"%d\n" % n), which=st.integers(0, 10**6))
def test_no_file_crashes_a_reader(tmp_path: Path, tools: Path, content: bytes, which: int) -> None:
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    add_disk(made_host(root, sockets=1, cores=1), "sda", 10**12)
    files = {"type": 1, "speed": 1000, "device/a": 1}
    write_files(root, {f"sys/class/net/eth0/{name}": value for name, value in files.items()})
    every = sorted(path for path in root.rglob("*") if path.is_file())
    every[which % len(every)].write_bytes(content)
    processors = read_processors(root)
    found = processor_fields(processors) | device_fields(root) | accelerator_fields(root, LIMIT_S)
    found |= software_fields(root)
    assert all(value and value.isprintable() for value in found.values())
    assert hardware_notes(processors, root).isprintable()
