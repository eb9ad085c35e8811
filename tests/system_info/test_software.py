"""Operating system and versions, from made-up trees and package metadata."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from system_info.software import read_cuda_version, read_operating_system, read_package_versions, read_rocm_version
from tests.support.made_machines import made_host, write_files


def test_operating_system_needs_name_and_kernel(tmp_path: Path) -> None:
    assert read_operating_system(made_host(tmp_path)) == "Ubuntu 24.04.2 LTS, Linux 6.8.0-60-generic"
    (tmp_path / "etc/os-release").rename(tmp_path / "etc/other")
    assert read_operating_system(tmp_path) is None


def test_versions_are_those_that_an_import_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for site, version in (("a", "0.16.1"), ("b", "0.19.2")):
        about = f"Metadata-Version: 2.1\nName: megatron-core\nVersion: {version}\n"
        write_files(tmp_path, {f"{site}/megatron_core-{version}.dist-info/METADATA": about})
    monkeypatch.setattr(sys, "path", [str(tmp_path / name) for name in "ab"])
    assert read_package_versions(["megatron-core", "absent"]) == {"megatron-core": "0.16.1"}


@pytest.mark.parametrize(
    ("content", "version"),
    [(json.dumps({"cuda": {"version": "13.0.48"}}), "13.0.48"), ("[1]", None), ('{"cuda": 1}', None), ("{", None)],
)
def test_cuda_and_rocm(tmp_path: Path, content: str, version: str | None) -> None:
    assert (read_cuda_version(tmp_path), read_rocm_version(tmp_path)) == (None, None)
    write_files(tmp_path, {"usr/local/cuda/version.json": content, "opt/rocm/.info/version": "7.0.2-56"})
    assert (read_cuda_version(tmp_path), read_rocm_version(tmp_path)) == (version, "7.0.2-56")
