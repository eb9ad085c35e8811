"""Memory: the kernel's figures, control groups, and modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from system_info.memory import Memory, MemoryModule, read_cgroup_memory_left, read_memory, read_memory_modules
from tests.support.made_machines import MODULES, made_tool, meminfo, write_files

GIB = 2**30


def test_the_kernels_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this_machine = read_memory()
    assert this_machine is not None
    assert 0 < this_machine.available <= this_machine.total
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path / "proc"))
    assert read_memory() is None
    write_files(tmp_path, {"proc/meminfo": meminfo(2**26, 2**25, swap_kb=1024), "proc/vmstat": "pswpin 0\npswpout 0"})
    assert read_memory() == Memory(64 * GIB, 32 * GIB, 2**20)
    for damaged in ("", "MemTotal: x kB", "MemTotal:"):
        write_files(tmp_path, {"proc/meminfo": damaged})
        assert read_memory() is None


def test_a_containers_limit_counts_without_pages_that_can_be_dropped(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    assert read_cgroup_memory_left(tmp_path) is None
    write_files(tmp_path, {f"{group}.max": 16 * GIB, f"{group}.current": 12 * GIB})
    assert read_cgroup_memory_left(tmp_path) == 4 * GIB
    write_files(tmp_path, {f"{group}.stat": f"anon 5\ninactive_file {3 * GIB}"})
    assert read_cgroup_memory_left(tmp_path) == 7 * GIB
    write_files(tmp_path, {f"{group}.current": 20 * GIB})
    assert read_cgroup_memory_left(tmp_path) == 0
    write_files(tmp_path, {f"{group}.max": "max"})
    assert read_cgroup_memory_left(tmp_path) is None


def test_modules_as_dmidecode_lists_them(tools: Path) -> None:
    assert read_memory_modules() == []
    made_tool(tools, "dmidecode", {"-t 17": MODULES})
    assert read_memory_modules() == [MemoryModule(96, "DDR5 5600 MT/s")] * 2
    made_tool(tools, "dmidecode", MODULES.replace("98304 MB", "Unknown"))
    assert read_memory_modules() == []  # a sum without it would be wrong
    made_tool(tools, "dmidecode", MODULES, status=1)  # not root
    assert read_memory_modules() == []
