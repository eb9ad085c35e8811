"""Libraries and tools of both vendors: who is asked, and what a failure means."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from system_info.accelerators import read_gpus, read_interconnect
from system_info.gpu_report import GpuReport, Interconnect
from tests.support.made_machines import (
    B200,
    LibraryNotFoundError,
    amd_smi,
    made_amdsmi,
    made_pynvml,
    made_tool,
    nvidia_smi,
    raising,
    unsupported,
)

LIMIT_S = 20.0
SetModule = Callable[[str, Any], None]


@pytest.fixture
def set_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetModule:
    """Replace a library, on a machine that has no other, and no tool on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("pynvml", "amdsmi"):
        monkeypatch.setitem(sys.modules, name, None)
    return lambda name, module: monkeypatch.setitem(sys.modules, name, module)


def read_source() -> tuple[str, int]:
    """Return the source that answered, and its number of GPUs."""
    report = read_gpus(LIMIT_S)
    assert report is not None
    assert report.error is None
    return report.source, len(report.gpus)


def test_libraries_are_asked_before_tools_and_nvidias_before_amds(tmp_path: Path, set_module: SetModule) -> None:
    assert read_gpus(LIMIT_S) is None
    made_tool(tmp_path, "amd-smi", amd_smi(count=4))
    assert read_source() == ("amd-smi", 4)
    set_module("amdsmi", made_amdsmi())
    assert read_source() == ("amdsmi", 2)
    set_module("pynvml", made_pynvml(nvmlDeviceGetCount=lambda: 0))
    assert read_source() == ("amdsmi", 2)
    made_tool(tmp_path, "nvidia-smi", nvidia_smi(count=4))
    set_module("pynvml", made_pynvml())
    assert read_gpus(LIMIT_S) == read_gpus() == GpuReport("NVML", (B200, B200))
    set_module("pynvml", made_pynvml(nvmlInit=raising(LibraryNotFoundError())))
    assert read_source() == ("nvidia-smi", 4)


@pytest.mark.parametrize(
    ("limit_s", "failure", "message"),
    [
        (LIMIT_S, unsupported, "LibraryError: Not Supported"),
        (None, unsupported, "Not Supported"),
        (LIMIT_S, lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (0.5, lambda: time.sleep(60), "0.5 s"),
    ],
)
def test_a_library_that_fails_is_reported(
    tmp_path: Path, set_module: SetModule, limit_s: float | None, failure: Callable[[], None], message: str
) -> None:
    set_module("pynvml", made_pynvml(nvmlInit=failure))
    made_tool(tmp_path, "nvidia-smi", nvidia_smi())  # not asked: it would call the library
    began = time.monotonic()
    report = read_gpus(limit_s)
    assert report is not None
    assert (report.source, report.gpus) == ("NVML", ())
    assert message in (report.error or "")
    assert time.monotonic() - began < LIMIT_S


def test_links_come_from_the_tool_of_the_vendor(tmp_path: Path, set_module: SetModule) -> None:
    made_tool(tmp_path, "nvidia-smi", nvidia_smi(count=2))
    made_tool(tmp_path, "amd-smi", amd_smi(count=2))
    for source, link in (("NVML", "NVLink"), ("nvidia-smi", "NVLink"), ("amdsmi", "XGMI"), ("amd-smi", "XGMI")):
        assert (read_interconnect(GpuReport(source, (B200, B200))).link or "").startswith(link)
    assert read_interconnect(GpuReport("NVML", (B200,))) == Interconnect()
