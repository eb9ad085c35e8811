"""Memory: control groups, and modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from system_info.memory import MemoryModule, read_cgroup_memory_left, read_memory_modules
from tests.support.made_machines import MODULES, made_tool, write_files

GIB = 2**30


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"max": 16 * GIB, "current": 12 * GIB}, 4 * GIB),
        # Pages that can be dropped do not count.
        ({"max": 16 * GIB, "current": 12 * GIB, "stat": f"anon 5\ninactive_file {3 * GIB}"}, 7 * GIB),
        ({"max": 16 * GIB, "current": 20 * GIB}, 0),
        ({"max": "max", "current": 12 * GIB}, None),
        ({}, None),
    ],
)
def test_what_a_containers_limit_leaves(tmp_path: Path, files: dict[str, object], left: int | None) -> None:
    write_files(tmp_path, {f"sys/fs/cgroup/memory.{name}": value for name, value in files.items()})
    assert read_cgroup_memory_left(tmp_path) == left


def test_modules_as_dmidecode_lists_them(tools: Path) -> None:
    assert read_memory_modules() == []
    made_tool(tools, "dmidecode", {"-t 17": MODULES})
    assert read_memory_modules() == [MemoryModule(96, "DDR5 5600 MT/s")] * 2
    made_tool(tools, "dmidecode", MODULES.replace("98304 MB", "Unknown"))
    assert read_memory_modules() == []  # a sum without it would be wrong
    made_tool(tools, "dmidecode", MODULES, status=1)  # not root
    assert read_memory_modules() == []
