"""Micro batches on a rank's device: copied from host memory, made up for warm-up, or cut for context parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .config import Config
from .data.samples import Batch


@dataclass(frozen=True)
class DeviceBatch:
    """One micro batch on this rank's device: tokens and labels int64 [b, S], loss_mask fp32 [b, S]."""

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor


def to_device(host: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch to the device without waiting for the copy."""

    def move(array: npt.NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        # Only a copy from pinned memory is asynchronous.
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    return DeviceBatch(move(host.tokens), move(host.labels), move(host.loss_mask))


def synthetic_batches(config: Config, device: torch.device, count: int) -> Iterator[DeviceBatch]:
    """Yield ``count`` micro batches of random tokens, the same at every call."""
    shape = (config.execution.micro_batch_size, config.fixed.sequence_length)
    # Seeded here: torch's global random state belongs to the run.
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        tokens = torch.randint(config.model.vocab_size, shape, generator=generator).to(device)
        yield DeviceBatch(tokens, tokens.roll(-1, dims=1), torch.ones(shape, device=device))


def shard_for_context_parallel(sequences: Tensor, rank: int, ranks: int) -> Tensor:
    """Shard sequences [b, S] for context parallelism: return chunks ``rank`` and ``2 x ranks - 1 - rank`` of 2 x ranks.

    Causal attention costs more the later the query. An early and a late chunk on each rank balance the work.
    Transformer Engine expects this order, and Megatron-Core cuts the rotary embedding the same way.
    """
    chunks = sequences.chunk(2 * ranks, dim=1)
    return torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]], dim=1)
