"""Trace one training step of a configuration on a GPU that does not exist."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

import torch
from torch._dynamo.utils import counters

from ..batches import DeviceBatch
from ..config import Config
from ..optimizer import optimizer_parts
from ..trainer import Trainer
from .accounting import Accountant
from .allocator import peak_reserved_bytes
from .fake_cuda import DEVICE
from .modules import name_modules
from .result import TIMELINE_POINTS, Collective, Trace, Work
from .stand_ins import fake_gpu
from .targets import properties_of

# The moments exist after the first step and caches are full after the second: the third is like all later ones.
STEPS = 3


def trace_step(config: Config, imbalance: float = 1.0, rank: int = 0) -> Trace:
    """Build the trainer, take `STEPS` steps and evaluate one micro batch, and account for the last step.

    Args:
        config: any configuration of the torch back end for GPUs. Its DGXSYSTEM names the GPU; H200 if it is unknown.
        imbalance: rows of this rank's experts over the mean of all ranks.
        rank: rank to trace. Only pipeline stages differ.

    Raises:
        ProofError: this machine cannot run the trace.
    """
    counters.clear()
    with fake_gpu(config, imbalance, rank, properties_of(config.submission.system)) as gpu:
        accountant = gpu.accountant
        trainer = Trainer(config, "torch", DEVICE, seed=1)
        categories = _categories(accountant, trainer)
        built = accountant.live_bytes
        with name_modules(accountant, trainer.gpt):
            for _ in range(STEPS):
                gc.collect()  # the compiler leaves cycles that hold tensors
                accountant.reset()
                step_start, before = len(accountant.events), accountant.live_bytes
                trainer.step(make_batches(config, config.accumulation_steps))
                categories |= _optimizer_categories(accountant, trainer)
        peak, after = accountant.peak_bytes, accountant.live_bytes
        at_peak = _sum_by_category(accountant, categories)
        timeline = _timeline(accountant.events[step_start:], before)
        account = accountant.reset()
        trainer.sync_params()
        trainer.model.eval()
        with torch.no_grad():
            trainer._run(make_batches(config, 1), 1, forward_only=True)
        trace = Trace(
            imbalance=imbalance,
            live_after_build_bytes=built,
            live_after_step_bytes=after,
            leaked_bytes=after - before,
            peak_live_bytes=peak,
            peak_reserved_bytes=peak_reserved_bytes(accountant.events, expandable_segments=True),
            peak_reserved_bytes_without_expandable_segments=peak_reserved_bytes(accountant.events, False),
            at_peak_bytes=at_peak,
            evaluation_peak_live_bytes=accountant.peak_bytes,
            host_waits=dict(account.waits),
            collectives={
                name: Collective(count=count, payload_bytes=payload)
                for name, (count, payload) in account.collectives.items()
            },
            buckets=_count_buckets(trainer),
            compiled_versions=gpu.versions,
            graph_breaks=list(counters["graph_break"]),
            work=[
                Work(module=module, phase=phase, operator=operator, dtype=dtype, count=count, flops=flops, bytes=moved)
                for (module, phase, operator, dtype), (count, flops, moved) in account.work.items()
            ],
            timeline_bytes=timeline,
        )
        del trainer
    return trace


def _count_buckets(trainer: Trainer) -> int:
    groups = (*trainer.model.bucket_groups, *trainer.model.expert_parallel_bucket_groups)
    return sum(len(group.buckets) for group in groups)


def _categories(accountant: Accountant, trainer: Trainer) -> dict[int, str]:
    """Return the category of each storage that is alive after the build, by key."""
    categories = dict.fromkeys(accountant.live_keys(), "other state")
    named: dict[str, list[torch.Tensor | None]] = {"weights": [], "gradients": [], "optimizer": []}
    for buffer in (*trainer.model.buffers, *trainer.model.expert_parallel_buffers):
        named["weights"].append(buffer.param_data)
        named["gradients"].append(buffer.grad_data)
    named["weights"] += list(trainer.gpt.parameters())
    for name, tensors in named.items():
        for tensor in tensors:
            if tensor is not None and (key := accountant.key_of(tensor)) is not None:
                categories[key] = name
    return categories | _optimizer_categories(accountant, trainer)


def _optimizer_categories(accountant: Accountant, trainer: Trainer) -> dict[int, str]:
    """Return the storages of main weights and moments."""
    tensors = []
    for part in optimizer_parts(trainer.optimizer):
        for group in part.optimizer.param_groups if part.optimizer is not None else ():
            tensors += group["params"]
        if part.optimizer is not None:
            tensors += [value for state in part.optimizer.state.values() for value in state.values()]
    keys = [accountant.key_of(tensor) for tensor in tensors if isinstance(tensor, torch.Tensor)]
    return {key: "optimizer" for key in keys if key is not None}


def _sum_by_category(accountant: Accountant, categories: dict[int, str]) -> dict[str, int]:
    """Return the bytes at the peak: state by category, activations by module, temporaries of the backward pass."""
    sums: Counter[str] = Counter()
    for key in accountant.at_peak():
        allocation = accountant.allocations[key]
        default = f"activations of {allocation.module}" if allocation.module else "temporaries"
        sums[categories.get(key, default)] += allocation.size
    return dict(sums.most_common())


def _timeline(events: list[tuple[int, int]], live: int) -> list[int]:
    """Return the highest live bytes of each of at most TIMELINE_POINTS equal parts of the events."""
    heights = list(accumulate((size for _, size in events), initial=live))
    part = -(-len(heights) // TIMELINE_POINTS)
    return [max(heights[start : start + part]) for start in range(0, len(heights), part)]


def make_batches(config: Config, count: int) -> Iterator[DeviceBatch]:
    """Yield micro batches of a rank."""
    shape = (config.execution.micro_batch_size, config.fixed.sequence_length)
    for _ in range(count):
        tokens = torch.zeros(shape, dtype=torch.int64, device=DEVICE)
        yield DeviceBatch(tokens, torch.zeros_like(tokens), torch.ones(shape, device=DEVICE))
