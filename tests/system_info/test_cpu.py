"""Processors, from trees of /proc and /sys."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from system_info.cpu import Processors, read_cpu_quota, read_processors
from tests.support.made_machines import made_host, made_tool, write_files

CPU = "sys/devices/system/cpu"


def test_two_sockets(tmp_path: Path) -> None:
    assert read_processors(made_host(tmp_path, sockets=2, cores=4)) == Processors(
        models=("INTEL(R) XEON(R) PLATINUM 8570",),
        cores=(4, 4),
        threads=(8, 8),
        caches={"L1d": (48,) * 8, "L1i": (32,) * 8, "L2": (2048,) * 8, "L3": (30720,) * 2},
    )


@pytest.mark.parametrize(
    ("base", "highest", "model", "expected"),
    [
        (2_100_000, 4_000_000, "X", (2.1, 4.0)),
        (None, 3_700_000, "X", (None, 3.7)),
        (None, None, "Intel(R) Xeon(R) CPU @ 2.60GHz", (2.6, None)),
        (2_100_000, None, "Intel(R) Xeon(R) CPU @ 2.60GHz", (2.1, None)),
        (None, None, "AMD EPYC", (None, None)),
    ],
)
def test_frequency(
    tmp_path: Path, base: int | None, highest: int | None, model: str, expected: tuple[float | None, float | None]
) -> None:
    root = made_host(tmp_path, sockets=1, model=model)
    for name, khz in (("base_frequency", base), ("cpuinfo_max_freq", highest)):
        if khz is not None:
            write_files(root, {f"{CPU}/cpu3/cpufreq/{name}": khz})
    found = read_processors(root)
    assert (found.base_ghz, found.max_ghz) == expected


def test_lscpu_names_a_processor_that_the_kernel_does_not(tmp_path: Path, tools: Path) -> None:
    root = made_host(tmp_path / "root", model=None)
    assert read_processors(root).models == ()
    made_tool(tools, "lscpu", "Vendor ID:     ARM\n  Model name:  indented\nModel name:   Neoverse-V2")
    assert read_processors(root).models == ("Neoverse-V2",)
    made_tool(tools, "lscpu", "Model name:   -")
    assert read_processors(root).models == ()
    # Two kinds of cores, each named once.
    write_files(root, {"proc/cpuinfo": "model name\t: A\nmodel name\t: B\nmodel name\t: A"})
    assert read_processors(root).models == ("A", "B")


def test_what_the_machine_does_not_show_is_empty(tmp_path: Path, tools: Path) -> None:
    root = write_files(made_host(tmp_path / "root"), {f"{CPU}/cpu1/topology/physical_package_id": -1})
    found = read_processors(root)
    assert (found.cores, found.threads) == ((), ())
    assert read_processors(tmp_path / "nothing") == Processors()


def test_offline_processors_are_not_counted(tmp_path: Path) -> None:
    root = made_host(tmp_path, sockets=1, cores=2)
    for cpu in ("cpu2", "cpu3"):
        shutil.rmtree(root / CPU / cpu / "topology")
    write_files(root, {f"{CPU}/offline": "2-3", "proc/cpuinfo": "flags : fpu hypervisor sse2\nmodel name : X"})
    found = read_processors(root)
    assert (found.threads, found.offline, found.is_virtual) == ((2,), "2-3", True)


@pytest.mark.parametrize(("content", "quota"), [("150000 100000", 1.5), ("max 100000", None), (None, None)])
def test_quota_of_a_container(tmp_path: Path, content: str | None, quota: float | None) -> None:
    if content is not None:
        write_files(tmp_path, {"sys/fs/cgroup/cpu.max": content})
    assert read_cpu_quota(tmp_path) == quota
