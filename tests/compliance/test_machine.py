"""What a machine is: trees of /proc and /sys, and real subprocesses that print what the vendors' tools print."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compliance.machine.accelerators import accelerator_fields
from compliance.machine.amd import amd_fields
from compliance.machine.devices import has_accelerator, network_fields, storage_fields, system_fields
from compliance.machine.nvidia import nvidia_fields
from compliance.machine.processors import machine_notes, memory_fields, processor_fields
from compliance.machine.software import software_fields
from compliance.machine.sources import output
from tests.support.made_machines import (
    MODULES,
    add_accelerators,
    add_disk,
    amd_smi,
    hanging_tool,
    made_host,
    made_tool,
    nvidia,
    rocm_smi,
    write,
)

LIMIT_S = 20.0
GPUS = {
    "accelerators_per_node": "8",
    "accelerator_model_name": "NVIDIA B200",
    "accelerator_memory_capacity": "179.1 GiB",
    "accelerator_frequency": "1965 MHz max",
    "accelerator_host_interconnect": "PCIe 5.0 x16",
    "accelerator_interconnect": "NVLink, 18 links of 53.125 GB/s per accelerator (nvidia-smi nvlink -s)",
    "accelerator_interconnect_topology": "every pair: NV18 (nvidia-smi topo -m)",
    "driver": "NVIDIA driver 570.124.06",
}
MI355X = {
    "accelerators_per_node": "8",
    "accelerator_model_name": "AMD Instinct MI355X",
    "accelerator_memory_capacity": "288.0 GiB",
    "accelerator_interconnect": "XGMI",
    "driver": "amdgpu driver 6.14.14",
}
BY_AMD_SMI = MI355X | {
    "accelerator_memory_configuration": "HBM3E, 8192 bit wide",
    "accelerator_frequency": "2400 MHz max",
    "accelerator_host_interconnect": "PCIe 5.0 x16",
    "accelerator_interconnect_topology": "every pair: XGMI (amd-smi topology)",
}
BY_ROCM_SMI = MI355X | {"accelerator_interconnect_topology": "every pair: XGMI (rocm-smi --showtopotype)"}


# Processors and memory


def test_two_sockets(tmp_path: Path, tools: Path) -> None:
    root = made_host(tmp_path / "root", sockets=2, cores=4)
    assert processor_fields(root) == {
        "host_processor_model_name": "INTEL(R) XEON(R) PLATINUM 8570",
        "host_processors_per_node": "2",
        "host_processor_core_count": "2 x 4 cores",
        "host_processor_vcpu_count": "2 x 8 threads",
        "host_processor_caches": "L1d: 8 x 48 KiB, L1i: 8 x 32 KiB, L2: 8 x 2 MiB, L3: 2 x 30 MiB",
    }


def test_one_socket_has_no_link_between_processors(tmp_path: Path, tools: Path) -> None:
    found = processor_fields(made_host(tmp_path, sockets=1, cores=6, threads_per_core=1, cores_per_l3=3))
    assert found["host_processor_interconnect"] == "N/A (one processor)"
    assert found["host_processor_core_count"] == "1 x 6 cores"
    assert found["host_processor_vcpu_count"] == "1 x 6 threads"
    assert found["host_processor_caches"].endswith("L3: 2 x 30 MiB")


def test_a_machine_that_does_not_show_caches_leaves_them_unknown(tmp_path: Path, tools: Path) -> None:
    found = processor_fields(made_host(tmp_path, caches=False))
    assert "host_processor_caches" not in found
    assert found["host_processors_per_node"] == "2"


@pytest.mark.parametrize(
    ("base", "highest", "model", "words"),
    [
        (2_100_000, 4_000_000, "X", "2.10 GHz base, 4.00 GHz max"),
        (None, 3_700_000, "X", "3.70 GHz max"),
        (None, None, "Intel(R) Xeon(R) CPU @ 2.60GHz", "2.60 GHz base"),
        (2_100_000, None, "Intel(R) Xeon(R) CPU @ 2.60GHz", "2.10 GHz base"),
        (None, None, "AMD EPYC", None),  # `cpu MHz` is the frequency of the moment
    ],
)
def test_frequency(
    tmp_path: Path, tools: Path, base: int | None, highest: int | None, model: str, words: str | None
) -> None:
    root = made_host(tmp_path, sockets=1, model=model)
    for name, khz in (("base_frequency", base), ("cpuinfo_max_freq", highest)):
        if khz is not None:
            write(root, {f"sys/devices/system/cpu/cpu3/cpufreq/{name}": khz})
    assert processor_fields(root).get("host_processor_frequency") == words


def test_lscpu_names_an_arm_processor_that_the_kernel_does_not(tmp_path: Path, tools: Path) -> None:
    root = made_host(tmp_path / "root", sockets=2, cores=72, threads_per_core=1, model=None)
    assert "host_processor_model_name" not in processor_fields(root)
    made_tool(
        tools, "lscpu", "Architecture:  aarch64\nVendor ID:     ARM\n  Model name:  indented\nModel name:   Neoverse-V2"
    )
    found = processor_fields(root)
    assert (found["host_processor_model_name"], found["host_processor_core_count"]) == ("Neoverse-V2", "2 x 72 cores")


def test_a_processor_that_nothing_names(tmp_path: Path, tools: Path) -> None:
    made_tool(tools, "lscpu", "Architecture:  aarch64\nModel name:   -")
    assert "host_processor_model_name" not in processor_fields(made_host(tmp_path / "root", model=None))


def test_an_unknown_package_leaves_all_counts_unknown(tmp_path: Path, tools: Path) -> None:
    root = write(made_host(tmp_path), {"sys/devices/system/cpu/cpu1/topology/physical_package_id": -1})
    assert not [name for name in processor_fields(root) if "count" in name or "per_node" in name]


def test_what_is_offline_is_noted_and_not_counted(tmp_path: Path, tools: Path) -> None:
    root = made_host(tmp_path, sockets=1, cores=2)
    for cpu in ("cpu2", "cpu3"):
        shutil.rmtree(root / f"sys/devices/system/cpu/{cpu}/topology")
    write(root, {"sys/devices/system/cpu/offline": "2-3"})
    assert processor_fields(root)["host_processor_vcpu_count"] == "1 x 2 threads"
    assert machine_notes(root) == "logical processors 2-3 are offline and not counted"


def test_a_virtual_machine_and_its_maker_are_noted(tmp_path: Path) -> None:
    root = made_host(tmp_path, flags="fpu hypervisor sse2")
    write(root, {"sys/class/dmi/id/sys_vendor": "Dell Inc.", "sys/class/dmi/id/product_name": "PowerEdge XE9680"})
    assert machine_notes(root).startswith("Dell Inc. PowerEdge XE9680; virtual machine: ")


def test_memory_is_what_the_kernel_can_use_and_says_so(tmp_path: Path, tools: Path) -> None:
    root = made_host(tmp_path / "root", memory_kb=24_641_224)
    assert memory_fields(root) == {"host_memory_capacity": "23.5 GiB usable (MemTotal)"}


def test_memory_modules_are_added_up_where_dmidecode_may_read_them(tmp_path: Path, tools: Path) -> None:
    root = made_host(tmp_path / "root")
    made_tool(tools, "dmidecode", {"-t 17": MODULES})
    assert memory_fields(root) == {
        "host_memory_capacity": "192 GB",
        "host_memory_configuration": "2 x 96 GB DDR5 5600 MT/s",
    }
    made_tool(tools, "dmidecode", MODULES.replace("98304 MB", "Unknown"))
    assert "usable" in memory_fields(root)["host_memory_capacity"]
    made_tool(tools, "dmidecode", MODULES, status=1)  # not root
    assert "usable" in memory_fields(root)["host_memory_capacity"]


# Disks, networks, system


def test_disks_of_this_machine_alone_are_counted(tmp_path: Path) -> None:
    for number in range(8):
        add_disk(tmp_path, f"nvme{number}n1", 3_840_755_982_336, device__transport="pcie")
    add_disk(tmp_path, "sda", 960_197_124_096)
    add_disk(tmp_path, "sdb", 20_000_588_955_648, rotational=1)
    add_disk(tmp_path, "nvme9n1", 10**12, device__transport="tcp")
    add_disk(tmp_path, "nvme0c0n1", 10**12, hidden=1)
    add_disk(tmp_path, "sdc", 64 * 10**9, removable=1)
    add_disk(tmp_path, "sdd", 0)
    write(tmp_path, {"sys/block/loop0/size": 1 << 30, "sys/block/dm-0/size": 1 << 30})
    assert storage_fields(tmp_path) == {
        "host_storage_type": "NVMe SSD + SSD + HDD",
        "host_storage_capacity": "8 x 3.841 TB NVMe SSD + 1 x 960.2 GB SSD + 1 x 20 TB HDD",
    }


def test_a_virtual_disk_is_called_one(tmp_path: Path) -> None:
    add_disk(tmp_path, "vda", 274_877_906_944, rotational=1)
    assert storage_fields(tmp_path)["host_storage_capacity"] == "1 x 274.9 GB virtual disk"
    assert storage_fields(tmp_path / "nothing") == {}


def test_network_ports(tmp_path: Path) -> None:
    files: dict[str, object] = {}
    for number in range(8):
        port = f"sys/class/infiniband/mlx5_{number}/ports/1"
        files |= {f"{port}/link_layer": "InfiniBand", f"{port}/rate": "400 Gb/sec (4X NDR)"}
        files |= {f"sys/class/net/ib{number}/type": 32, f"sys/class/net/ib{number}/device/vendor": "0x15b3"}
    roce = "sys/class/infiniband/mlx5_8/ports/1"
    files |= {f"{roce}/link_layer": "Ethernet", f"{roce}/rate": "100 Gb/sec (4X EDR)"}
    for name, speed in (("eth0", 100_000), ("eth1", -1), ("eth2", 2_500)):
        files |= {f"sys/class/net/{name}/{key}": value for key, value in (("type", 1), ("speed", speed))}
        files[f"sys/class/net/{name}/device/vendor"] = "0x15b3"
    files["sys/class/net/eth0/device/infiniband/mlx5_8/node_type"] = "1: CA"
    files |= {"sys/class/net/docker0/type": 1, "sys/class/net/docker0/speed": 10_000, "sys/class/net/lo/type": 772}
    files |= {"sys/class/net/vf0/type": 1, "sys/class/net/vf0/speed": 1_000, "sys/class/net/vf0/device/physfn/a": 1}
    assert network_fields(write(tmp_path, files)) == {
        "host_networking": "8 x InfiniBand 400 Gb/sec (4X NDR) + 1 x Ethernet 100 Gb/s RDMA"
        " + 1 x Ethernet (rate not reported) + 1 x Ethernet 2.5 Gb/s"
    }
    assert network_fields(tmp_path / "nothing") == {}


def test_operating_system_needs_name_and_kernel(tmp_path: Path) -> None:
    assert system_fields(made_host(tmp_path)) == {"operating_system": "Ubuntu 24.04.2 LTS, Linux 6.8.0-60-generic"}
    (tmp_path / "etc/os-release").unlink()
    assert system_fields(tmp_path) == {}


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [
        ("0x10de", "0x030200", True),
        ("0x1002", "0x120000", True),
        ("0x1002", "0x038000", True),
        ("0x10de", "0x030000", True),
        ("0x1a03", "0x030000", False),  # a board's own display
    ],
)
def test_which_pci_devices_may_be_accelerators(tmp_path: Path, vendor: str, kind: str, expected: bool) -> None:
    add_accelerators(made_host(tmp_path), vendor, 1, kind)
    assert has_accelerator(tmp_path) is expected
    assert has_accelerator(tmp_path / "nothing") is None


# Accelerators


def test_nvidia(tools: Path) -> None:
    made_tool(tools, "nvidia-smi", nvidia())
    assert nvidia_fields() == GPUS
    made_tool(tools, "nvidia-smi", nvidia("NVIDIA H200", memory="143771", clock="1980", speed="26.562"))
    found = nvidia_fields()
    assert found["accelerator_memory_capacity"] == "140.4 GiB"
    assert found["accelerator_interconnect"].startswith("NVLink, 18 links of 26.562 GB/s")


def test_nvidia_is_asked_for_what_it_is_read_as(tools: Path) -> None:
    query = "driver_version,memory.total,clocks.max.sm,pcie.link.gen.max,pcie.link.width.max,name"
    made_tool(tools, "nvidia-smi", {f"--query-gpu={query} --format=csv,noheader,nounits": nvidia()["--query-gpu"]})
    assert nvidia_fields()["accelerators_per_node"] == "8"


def test_one_accelerator_is_connected_to_none(tmp_path: Path, tools: Path) -> None:
    made_tool(tools, "nvidia-smi", nvidia(count=1))
    found = accelerator_fields(tmp_path)
    assert found["accelerator_interconnect"] == found["accelerator_interconnect_topology"] == "N/A (one accelerator)"


def test_na_leaves_only_that_field_unknown(tools: Path) -> None:
    made_tool(tools, "nvidia-smi", nvidia(clock="[N/A]"))
    assert nvidia_fields() == {key: value for key, value in GPUS.items() if key != "accelerator_frequency"}
    made_tool(tools, "nvidia-smi", nvidia(memory="[Unknown Error]"))
    assert "accelerator_memory_capacity" not in nvidia_fields()
    made_tool(tools, "nvidia-smi", nvidia("[N/A]"))
    assert "accelerator_model_name" not in nvidia_fields()


def test_different_accelerators_are_counted_and_only_what_is_common_is_told(tools: Path) -> None:
    rows = "\n".join(
        [*nvidia(count=2)["--query-gpu"].split("\n"), *nvidia("NVIDIA H200", 1, memory="1")["--query-gpu"].split("\n")]
    )
    made_tool(tools, "nvidia-smi", {"--query-gpu": rows})
    found = nvidia_fields()
    assert found["accelerator_model_name"] == "2 x NVIDIA B200 + 1 x NVIDIA H200"
    assert "accelerator_memory_capacity" not in found
    assert found["accelerator_frequency"] == "1965 MHz max"


def test_the_pcie_link_of_a_grace_system_is_not_taken_for_its_host_interconnect(tools: Path) -> None:
    made_tool(tools, "nvidia-smi", nvidia("NVIDIA GB200", 4))
    assert "accelerator_host_interconnect" not in nvidia_fields()


@pytest.mark.parametrize(
    ("question", "old", "new", "field"),
    [
        ("nvlink", "Link 3: 53.125 GB/s", "Link 3: <inactive>", "accelerator_interconnect"),
        ("nvlink", "Link 3: 53.125", "Link 3: 26.562", "accelerator_interconnect"),
        ("nvlink", "GPU 5: NVIDIA B200", "GPU five", "accelerator_interconnect"),
        ("topo", "GPU5\tNV18", "GPU5\t?", "accelerator_interconnect_topology"),
        ("topo", "GPU5\tNV18", "GPUx\tNV18", "accelerator_interconnect_topology"),
        ("topo", "\tX\t", "\tNV18\t", "accelerator_interconnect_topology"),
    ],
)
def test_an_unclear_interconnect_is_unknown(tools: Path, question: str, old: str, new: str, field: str) -> None:
    answers = nvidia()
    assert old in answers[question]
    answers[question] = answers[question].replace(old, new, 1)
    made_tool(tools, "nvidia-smi", answers)
    assert nvidia_fields() == {key: value for key, value in GPUS.items() if key != field}


def test_links_of_fewer_accelerators_than_there_are(tools: Path) -> None:
    made_tool(tools, "nvidia-smi", nvidia() | {"nvlink": nvidia(count=7)["nvlink"]})
    assert "accelerator_interconnect" not in nvidia_fields()


def test_a_matrix_in_another_order_is_unclear(tools: Path) -> None:
    matrix = "\tGPU0\tGPU1\nGPU0\tNV18\tX\nGPU1\tX\tNV18\n"
    made_tool(tools, "nvidia-smi", nvidia(count=2) | {"topo": matrix.replace("X", " X ")})
    assert "accelerator_interconnect_topology" not in nvidia_fields()
    matrix = "\tGPU0\tGPU1\tNIC0\nGPU0\tNV18\tNV18\tX\nGPU1\tNV18\tNV18\tX\n"
    made_tool(tools, "nvidia-smi", nvidia(count=2) | {"topo": matrix})
    assert "accelerator_interconnect_topology" not in nvidia_fields()


def test_pairs_that_are_connected_differently(tools: Path) -> None:
    answers = nvidia(count=2)
    answers["topo"] = "\tGPU0\tGPU1\nGPU0\t X \tSYS\nGPU1\tPIX\t X \n"
    made_tool(tools, "nvidia-smi", answers)
    assert nvidia_fields()["accelerator_interconnect_topology"] == "every pair: PIX or SYS (nvidia-smi topo -m)"


BROKEN: dict[str, Callable[[Path, str], None]] = {
    "missing": lambda tools, name: None,
    "failing": lambda tools, name: made_tool(tools, name, nvidia(), status=9),
    "garbage": lambda tools, name: made_tool(tools, name, "Failed to initialize NVML: Driver/library mismatch\n{[\n"),
    "a broken line": lambda tools, name: made_tool(
        tools, name, nvidia()["--query-gpu"] + "\nUnable to determine the device handle: Unknown Error"
    ),
    "silent": lambda tools, name: made_tool(tools, name, ""),
    "hanging": hanging_tool,
    "no program": lambda tools, name: (tools / name).mkdir(),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", ["nvidia-smi", "amd-smi", "rocm-smi"])
def test_a_tool_that_does_not_answer_leaves_the_accelerators_unknown(
    tmp_path: Path, tools: Path, how: str, name: str
) -> None:
    BROKEN[how](tools, name)
    add_accelerators(made_host(tmp_path / "root"), "0x10de")
    begun = time.monotonic()
    assert accelerator_fields(tmp_path / "root", limit_s=0.5) == {}
    assert time.monotonic() - begun < LIMIT_S


def test_a_hanging_tool_leaves_no_process_behind(tmp_path: Path, tools: Path) -> None:
    made = tmp_path / "pid"
    (tools / "slow").write_text(f"#!/bin/sh\n/bin/sleep 60 & echo $! > {made}\nwait\n", encoding="utf-8")
    (tools / "slow").chmod(0o755)
    assert output("slow", limit_s=1.0) is None
    child = int(made.read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, 9)
    pytest.fail("the tool's child outlived it")


@pytest.mark.parametrize("wrapped", [True, False])
def test_amd_smi(tools: Path, wrapped: bool) -> None:
    made_tool(tools, "amd-smi", amd_smi(wrapped=wrapped))
    made_tool(tools, "rocm-smi", json.dumps(rocm_smi(count=3)))  # not asked
    assert amd_fields() == BY_AMD_SMI


def test_rocm_smi_answers_where_amd_smi_does_not(tools: Path) -> None:
    made_tool(tools, "amd-smi", "ModuleNotFoundError", status=1)
    made_tool(
        tools,
        "rocm-smi",
        {"--json": "WARNING: AMD GPU device(s) is/are in a low-power state\n" + json.dumps(rocm_smi())},
    )
    assert amd_fields() == BY_ROCM_SMI


@pytest.mark.parametrize(
    ("key", "field"),
    [("Card Series", "accelerator_model_name"), ("VRAM Total Memory (B)", "accelerator_memory_capacity")],
)
def test_a_key_that_one_card_lacks_leaves_that_field_unknown(tools: Path, key: str, field: str) -> None:
    answer = rocm_smi()
    del answer["card6"][key]
    made_tool(tools, "rocm-smi", json.dumps(answer))
    assert amd_fields() == {name: value for name, value in BY_ROCM_SMI.items() if name != field}


def test_rocm_smi_without_links_or_system(tools: Path) -> None:
    answer = rocm_smi()
    del answer["system"]["(Topology) Link type between DRM devices 0 and 1"]
    made_tool(tools, "rocm-smi", json.dumps(answer))
    assert not [name for name in amd_fields() if "interconnect" in name]
    made_tool(tools, "rocm-smi", json.dumps({k: v for k, v in rocm_smi().items() if k != "system"}))
    assert amd_fields()["accelerators_per_node"] == "8"


def test_the_older_spelling_of_rocm_smi(tools: Path) -> None:
    cards = {f"card{n}": {"Card series": "AMD Instinct MI250X"} for n in range(4)}
    made_tool(tools, "rocm-smi", json.dumps(cards))
    assert amd_fields() == {"accelerators_per_node": "4", "accelerator_model_name": "AMD Instinct MI250X"}


def _without(answer: dict[str, Any], *path: str) -> dict[str, Any]:
    *above, last = path
    place = answer
    for key in above:
        place = place[key]
    del place[last]
    return answer


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (("asic",), "accelerator_model_name"),
        (("vram", "size", "unit"), "accelerator_memory_capacity"),
        (("vram", "type"), "accelerator_memory_configuration"),
        (("bus", "max_pcie_width"), "accelerator_host_interconnect"),
        (("clock",), "accelerator_frequency"),
        (("driver", "version"), "driver"),
    ],
)
def test_what_amd_smi_does_not_tell_of_one_device_is_unknown(tools: Path, path: tuple[str, ...], field: str) -> None:
    answers = amd_smi()
    static = json.loads(answers["static"])
    _without(static["gpu_data"][7], *path)
    made_tool(tools, "amd-smi", answers | {"static": json.dumps(static)})
    assert amd_fields() == {name: value for name, value in BY_AMD_SMI.items() if name != field}


def test_na_of_amd_smi_is_unknown(tools: Path) -> None:
    answers = amd_smi()
    made_tool(tools, "amd-smi", answers | {"static": answers["static"].replace('"HBM3E"', '"N/A"')})
    assert "accelerator_memory_configuration" not in amd_fields()


def test_no_accelerator_on_the_bus_is_said_but_not_counted(tmp_path: Path, tools: Path) -> None:
    found = accelerator_fields(made_host(tmp_path / "root"))
    assert set(found.values()) == {"N/A (no accelerator)"}
    assert "accelerators_per_node" not in found
    assert accelerator_fields(tmp_path / "nothing") == {}


# Software


def test_versions_come_from_package_metadata(tmp_path: Path) -> None:
    packages = {"torch": "2.9.0+cu130", "megatron_core": "0.16.1", "nvidia_nccl_cu13": "2.27.7", "numpy": "2.2"}
    for name, version in packages.items():
        about = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        write(tmp_path, {f"site/{name}-{version}.dist-info/METADATA": about})
    write(tmp_path, {"site/broken-1.dist-info/METADATA": "", "opt/rocm/.info/version": "7.0.2-56"})
    write(tmp_path, {"usr/local/cuda/version.json": json.dumps({"cuda": {"version": "13.0.48"}})})
    assert software_fields(tmp_path, [str(tmp_path / "site")], "NVIDIA driver 580.95.05") == {
        "framework": "PyTorch 2.9.0+cu130 + Megatron-Core 0.16.1",
        "other_software_stack": "NCCL 2.27.7, NVIDIA driver 580.95.05, CUDA toolkit 13.0.48, ROCm 7.0.2-56",
    }


def test_no_framework_without_torch(tmp_path: Path) -> None:
    write(tmp_path, {"site/megatron_core-0.16.1.dist-info/METADATA": "Name: megatron-core\nVersion: 0.16.1\n"})
    write(tmp_path, {"usr/local/cuda/version.json": "[1]"})
    assert software_fields(tmp_path, [str(tmp_path / "site")]) == {}


# Whatever they print


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["N/A", "XGMI"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["gpu_data", "asic", "market_name", "vram", "size", "value", "unit", "clock", "sys", "links"]
            )
            | st.sampled_from(["frequency_levels", "card0", "card1", "system", "Card Series", "link_type", "bus"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)
LINES = st.lists(
    st.sampled_from([*nvidia(count=2).values(), "GPU0 X", "GPU 0: x", "\t Link 0: 1 GB/s", ",,,,,", "1,2,3,4,5,6"])
    | st.text(max_size=20)
).map("\n".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(printed=JSON.map(json.dumps) | LINES)
def test_no_output_crashes_a_reader(tools: Path, printed: str) -> None:
    readers: dict[str, Callable[[], dict[str, str]]] = {
        "nvidia-smi": nvidia_fields,
        "amd-smi": amd_fields,
        "rocm-smi": amd_fields,
        "lscpu": lambda: processor_fields(tools),
        "dmidecode": lambda: memory_fields(tools),
    }
    for name, read in readers.items():
        # Bytes that no text has, too.
        (tools / ".answer").write_bytes(printed.encode("utf-8", "replace") + b"\xff\x00")
        (tools / name).write_text(f"#!/bin/sh\nexec /bin/cat {tools}/.answer\n", encoding="utf-8")
        (tools / name).chmod(0o755)
        found = read()
        (tools / name).unlink()
        assert all(value and value.isprintable() for value in found.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=30) | st.integers().map(lambda n: b"%d\n" % n), which=st.integers(0, 10**6))
def test_no_file_crashes_a_reader(tmp_path: Path, tools: Path, content: bytes, which: int) -> None:
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    add_disk(made_host(root, sockets=1, cores=1), "sda", 10**12)
    write(root, {"sys/class/net/eth0/type": 1, "sys/class/net/eth0/speed": 1000, "sys/class/net/eth0/device/a": 1})
    files = sorted(path for path in root.rglob("*") if path.is_file())
    files[which % len(files)].write_bytes(content)
    found = processor_fields(root) | memory_fields(root) | storage_fields(root) | network_fields(root)
    found |= system_fields(root) | accelerator_fields(root)
    assert all(value and value.isprintable() for value in found.values())
    assert machine_notes(root).isprintable()
