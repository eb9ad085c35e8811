"""The doctor's findings on GPUs, from reports of the vendors' sources and GPUs as torch would list them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from gptoss20b.config import resolve
from gptoss20b.tools.doctor.finding import Finding, Verdict
from gptoss20b.tools.doctor.gpus import (
    VisibleGpu,
    check_gpu_count,
    check_gpu_health,
    check_gpu_memory,
    list_visible_gpus,
)
from system_info.gpu_report import Gpu, GpuReport
from tests.support.findings import assert_finding

GIB = 2**30
B200, H200 = VisibleGpu("NVIDIA B200", 180 * GIB, 178 * GIB), VisibleGpu("NVIDIA H200", GIB, GIB)
HEALTHY = Gpu(name="NVIDIA B200", driver_version="570.124.06", uncorrectable_errors=0)


def health(last: Gpu = HEALTHY, source: str = "NVML") -> list[Finding]:
    """Return the findings on two GPUs, of which the first is healthy."""
    found = check_gpu_health(GpuReport("NVIDIA", source, (HEALTHY, last)))
    assert [finding.name for finding in found] == ["GPU driver", "GPU processes", "GPU health"]
    return found


def verdicts(found: Sequence[Finding]) -> list[str]:
    return [str(finding.verdict) for finding in found]


def test_healthy_gpus() -> None:
    found = health()
    assert verdicts(found) == ["pass"] * 3
    assert found[0].found == "570.124.06 (NVML)"


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        (replace(HEALTHY, uncorrectable_errors=2), "2 uncorrectable"),
        (replace(HEALTHY, row_remap_pending=True), "remapped"),
        (replace(HEALTHY, row_remap_failed=True), "remapping"),
        (replace(HEALTHY, recovery_action="Drain and Reset"), "Drain and Reset"),
    ],
)
def test_a_broken_gpu_fails(fault: Gpu, key: str) -> None:
    found = health(fault)
    assert verdicts(found) == ["pass", "pass", "fail"]
    assert found[2].found.startswith("GPU 1: ")
    assert key in found[2].found
    assert "GPU 0" not in found[2].found


def test_a_gpu_that_slows_itself_down_is_a_warning() -> None:
    found = health(replace(HEALTHY, throttle_reasons=("hw_thermal_slowdown",)))
    assert verdicts(found) == ["pass", "pass", "warn"]
    assert "GPU 1: hw_thermal_slowdown" in found[2].found


def test_other_processes_are_a_warning_and_many_are_counted() -> None:
    found = health(replace(HEALTHY, processes=("python (4242)", "vlc (5)")))
    assert verdicts(found) == ["pass", "warn", "pass"]
    assert found[1].found == "GPU 1: python (4242); GPU 1: vlc (5)"
    many = health(replace(HEALTHY, processes=tuple(f"p ({pid})" for pid in range(20))))
    assert many[1].found.endswith("GPU 1: p (5); and 14 more")


def test_without_a_source_or_with_one_that_reports_less() -> None:
    assert verdicts(check_gpu_health(None)) == ["skipped"] * 3
    assert verdicts(health(source="rocm-smi")) == ["pass", "skipped", "skipped"]
    failure = check_gpu_health(GpuReport("NVIDIA", "nvidia-smi", error="no communication with the driver"))
    assert verdicts(failure) == ["fail", "skipped", "skipped"]
    assert failure[0].found == "nvidia-smi: no communication with the driver"


def count(gpus: Sequence[VisibleGpu], listed: int | None = None) -> Finding:
    report = None if listed is None else GpuReport("NVIDIA", "NVML", (HEALTHY,) * listed)
    return check_gpu_count(resolve({}), gpus, report)


def test_there_is_a_gpu_for_each_rank() -> None:
    assert (count([B200] * 8).verdict, count([B200] * 8).found) == (Verdict.PASS, "8 x NVIDIA B200")
    few = count([B200] * 7, listed=8)
    assert_finding(few, Verdict.FAIL, "7 x NVIDIA B200 (NVML lists 8)", "DGXNGPU", fix="CUDA_VISIBLE_DEVICES")
    assert_finding(count([], listed=8), Verdict.FAIL, "NVML lists 8", fix="CUDA_VISIBLE_DEVICES=-1")


def test_more_gpus_than_ranks_are_idle_and_other_models_a_warning() -> None:
    assert_finding(count([B200] * 8 + [H200]), Verdict.PASS, "9, of which the run uses 8 x NVIDIA B200")
    assert_finding(count([B200] * 7 + [H200]), Verdict.WARN, "7 x NVIDIA B200 + 1 x NVIDIA H200")


@pytest.mark.parametrize(
    ("free", "verdict"),
    [(130, Verdict.PASS), (129.9, Verdict.WARN), (52, Verdict.WARN), (51.9, Verdict.FAIL)],
)
def test_the_fullest_gpu_holds_the_state_and_should_hold_the_activations(free: float, verdict: Verdict) -> None:
    fullest = VisibleGpu("NVIDIA B200", 180 * GIB, round(free * GIB))
    found = check_gpu_memory([B200] * 5 + [fullest, B200], 50 * GIB, 78 * GIB)
    assert_finding(found, verdict, f"{free:.1f} GiB of 180.0 GiB free on GPU 5", "50.0 GiB", "78.0 GiB")


def test_torch_lists_what_this_machine_has() -> None:
    import torch

    assert len(list_visible_gpus()) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
