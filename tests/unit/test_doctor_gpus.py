"""The doctor's findings on GPUs, from reports of the vendors' sources and GPUs as torch would list them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gptoss20b.config import resolve
from gptoss20b.memory import Moment, PeakMemory
from gptoss20b.numa import Binding
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.gpus import (
    VisibleGpu,
    check_binding,
    check_gpu_health,
    check_gpu_memory,
    check_gpu_models,
    check_gpus,
    list_visible_gpus,
)
from gptoss20b.tools.doctor.missing_gpus import TorchView
from system_info.gpu_report import GpuReport
from tests.support.findings import assert_finding
from tests.support.made_machines import B200

GIB = 2**30
PEAK = PeakMemory(50 * GIB, (Moment(80 * GIB, 20 * GIB), Moment(85 * GIB, 10 * GIB)))
VISIBLE_B200, H200 = VisibleGpu("NVIDIA B200", 180 * GIB, 178 * GIB), VisibleGpu("NVIDIA H200", GIB, GIB)


def verdicts(found: Sequence[Finding]) -> list[str]:
    return [str(finding.verdict) for finding in found]


@pytest.mark.parametrize(
    ("field", "value", "finding", "verdict", "text"),
    [
        ("driver_version", "570.124.06", 0, "pass", "570.124.06 (NVML)"),
        ("processes", ("python (4242)", "vlc (5)"), 1, "warn", "GPU 1: python (4242); GPU 1: vlc (5)"),
        ("uncorrectable_errors", 2, 2, "fail", "GPU 1: 2 uncorrectable"),
        ("row_remap_pending", True, 2, "fail", "remapped"),
        ("row_remap_failed", True, 2, "fail", "remapping"),
        ("recovery_action", "Drain and Reset", 2, "fail", "Drain and Reset"),
        ("throttle_reasons", ("hw_thermal_slowdown",), 2, "warn", "GPU 1: hw_thermal_slowdown"),
    ],
)
def test_driver_processes_and_health(field: str, value: Any, finding: int, verdict: str, text: str) -> None:
    found = check_gpu_health(GpuReport("NVML", (B200, replace(B200, **{field: value}))))
    assert [each.name for each in found] == ["GPU driver", "GPU processes", "GPU health"]
    assert verdicts(found) == [verdict if index == finding else "pass" for index in range(3)]
    assert text in found[finding].found
    assert "GPU 0" not in found[finding].found


def test_without_a_source_or_with_one_that_reports_less() -> None:
    assert verdicts(check_gpu_health(None)) == ["skipped"] * 3
    assert verdicts(check_gpu_health(GpuReport("nvidia-smi", (B200,)))) == ["pass", "skipped", "skipped"]
    failure = check_gpu_health(GpuReport("NVML", error="no communication with the driver"))
    assert verdicts(failure) == ["fail", "skipped", "skipped"]
    assert failure[0].found == "NVML: no communication with the driver"


@pytest.mark.parametrize(
    ("gpus", "listed", "verdict", "found", "fix"),
    [
        ([VISIBLE_B200] * 8, 8, Verdict.PASS, "8 x NVIDIA B200", ""),
        ([VISIBLE_B200] * 8, 9, Verdict.PASS, "8 x NVIDIA B200 (NVML lists 9)", ""),
        ([VISIBLE_B200] * 8 + [H200], 9, Verdict.PASS, "9, of which the run uses 8 x NVIDIA B200", ""),
        ([VISIBLE_B200] * 7 + [H200], 8, Verdict.WARN, "7 x NVIDIA B200 + 1 x NVIDIA H200", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_the_ranks_have_gpus_of_one_model(
    gpus: list[VisibleGpu], listed: int, verdict: Verdict, found: str, fix: str
) -> None:
    assert_finding(check_gpu_models(8, gpus, GpuReport("NVML", (B200,) * listed)), verdict, found, fix=fix)


@pytest.mark.parametrize(
    ("free", "verdict"),
    # Twice the mean rows take 80 + 2 x 20 GiB, a hundredth more of free blocks, and 5 GiB outside of the allocator.
    [(126.3, Verdict.PASS), (126.1, Verdict.WARN), (100, Verdict.WARN), (99.9, Verdict.FAIL)],
)
def test_the_fullest_gpu_holds_a_step_and_should_hold_unbalanced_rows(free: float, verdict: Verdict) -> None:
    fullest = VisibleGpu("NVIDIA B200", 180 * GIB, round(free * GIB))
    found = check_gpu_memory([VISIBLE_B200] * 5 + [fullest, VISIBLE_B200], PEAK)
    texts = ["101.0 GiB", "121.2"] + ["times"] * (free > 106.1) + ["DOES NOT FIT"] * (free < 106)
    assert_finding(found, verdict, f"{free:.1f} GiB of 180.0 GiB free on GPU 5", *texts)


def test_all_checks_of_the_run_s_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = "gptoss20b.tools.doctor.gpus"
    monkeypatch.setattr(f"{gpus}.read_gpus", lambda: None)
    monkeypatch.setattr(f"{gpus}.peak_memory", lambda config: PEAK)
    # The ninth GPU is full, and no rank's.
    monkeypatch.setattr(f"{gpus}.list_visible_gpus", lambda: [VISIBLE_B200] * 8 + [H200])
    found = check_gpus(resolve({}))
    assert verdicts(found) == ["pass", "skipped", "skipped", "skipped", "pass", "skipped"]
    assert [found[0].name, found[-2].name, found[-1].name] == ["GPUs", "GPU memory", "NUMA binding"]

    monkeypatch.setattr(f"{gpus}.list_visible_gpus", lambda: [VISIBLE_B200] * 7)
    monkeypatch.setattr(f"{gpus}.read_torch_view", lambda: TorchView(7, "2.13.0+cu130", cuda="13.0"))
    count, *_, memory, _ = check_gpus(resolve({}))
    assert_finding(count, Verdict.FAIL, "torch sees 7, expected 8 (DGXNGPU)", fix="DGXNGPU")
    assert memory.verdict is Verdict.PASS

    def fail() -> list[VisibleGpu]:
        raise RuntimeError("CUDA error: unknown error\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(f"{gpus}.list_visible_gpus", fail)
    count, *_, memory, _ = check_gpus(resolve({}))
    assert_finding(count, Verdict.FAIL, "CUDA error: unknown error Compile", fix="driver")
    assert memory.verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("binding", "verdict", "text", "fix"),
    [
        (Binding((0, 0, 1, 1), is_used=True, reason="torchrun"), Verdict.PASS, "0 0 1 1", ""),
        (Binding((0, 1), reason="numactl: No such file", fix="install numactl"), Verdict.WARN, "numactl", "install"),
        (Binding((None, 1), reason="unknown"), Verdict.SKIPPED, "unknown", ""),
    ],
)
def test_the_binding_is_shown(
    monkeypatch: pytest.MonkeyPatch, binding: Binding, verdict: Verdict, text: str, fix: str
) -> None:
    gpus = "gptoss20b.tools.doctor.gpus"
    monkeypatch.setattr(f"{gpus}.list_gpu_addresses", list)
    monkeypatch.setattr(f"{gpus}.choose_binding", lambda mode, addresses: binding if mode == "none" else None)
    assert_finding(check_binding(resolve({"NUMA_BINDING": "none"})), verdict, text, fix=fix)


def test_torch_lists_what_this_machine_has() -> None:
    import torch

    assert len(list_visible_gpus()) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
