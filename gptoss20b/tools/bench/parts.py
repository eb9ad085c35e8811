"""Time by part of the model, from torch's profiler.

Forward hooks open a named range around each part. What runs in the forward pass belongs to the innermost range around
it. A backward operator belongs where the forward operator belongs whose sequence number autograd gave it, so no hook
has to reach into the backward pass; what is recomputed there runs inside the hooks' ranges again. Kernels go with the
operator that launched them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from .result import Parts

ATTENTION, EXPERTS, ROUTER_DISPATCH, LOSS, OPTIMIZER, OTHER = Parts.model_fields
_PREFIX = "part of the step: "
_BACKWARD = "autograd::engine::evaluate_function"
_MICROSECOND = 1e-6


def range_of(part: str) -> str:
    """The name of the range that marks this part for the profiler."""
    return _PREFIX + part


def profiled(step: Callable[[], object], gpt: Any, device: torch.device) -> tuple[Parts, float]:
    """Profile one step of a Megatron-Core model.

    Returns:
        Seconds by part, and their sum: on a GPU all kernels' time, on a CPU the time inside the step's operators.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with _ranges(gpt), profile(activities=activities, acc_events=True) as profiler:
        with record_function(range_of(OTHER)):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    seconds = by_part(profiler.events() or [], on_gpu)
    return Parts(**seconds), sum(seconds.values())


def by_part(events: Any, on_gpu: bool) -> dict[str, float]:
    """Seconds by part from the profiler's events, in order of their start.

    A device's time that no operator of a part launched, and on a CPU what ran beside the step, is in `other` and left
    out, in this order.
    """
    seconds = dict.fromkeys(Parts.model_fields, 0.0)
    # Ranges come back as events of the device too, and as kernels of themselves.
    ranges = {event.name for event in events if event.is_user_annotation}
    origin: dict[tuple[int, int], str] = {}
    for event in events:
        if event.device_type.name != "CPU":
            if event.name not in ranges:
                seconds[OTHER] += event.time_range.elapsed_us() * _MICROSECOND
            continue
        part = _part_of(event, origin)
        if event.sequence_nr >= 0 and not event.name.startswith(_BACKWARD):
            # An operator that autograd does not record has the number of the next one that it does: the last counts.
            origin[event.thread, event.sequence_nr] = part or OTHER
        if part is None:
            continue
        if on_gpu:
            own = sum(k.duration for k in event.kernels if k.name not in ranges) * _MICROSECOND
            seconds[OTHER] -= own  # where the device's events put it
        else:
            own = event.self_cpu_time_total * _MICROSECOND
        seconds[part] += own
    return seconds


def _part_of(event: Any, origin: dict[tuple[int, int], str]) -> str | None:
    """The part of the innermost range, or backward operator of known origin, around the event; None if neither is."""
    while event is not None:
        if event.name.startswith(_PREFIX):
            return str(event.name.removeprefix(_PREFIX))
        if event.name.startswith(_BACKWARD) and (event.fwd_thread, event.sequence_nr) in origin:
            return origin[event.fwd_thread, event.sequence_nr]
        event = event.cpu_parent
    return None


@contextmanager
def _ranges(gpt: Any) -> Iterator[None]:
    """Named ranges around the parts' forward passes."""
    open_ranges: list[Any] = []

    def enter(part: str) -> Callable[..., None]:
        def before(*_: Any) -> None:
            open_ranges.append(record_function(range_of(part)))
            open_ranges[-1].__enter__()

        return before

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = []
    for layer in gpt.decoder.layers:
        for module, part in (
            (layer.self_attention, ATTENTION),
            (layer.mlp, ROUTER_DISPATCH),
            (layer.mlp.experts, EXPERTS),
        ):
            handles += [module.register_forward_pre_hook(enter(part)), module.register_forward_hook(leave)]
    # The loss is all that the model does from its output projection on, whichever functions compute it.
    handles += [gpt.output_layer.register_forward_pre_hook(enter(LOSS)), gpt.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
