"""Operating system and versions, from made-up trees and package metadata."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from system_info.software import (
    read_cuda_version,
    read_operating_system,
    read_package_versions,
    read_rocm_version,
)
from tests.support.made_machines import made_host, write_files
from tests.support.paths import ROOT


def test_operating_system_needs_name_and_kernel(tmp_path: Path) -> None:
    assert read_operating_system(made_host(tmp_path)) == "Ubuntu 24.04.2 LTS, Linux 6.8.0-60-generic"
    (tmp_path / "etc/os-release").rename(tmp_path / "etc/other")
    assert read_operating_system(tmp_path) is None


def test_versions_come_from_the_first_folder_that_has_a_package(tmp_path: Path) -> None:
    for site, name, version in (
        ("a", "megatron_core", "0.16.1"),
        ("b", "megatron_core", "0.19.2"),
        ("b", "numpy", "2"),
    ):
        about = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        write_files(tmp_path, {f"{site}/{name}-{version}.dist-info/METADATA": about})
    write_files(tmp_path, {"a/torch-1.dist-info/METADATA": ""})
    folders = [str(tmp_path / name) for name in "ab"]
    assert read_package_versions(["megatron-core", "numpy", "torch", "absent"], folders) == {
        "megatron-core": "0.16.1",
        "numpy": "2",
    }


@pytest.mark.parametrize(
    ("content", "version"),
    [
        (json.dumps({"cuda": {"version": "13.0.48"}}), "13.0.48"),
        ("[1]", None),
        ('{"cuda": 1}', None),
        ("[" * 9999, None),
    ],
)
def test_cuda_and_rocm(tmp_path: Path, content: str, version: str | None) -> None:
    assert (read_cuda_version(tmp_path), read_rocm_version(tmp_path)) == (None, None)
    write_files(tmp_path, {"usr/local/cuda/version.json": content, "opt/rocm/.info/version": "7.0.2-56"})
    assert (read_cuda_version(tmp_path), read_rocm_version(tmp_path)) == (version, "7.0.2-56")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, system_info.accelerators, system_info.cpu, system_info.memory, system_info.software;"
        "sys.exit(bool({'torch', 'numpy', 'pynvml', 'gptoss20b', 'compliance', 'data_scripts'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=120).returncode == 0
