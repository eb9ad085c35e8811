"""Why GPUs are missing: made-up drivers, containers, variables and builds of torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gptoss20b.tools.doctor.finding import Verdict
from gptoss20b.tools.doctor.gpus import check_gpu_count
from gptoss20b.tools.doctor.missing_gpus import TorchView, missing_gpus, read_torch_view
from system_info.gpu_report import Gpu, GpuReport
from tests.support.findings import assert_finding
from tests.support.made_machines import B200, MI355X, write_files

CPU_BUILD = TorchView(0, "2.13.0+cpu")
CUDA = TorchView(0, "2.13.0+cu130", cuda="13.0", error="CUDA driver initialization failed")
ROCM = TorchView(0, "2.13.0+rocm7.1", rocm="7.1", error="No HIP GPUs are available")
NEW_DRIVER = replace(B200, cuda_version="13.0")
DRIVER = {"proc/driver/nvidia/version": "NVRM version: 570.124.06"}
PCI = {"sys/bus/pci/devices/0000:1b:00.0/class": "0x030200", "sys/bus/pci/devices/0000:1b:00.0/vendor": "0x10de"}


def nvml(count: int, gpu: Gpu = NEW_DRIVER) -> GpuReport:
    return GpuReport("NVML", (gpu,) * count)


@pytest.mark.parametrize(
    ("files", "environment", "found", "fix"),
    [
        ({}, {}, "this node has no GPU", "node with GPUs"),
        (PCI, {}, "no driver is loaded", "modprobe"),
        ({".dockerenv": ""}, {}, "this container has no GPU", "--gpus all"),
        (PCI | {"run/.containerenv": ""}, {}, "this container has no GPU", "/dev/kfd"),
        ({}, {"container": "enroot", "NVIDIA_VISIBLE_DEVICES": "void"}, "(NVIDIA_VISIBLE_DEVICES=void)", "--gpus"),
    ],
)
def test_without_a_driver(
    tmp_path: Path, files: dict[str, str], environment: dict[str, str], found: str, fix: str
) -> None:
    missing = missing_gpus(8, CUDA, None, environment, write_files(tmp_path, files))
    assert_finding(missing, Verdict.FAIL, "torch sees none, expected 8 (DGXNGPU)", found, fix=fix)
    assert "config_CPU_1x2.sh" in missing.fix


@pytest.mark.parametrize(
    ("view", "report", "found", "fix"),
    [
        (CUDA, nvml(8, replace(B200, cuda_version="12.8")), "570.124.06 supports CUDA 12.8", "built for CUDA 12.8"),
        (CUDA, nvml(8), CUDA.error, "dmesg"),  # the driver is new enough
        (CUDA, nvml(8, replace(B200, cuda_version=None)), CUDA.error, "dmesg"),
        (
            CUDA,
            GpuReport("NVML", error="Driver/library version mismatch"),
            "Driver/library version mismatch",
            "restart",
        ),
        (CPU_BUILD, nvml(8), "torch 2.13.0+cpu is built without CUDA and ROCm", "GPU build"),
        (ROCM, nvml(8), "the GPUs are NVIDIA's", "CUDA build"),
        (CUDA, GpuReport("amdsmi", (MI355X,) * 8), "the GPUs are AMD's", "ROCm build"),
        (ROCM, GpuReport("amdsmi", (MI355X,) * 8), ROCM.error, "amd-smi"),
        (CUDA, None, CUDA.error, "dmesg"),  # a driver without its library and its tool
    ],
)
def test_with_a_driver(tmp_path: Path, view: TorchView, report: GpuReport | None, found: str, fix: str) -> None:
    missing = missing_gpus(8, view, report, {}, write_files(tmp_path, DRIVER))
    assert_finding(missing, Verdict.FAIL, found, fix=fix)
    assert (view.cuda is None) or ("built for CUDA 13.0" in missing.found) == ("supports" in missing.found)


@pytest.mark.parametrize(
    ("masks", "visible", "hiding"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, "CUDA_VISIBLE_DEVICES= hides"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 3, "CUDA_VISIBLE_DEVICES=0,1,2 hides"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,9,2,3,4,5,6,7"}, 2, "CUDA_VISIBLE_DEVICES=0,1,9"),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1, "CUDA_VISIBLE_DEVICES=0,-1,1"),
        ({"HIP_VISIBLE_DEVICES": "-1", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, 0, "HIP_VISIBLE_DEVICES=-1 hides"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2,GPU-3,GPU-4,GPU-5,GPU-6,GPU-7,GPU-8"}, 7, None),
        ({}, 7, None),
    ],
)
def test_hidden_gpus(tmp_path: Path, masks: dict[str, str], visible: int, hiding: str | None) -> None:
    missing = missing_gpus(8, replace(CUDA, count=visible), nvml(8), masks, write_files(tmp_path, DRIVER))
    if hiding:
        assert_finding(missing, Verdict.FAIL, hiding, fix=f"unset {hiding.split('=')[0]}")
    else:
        assert_finding(missing, Verdict.FAIL, "torch sees 7", "NVML lists 8", fix="a layout for 7")
    assert ("config_CPU_1x2.sh" in missing.fix) == (visible == 0)


def test_torch_s_view_of_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have one.\nMore")

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: False, init=init))
    error = "Found no NVIDIA driver on your system."
    assert read_torch_view() == TorchView(0, torch.__version__, "13.0", torch.version.hip, error)


def test_torch_s_view_of_gpus_makes_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    # Any other function of torch.cuda would be an AttributeError.
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: True, device_count=lambda: 9))
    assert read_torch_view().count == 9
    assert check_gpu_count(8).verdict is Verdict.PASS
    assert check_gpu_count(10).verdict is Verdict.FAIL
