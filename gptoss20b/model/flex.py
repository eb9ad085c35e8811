"""Attention on GPUs that skips the blocks outside a window and knows sinks: torch's flex_attention, compiled.

The kernel that torch generates visits, for each block of queries, the blocks of keys that a list names. The lists are
computed here from the window, block by block: torch's own `create_block_mask` would try every pair of positions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from .fused import fused

# Positions a side of the blocks that are visited or skipped: torch's default, which its kernels' tiles divide.
BLOCK = 128


def flex(query: Tensor, key: Tensor, value: Tensor, scale: float, past: int | None, sink: Tensor | None) -> Tensor:
    """Attention of every query to its own key and the ``past`` keys before it, or to all before it if None.

    Args, returns: as `gptoss20b.model.attention.attend`.
    """
    return _flex(query, key, value, sink, block_mask(query.shape[2], past, query.device), scale)


@fused(dynamic=False)
def _flex(query: Tensor, key: Tensor, value: Tensor, sink: Tensor | None, mask: BlockMask, scale: float) -> Tensor:
    if sink is None:
        return flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    out, sums = flex_attention(
        query, key, value, block_mask=mask, scale=scale, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    # One more term exp(sink) in the softmax's denominator leaves each query exp(lse) / (exp(lse) + exp(sink)) of its
    # output, and the derivatives by the sink and, through lse, by queries and keys are those of this product.
    assert sums.lse is not None
    kept = torch.sigmoid(sums.lse - sink.float()[:, None])
    return (out * kept[..., None]).to(out.dtype)


# The compiler looks through a cache at the function behind it: it would compute the lists in each layer.
@torch.compiler.disable  # type: ignore[untyped-decorator]
@functools.lru_cache(maxsize=8)
def block_mask(length: int, past: int | None, device: torch.device) -> BlockMask:
    """Which blocks of keys each block of queries visits, for every head and sequence.

    Args:
        length: positions of a sequence.
        past: keys seen before the query's own; None for all.
        device: where the lists live.

    Its largest tensor has (length / 128)^2 elements.
    """
    block = torch.arange(math.ceil(length / BLOCK), device=device)
    # Least and greatest distance from a key of one block to a query of another.
    nearest = (block[:, None] - block) * BLOCK - (BLOCK - 1)
    furthest = nearest + 2 * (BLOCK - 1)
    reach = length if past is None else past
    visited = (furthest >= 0) & (nearest <= reach)
    # Every query sees every key, so that the kernel need not mask; a block that the sequence ends in never counts.
    whole = (nearest >= 0) & (furthest <= reach) & ((block[:, None] + 1) * BLOCK <= length)
    return BlockMask.from_kv_blocks(
        *_listed(visited & ~whole),
        *_listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=_causal if past is None else _within(past),
        seq_lengths=(length, length),
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of booleans how many are true, and their columns first: [1, 1, rows], [1, 1, rows, columns]."""
    columns = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1).int()[None, None], columns.int()[None, None]


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _within(past: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def within(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= past)

    return within
