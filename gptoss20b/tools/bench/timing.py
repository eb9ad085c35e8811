"""Time of a step, and of a plain matrix multiplication on the same device in the same process."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from .result import Gemm, Spread

# Smallest number of timed steps: enough for a median and percentiles of a slow baseline.
_MIN_STEPS = 3
# Rows, columns and depth of the plain multiplication.
_GEMM_SIZE_GPU, _GEMM_SIZE_CPU = 8192, 1024


def time_calls(call: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """Return the seconds of each of ``count`` back-to-back calls.

    On a GPU, device events are read after the last call. The host never waits in between, so launch overhead overlaps
    as in training.
    """
    if device.type != "cuda":
        return [_time_on_host(call) for _ in range(count)]
    marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]


def _time_on_host(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_steps(
    call: Callable[[], object], warmup: int, steps: int, device: torch.device, limit: float | None = None
) -> Spread:
    """Return the spread of ``steps`` timed calls after ``warmup`` calls (at least one) that are not timed.

    ``limit`` is in seconds, for all timed calls. Fewer are timed if the last warm-up call was too slow for ``steps``.
    """
    warmup_seconds = time_calls(call, max(warmup, 1), device)
    if limit is not None:
        steps = max(min(steps, int(limit / warmup_seconds[-1])), min(steps, _MIN_STEPS))
    return summarize_seconds(time_calls(call, steps, device))


def summarize_seconds(seconds: Sequence[float]) -> Spread:
    """Return the median and the 10th and 90th percentile (linear between the nearest two).

    >>> summarize_seconds([1.0, 2.0, 3.0])
    Spread(median=2.0, p10=1.2, p90=2.8, steps=3)
    """
    if len(seconds) == 1:
        return Spread(median=seconds[0], p10=seconds[0], p90=seconds[0], steps=1)
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return Spread(median=statistics.median(seconds), p10=tenths[0], p90=tenths[-1], steps=len(seconds))


def time_gemm(device: torch.device) -> Gemm:
    """Time a square matrix multiplication: 8192 in bf16 on a GPU, 1024 in fp32 on a CPU."""
    on_gpu = device.type == "cuda"
    size, dtype = (_GEMM_SIZE_GPU, torch.bfloat16) if on_gpu else (_GEMM_SIZE_CPU, torch.float32)
    generator = torch.Generator().manual_seed(0)
    # Random numbers, because a GPU that multiplies zeros draws less power and clocks higher.
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    times = time_steps(lambda: torch.mm(a, b, out=out), warmup=5, steps=20, device=device)
    return Gemm(size=size, dtype=str(dtype).removeprefix("torch."), tflops=2 * size**3 / times.median / 1e12)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of a GPU; on a CPU the peak counts from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak bytes of tensors on the GPU; on a CPU the peak resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
