"""Seconds of a step, and what a plain matrix multiplication reaches on the same device in the same process."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from .result import Gemm, Spread

# Enough for a median and percentiles, however slow the baseline.
_FEWEST = 3
# Rows, columns and depth of the plain multiplication.
_ON_GPU, _ON_CPU = 8192, 1024


def seconds_of(call: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """Seconds of each of ``count`` calls, one right after the other.

    On a GPU from events on the device, read after the last call: the host is not made to wait between them, so what
    it takes to launch a step is hidden where it is hidden in training.
    """
    if device.type != "cuda":
        return [_on_host(call) for _ in range(count)]
    marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]


def _on_host(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_steps(
    call: Callable[[], object], warmup: int, steps: int, device: torch.device, limit: float | None = None
) -> Spread:
    """Spread of ``steps`` timed calls after ``warmup`` others.

    Args:
        limit: seconds that the timed calls may take together: fewer are timed if the last warm-up calls say so.
    """
    before = seconds_of(call, max(warmup, 1), device)
    if limit is not None:
        steps = max(min(steps, int(limit / before[-1])), min(steps, _FEWEST))
    return spread(seconds_of(call, steps, device))


def spread(seconds: Sequence[float]) -> Spread:
    """Median and 10th and 90th percentile (linear between the nearest two).

    >>> spread([1.0, 2.0, 3.0])
    Spread(median=2.0, p10=1.2, p90=2.8, steps=3)
    """
    if len(seconds) == 1:
        return Spread(median=seconds[0], p10=seconds[0], p90=seconds[0], steps=1)
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return Spread(median=statistics.median(seconds), p10=tenths[0], p90=tenths[-1], steps=len(seconds))


def gemm(device: torch.device) -> Gemm:
    """TFLOP/s of a square matrix multiplication: 8192 in bf16 on a GPU, 1024 in fp32 on a CPU."""
    on_gpu = device.type == "cuda"
    size, dtype = (_ON_GPU, torch.bfloat16) if on_gpu else (_ON_CPU, torch.float32)
    generator = torch.Generator().manual_seed(0)
    # Random numbers: a GPU that multiplies zeros draws less power and so runs faster.
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    times = time_steps(lambda: torch.mm(a, b, out=out), warmup=5, steps=20, device=device)
    return Gemm(size=size, dtype=str(dtype).removeprefix("torch."), tflops=2 * size**3 / times.median / 1e12)


def reset_peak_memory(device: torch.device) -> None:
    """Begin to look for the peak; on a CPU the system counts from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most bytes of tensors on the GPU at once; on a CPU the most of the process that was in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
