"""The GPUs, as torch sees them, which is how the run will, and as the vendor's library or tool reports them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from system_info.gpu_report import Gpu, GpuReport

from ...config import Config
from .finding import Finding, failed, gib, passed, skipped, warned

# Estimate for contexts, NCCL's buffers and fragmentation of the allocator on each GPU.
_RESERVE = 2 * 2**30
_MAX_SHOWN = 6


@dataclass(frozen=True)
class VisibleGpu:
    """A GPU that torch sees: its model, and its total and free memory in bytes."""

    model: str
    total: int
    free: int


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


def check_gpu_count(config: Config, gpus: Sequence[VisibleGpu], report: GpuReport | None) -> Finding:
    """Check that there is a GPU for each rank, all of one model.

    Args:
        config: configuration of the run.
        gpus: GPUs that torch sees.
        report: report of the vendor's library or tool; None without one.
    """
    name, needed = "GPUs", config.parallel.gpus_per_node
    models = Counter(gpu.model for gpu in gpus[:needed])
    found = " + ".join(f"{count} x {model}" for model, count in models.items()) or "torch sees none"
    if len(gpus) > needed:
        found = f"{len(gpus)}, of which the run uses {found}"
    if report is not None and report.error is None and len(report.gpus) != len(gpus):
        found += f" ({report.source} lists {len(report.gpus)})"
    if len(gpus) < needed:
        import torch

        fix = (
            f"set DGXNGPU, or see what CUDA_VISIBLE_DEVICES hides and whether torch {torch.__version__} fits the driver"
        )
        if not gpus:
            fix += "; for a run without GPUs, CUDA_VISIBLE_DEVICES=-1"
        return failed(name, f"{found}, expected {needed} (DGXNGPU)", fix)
    if len(models) > 1:
        fix = "choose equal ones by CUDA_VISIBLE_DEVICES: the slowest sets the pace"
        return warned(name, f"{found}, expected one model", fix)
    return passed(name, found)


def check_gpu_memory(gpus: Sequence[VisibleGpu], state: int, activations: int) -> Finding:
    """Check that the free memory holds the state, which is exact, and the activations, which are an estimate.

    Args:
        gpus: GPUs of the run, one or more.
        state: bytes of weights, gradients and optimizer on each.
        activations: bytes on each.
    """
    name = "GPU memory"
    fullest = min(gpus, key=lambda gpu: gpu.free)
    need = f"{gib(state)} of state, about {gib(activations)} of activations and {gib(_RESERVE)} of contexts"
    free = f"{gib(fullest.free)} of {gib(fullest.total)} free on GPU {gpus.index(fullest)}, the fullest"
    fix = "end what else is on it, raise EXPERT_PARALLEL, or lower MICRO_BATCH_SIZE"
    if fullest.free < state + _RESERVE:
        return failed(name, f"{free}; needed: {need}", fix)
    if fullest.free < state + activations + _RESERVE:
        return warned(name, f"{free}; needed: {need}, which is an upper estimate", fix)
    return passed(name, f"{free}; needed: {need}")


def check_gpu_health(report: GpuReport | None) -> list[Finding]:
    """Check driver, processes and errors.

    Args:
        report: report of the vendor's library or tool; None without one.
    """
    names = ("GPU driver", "GPU processes", "GPU health")
    if report is None:
        return [skipped(name, "no NVML, nvidia-smi, amd-smi or rocm-smi is installed") for name in names]
    if report.error is not None:
        fix = "load the driver or restart the node; in a container, start it with its GPUs"
        unread = [skipped(name, f"{report.source} fails") for name in names[1:]]
        return [failed(names[0], f"{report.source}: {report.error}", fix), *unread]
    driver = passed(names[0], f"{report.driver_version or 'version not reported'} ({report.source})")
    if report.source == "rocm-smi":
        return [driver, *(skipped(name, "rocm-smi does not report them; amd-smi does") for name in names[1:])]
    processes = passed(names[1], "none")
    if users := [f"GPU {index}: {process}" for index, gpu in enumerate(report.gpus) for process in gpu.processes]:
        fix = "end them if they are yours: they take memory and time from the run"
        processes = warned(names[1], _join_first(users), fix)
    return [driver, processes, _judge_health(names[2], report)]


def _judge_health(name: str, report: GpuReport) -> Finding:
    faults = [f"GPU {index}: {fault}" for index, gpu in enumerate(report.gpus) for fault in _list_faults(gpu)]
    if faults:
        fix = "drain the node, reset the GPU or restart, and have it replaced if that comes back"
        return failed(name, _join_first(faults), fix)
    slowed = [f"GPU {index}: {reason}" for index, gpu in enumerate(report.gpus) for reason in gpu.throttle_reasons]
    if slowed:
        return warned(name, f"slowed down: {_join_first(slowed)}", "look at cooling and power")
    return passed(name, f"no uncorrectable error ({report.source})")


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


def _join_first(items: Sequence[str]) -> str:
    more = [f"and {len(items) - _MAX_SHOWN} more"] if len(items) > _MAX_SHOWN else []
    return "; ".join([*items[:_MAX_SHOWN], *more])
