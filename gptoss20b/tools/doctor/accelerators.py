"""The GPUs: as torch sees them, which is how the run will, and as the vendor's tool describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...config import Config
from .finding import Finding, failed, gib, passed, skipped, warned
from .vendor_tools import ToolReport

# Contexts, NCCL's buffers and the allocator's rest on each GPU; an estimate.
_RESERVE = 2 * 2**30
_SHOWN = 6
_MANY = "and {} more"


@dataclass(frozen=True)
class Device:
    """A GPU that torch sees: its model, and its memory in bytes."""

    model: str
    total: int
    free: int


def visible_devices() -> list[Device]:
    """The GPUs that torch sees, in its order.

    Raises:
        RuntimeError: the driver does not answer for one of them.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    devices = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        devices.append(Device(torch.cuda.get_device_name(number), total, free))
    return devices


def judge_devices(config: Config, devices: Sequence[Device], tool: ToolReport | None) -> Finding:
    """Whether there is a GPU for each rank, all of one model.

    Args:
        config: of the run.
        devices: that torch sees.
        tool: the vendor's tool's word; None if there is no such tool.
    """
    name, wanted = "GPUs", config.parallel.gpus_per_node
    models = Counter(device.model for device in devices[:wanted])
    found = " + ".join(f"{count} x {model}" for model, count in models.items()) or "torch sees none"
    if len(devices) > wanted:
        found = f"{len(devices)}, of which the run uses {found}"
    if tool is not None and tool.gpus is not None and tool.gpus != len(devices):
        found += f" ({tool.tool} lists {tool.gpus})"
    if len(devices) < wanted:
        import torch

        fix = (
            f"set DGXNGPU, or see what CUDA_VISIBLE_DEVICES hides and whether torch {torch.__version__} fits the driver"
        )
        if not devices:
            fix += "; for a run without GPUs, CUDA_VISIBLE_DEVICES=-1"
        return failed(name, f"{found}, expected {wanted} (DGXNGPU)", fix)
    if len(models) > 1:
        fix = "choose equal ones by CUDA_VISIBLE_DEVICES: the slowest sets the pace"
        return warned(name, f"{found}, expected one model", fix)
    return passed(name, found)


def judge_memory(devices: Sequence[Device], state: int, activations: int) -> Finding:
    """Whether what is free holds the state, which is arithmetic, and the activations, which are an estimate.

    Args:
        devices: that the run uses, one or more.
        state: bytes of weights, gradients and optimizer on each.
        activations: bytes on each.
    """
    name = "GPU memory"
    least = min(devices, key=lambda device: device.free)
    need = f"{gib(state)} of state, about {gib(activations)} of activations and {gib(_RESERVE)} of contexts"
    found = f"{gib(least.free)} of {gib(least.total)} free on GPU {devices.index(least)}, the fullest; needed: {need}"
    fix = "end what else is on it, raise EXPERT_PARALLEL, or lower MICRO_BATCH_SIZE"
    if least.free < state + _RESERVE:
        return failed(name, found, fix)
    if least.free < state + activations + _RESERVE:
        return warned(name, f"{found}, which is an estimate from above", fix)
    return passed(name, found)


def judge_tool(tool: ToolReport | None) -> list[Finding]:
    """What the vendor's tool says of driver, processes and faults.

    Args:
        tool: its report; None if there is no such tool.
    """
    names = ("GPU driver", "GPU processes", "GPU health")
    if tool is None:
        return [skipped(name, "neither nvidia-smi, amd-smi nor rocm-smi is on PATH") for name in names]
    if tool.error is not None:
        fix = "load the driver or restart the node; in a container, start it with its GPUs"
        unread = [skipped(name, f"{tool.tool} fails") for name in names[1:]]
        return [failed(names[0], f"{tool.tool}: {tool.error}", fix), *unread]
    driver = passed(names[0], f"{tool.driver or 'version not told'} ({tool.tool})")
    if tool.tool == "rocm-smi":
        return [driver, *(skipped(name, "rocm-smi does not tell; amd-smi does") for name in names[1:])]
    users = passed(names[1], "none")
    if tool.users:
        users = warned(names[1], _few(tool.users), "end them if they are yours: they take memory and time from the run")
    return [driver, users, _health(names[2], tool)]


def _health(name: str, tool: ToolReport) -> Finding:
    if tool.broken:
        fix = "drain the node, reset the GPU or restart, and have it replaced if that comes back"
        return failed(name, _few(tool.broken), fix)
    if tool.slowed:
        return warned(name, f"slowed down: {_few(tool.slowed)}", "look at cooling and power")
    return passed(name, f"no uncorrectable error ({tool.tool})")


def _few(items: Sequence[str]) -> str:
    more = [_MANY.format(len(items) - _SHOWN)] if len(items) > _SHOWN else []
    return "; ".join([*items[:_SHOWN], *more])
