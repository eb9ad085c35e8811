"""The GPUs, as torch sees them, which is how the run will, and as the vendor's library or tool reports them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from system_info.accelerators import read_gpus
from system_info.files import one_line
from system_info.gpu_report import Gpu, GpuReport

from ...config import Config
from ...memory import RECOMMENDED_IMBALANCE, PeakMemory, peak_memory
from ...numa import choose_binding, list_gpu_addresses
from .finding import Finding, failed, gib, judged, passed, skipped, warned
from .missing_gpus import missing_gpus, read_torch_view

# Not measured: the context of the driver, the communicators, and the workspaces of the vendors' libraries on each GPU.
_OUTSIDE_BYTES = 5 * 2**30


@dataclass(frozen=True)
class VisibleGpu:
    """A GPU that torch sees: its model, and its total and free memory in bytes."""

    model: str
    total: int
    free: int


def check_gpus(config: Config) -> list[Finding]:
    """Check number, driver, processes, health and free memory of the GPUs."""
    needed = config.parallel.gpus_per_node
    report = read_gpus()  # before torch, whose contexts would be listed among the processes
    try:
        gpus = list_visible_gpus()
    except RuntimeError as error:  # torch's for every error of the driver
        gpus, count = [], failed("GPUs", one_line(str(error)), "load the driver or restart the node")
    else:
        count = check_gpu_models(needed, gpus, report)
        if len(gpus) < needed:
            count = missing_gpus(needed, read_torch_view(), report, os.environ)
    memory, binding = (skipped(name, "torch sees no GPU") for name in ("GPU memory", "NUMA binding"))
    if gpus:
        binding = check_binding(config)
        memory = check_gpu_memory(gpus[:needed], peak_memory(config))
    return [count, *check_gpu_health(report), memory, binding]


def check_gpu_count(needed: int) -> Finding:
    """Check that torch sees a GPU for each rank, without a context on any of them."""
    view = read_torch_view()
    if view.count < needed:
        return missing_gpus(needed, view, read_gpus(), os.environ)
    return passed("GPUs", f"torch sees {view.count}")


def check_binding(config: Config) -> Finding:
    """Report the NUMA node of each GPU, and what will bind the ranks to it."""
    name, binding = "NUMA binding", choose_binding(config.execution.numa_binding, list_gpu_addresses())
    if not binding.is_used and not binding.fix:
        return skipped(name, binding.reason)
    found = f"{binding.reason}; NUMA nodes of the GPUs: {' '.join(map(str, binding.nodes))}"
    return judged(name, found, binding.fix, warns=bool(binding.fix))


def list_visible_gpus() -> list[VisibleGpu]:
    """Return the GPUs that torch sees, in its order.

    Raises:
        RuntimeError: the driver does not answer for one of them.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    gpus = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        gpus.append(VisibleGpu(torch.cuda.get_device_name(number), total, free))
    return gpus


def check_gpu_models(needed: int, gpus: Sequence[VisibleGpu], report: GpuReport | None) -> Finding:
    """Check that the GPUs of all ranks are of one model."""
    models = Counter(gpu.model for gpu in gpus[:needed])
    found = " + ".join(f"{count} x {model}" for model, count in models.items())
    if len(gpus) > needed:
        found = f"{len(gpus)}, of which the run uses {found}"
    if report is not None and report.error is None and len(report.gpus) != len(gpus):
        found += f" ({report.source} lists {len(report.gpus)})"
    fix = "choose equal ones by CUDA_VISIBLE_DEVICES: the slowest sets the pace"
    return judged("GPUs", found, fix, warns=len(models) > 1)


def check_gpu_memory(gpus: Sequence[VisibleGpu], peak: PeakMemory) -> Finding:
    """Check that each GPU's free bytes hold the peak of a step, and its allocator's with unbalanced routing."""
    fullest = min(gpus, key=lambda gpu: gpu.free)
    room = fullest.free - _OUTSIDE_BYTES
    free = f"{gib(fullest.free)} of {gib(fullest.total)} free on GPU {gpus.index(fullest)}, the fullest"
    found = f"{free}; a step, beside {gib(_OUTSIDE_BYTES)} of contexts, takes {peak.describe(room)}"
    fix = (
        f"end what else is on it, set RECOMPUTE=moe_act, raise EXPERT_PARALLEL, or lower MICRO_BATCH_SIZE, until "
        f"{RECOMMENDED_IMBALANCE:g} times the mean rows fit"
    )
    return judged("GPU memory", found, fix, fails=fullest.free < peak.live_bytes(), warns=not peak.fits(room))


def check_gpu_health(report: GpuReport | None) -> list[Finding]:
    """Check driver, processes and errors, as the vendor's library or tool reports them."""
    names = ("GPU driver", "GPU processes", "GPU health")
    if report is None:
        return [skipped(name, "neither NVML, nvidia-smi, amdsmi nor amd-smi is installed") for name in names]
    if report.error is not None:
        fix = "load the driver or restart the node; in a container, start it with its GPUs"
        unread = [skipped(name, f"{report.source} fails") for name in names[1:]]
        return [failed(names[0], f"{report.source}: {report.error}", fix), *unread]
    version = next((gpu.driver_version for gpu in report.gpus if gpu.driver_version), "version not reported")
    driver = passed(names[0], f"{version} ({report.source})")
    if report.source == "nvidia-smi":
        return [driver, *(skipped(name, "only NVML is asked for it") for name in names[1:])]
    users, faults, slowed = (
        "; ".join(f"GPU {index}: {text}" for index, gpu in enumerate(report.gpus) for text in texts(gpu))
        for texts in (lambda gpu: gpu.processes, _list_faults, lambda gpu: gpu.throttle_reasons)
    )
    health = passed(names[2], f"no uncorrectable error ({report.source})")
    if faults:
        fix = "drain the node, reset the GPU or restart, and have it replaced if that comes back"
        health = failed(names[2], faults, fix)
    elif slowed:
        health = warned(names[2], f"slowed down: {slowed}", "look at cooling and power")
    users_fix = "end them if they are yours: they take memory and time from the run"
    return [driver, judged(names[1], users or "none", users_fix, warns=bool(users)), health]


def _list_faults(gpu: Gpu) -> Iterator[str]:
    """Yield what ends a run sooner or later."""
    if gpu.uncorrectable_errors:
        yield f"{gpu.uncorrectable_errors} uncorrectable memory errors since the driver was loaded"
    if gpu.row_remap_pending:
        yield "a memory row is to be remapped"
    if gpu.row_remap_failed:
        yield "remapping of a memory row failed"
    if gpu.recovery_action:
        yield f"the driver asks for: {gpu.recovery_action}"
