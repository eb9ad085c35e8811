"""Time by part of the model, from torch's profiler.

Forward hooks open a named range around each part. A forward operator belongs to the innermost range around it. A
backward operator belongs to the part of the forward operator with the same autograd sequence number, so the backward
pass needs no hooks. Recomputed operators run inside the hooks' ranges again. A kernel belongs to the part of the
operator that launched it.
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


def range_name(part: str) -> str:
    """Return the name of the range that marks this part for the profiler."""
    return _PREFIX + part


def profile_step(step: Callable[[], object], gpt: Any, device: torch.device) -> tuple[Parts, float]:
    """Profile one step of a Megatron-Core model.

    Returns:
        Seconds by part, and their sum. On a GPU the time of all kernels, on a CPU the operators' self time.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with _named_ranges(gpt), profile(activities=activities, acc_events=True) as profiler:
        with record_function(range_name(OTHER)):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    seconds = seconds_by_part(profiler.events() or [], on_gpu)
    return Parts(**seconds), sum(seconds.values())


def seconds_by_part(events: Any, on_gpu: bool) -> dict[str, float]:
    """Return the seconds by part from the profiler's events, which are in order of their start.

    Kernels that no operator of a part launched count as `other`. CPU operators outside the step are left out.
    """
    seconds = dict.fromkeys(Parts.model_fields, 0.0)
    # torch's profiler also reports named ranges as device events and as kernels of themselves.
    ranges = {event.name for event in events if event.is_user_annotation}
    origin: dict[tuple[int, int], str] = {}
    for event in events:
        if event.device_type.name != "CPU":
            if event.name not in ranges:
                seconds[OTHER] += event.time_range.elapsed_us() * _MICROSECOND
            continue
        part = _find_part(event, origin)
        if event.sequence_nr >= 0 and not event.name.startswith(_BACKWARD):
            # An operator outside autograd carries the number of the next recorded one, so the last one counts.
            origin[event.thread, event.sequence_nr] = part or OTHER
        if part is None:
            continue
        if on_gpu:
            elapsed = sum(k.duration for k in event.kernels if k.name not in ranges) * _MICROSECOND
            seconds[OTHER] -= elapsed  # counted there by the kernel's device event
        else:
            elapsed = event.self_cpu_time_total * _MICROSECOND
        seconds[part] += elapsed
    return seconds


def _find_part(event: Any, origin: dict[tuple[int, int], str]) -> str | None:
    """Return the part of the innermost range, or backward operator of known origin, around an event; None without."""
    while event is not None:
        if event.name.startswith(_PREFIX):
            return str(event.name.removeprefix(_PREFIX))
        if event.name.startswith(_BACKWARD) and (event.fwd_thread, event.sequence_nr) in origin:
            return origin[event.fwd_thread, event.sequence_nr]
        event = event.cpu_parent
    return None


@contextmanager
def _named_ranges(gpt: Any) -> Iterator[None]:
    """Open named ranges around the parts' forward passes."""
    open_ranges: list[Any] = []

    def opener(part: str) -> Callable[..., None]:
        def open_range(*_: Any) -> None:
            open_ranges.append(record_function(range_name(part)))
            open_ranges[-1].__enter__()

        return open_range

    def close_range(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = []
    for layer in gpt.decoder.layers:
        for module, part in (
            (layer.self_attention, ATTENTION),
            (layer.mlp, ROUTER_DISPATCH),
            (layer.mlp.experts, EXPERTS),
        ):
            handles += [module.register_forward_pre_hook(opener(part)), module.register_forward_hook(close_range)]
    # The loss lasts from the output projection to the end of the model, whichever functions compute it.
    handles += [gpt.output_layer.register_forward_pre_hook(opener(LOSS)), gpt.register_forward_hook(close_range)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
