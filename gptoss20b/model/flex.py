"""Sliding-window attention with sinks on GPUs: torch's flex_attention, compiled.

The generated kernel visits, for each block of queries, the blocks of keys that a BlockMask lists. The lists are
computed here from the window, block by block: torch's own `create_block_mask` evaluates every pair of positions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from .fused import fused

# Positions per side of a block: torch's default, which the tiles of its kernels divide.
BLOCK_SIZE = 128
# Options of the kernels by architecture, for 16-bit heads of `_TUNED_HEAD_DIM`, where torch's own do not fit into
# the registers. By `make kernel-budget` with torch 2.13.0, all windows, with and without sinks:
#
#   sm_100 forward   torch's own (tiles 128 x 128, 4 warps)  720 bytes of stack, 2,168 of spill stores, 3,088 of loads
#                    tiles 128 x 64                          none; two blocks fit on a multiprocessor
#   sm_100 backward  torch's own (4 warps, 3 stages)         408 bytes of stack, 508 of spill stores, 768 of loads
#                    8 warps, 3 stages                       24 bytes of stack
#                    8 warps, 2 stages                       none
#
# torch's own options of sm_90 spill 32 bytes at most, and those of gfx950 nothing.
#
# sm_103 (B300) has sm_100's spills with torch's own options, and none with these.
_BLACKWELL = {"fwd_BLOCK_N": 64, "bwd_num_warps": 8, "bwd_num_stages": 2}
_KERNEL_OPTIONS: dict[str, Any] = {"sm_100": _BLACKWELL, "sm_103": _BLACKWELL}
_TUNED_HEAD_DIM = 64


def flex_sink_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window_left: int | None,
    sink: Tensor | None,
    mask: BlockMask | None = None,
) -> Tensor:
    """Compute attention as `attention.dot_product_attention` does, with the same arguments and result.

    ``mask`` is the `window_block_mask` of these arguments, which is made here if it is None.
    """
    if mask is None:
        mask = window_block_mask(query.shape[2], window_left, query.device)
    return _flex_with_sink(query, key, value, sink, mask, scale)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _architecture() -> str:
    """Return the current GPU's architecture, such as sm_100; "" for vendors other than NVIDIA."""
    return "" if torch.version.hip else "sm_{}{}".format(*torch.cuda.get_device_capability())


def kernel_options(query: Tensor) -> Any:
    """Return flex_attention's options for the GPU and the heads of ``query``, or None for torch's own."""
    if not query.is_cuda or query.shape[-1] != _TUNED_HEAD_DIM or query.element_size() != 2:
        return None
    return _KERNEL_OPTIONS.get(_architecture())


@fused(dynamic=False)
def _flex_with_sink(
    query: Tensor, key: Tensor, value: Tensor, sink: Tensor | None, mask: BlockMask, scale: float
) -> Tensor:
    options = kernel_options(query)
    if sink is None:
        return flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True, kernel_options=options)
    out, aux = flex_attention(
        query, key, value, block_mask=mask, scale=scale, enable_gqa=True, kernel_options=options,
        return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    # The sink adds exp(sink) to the softmax's denominator exp(lse), lse being the log-sum-exp of the scores. Each
    # output is scaled by exp(lse) / (exp(lse) + exp(sink)) = sigmoid(lse - sink). Autograd of this product gives the
    # sink's gradient and, through lse, the missing term of the queries' and keys'.
    assert aux.lse is not None
    kept = torch.sigmoid(aux.lse - sink.float()[:, None])
    return (out * kept[..., None]).to(out.dtype)


# Layers of one model share masks.
@functools.lru_cache(maxsize=8)
def window_block_mask(length: int, window_left: int | None, device: torch.device) -> BlockMask:
    """Return the blocks of keys that each block of queries visits, for every head and sequence.

    ``window_left`` is the number of keys seen before the query's own; None for all. The largest tensor of the mask has
    (length / 128)^2 elements.
    """
    block = torch.arange(math.ceil(length / BLOCK_SIZE), device=device)
    # Smallest and largest distance from a key of one block to a query of another.
    min_distance = (block[:, None] - block) * BLOCK_SIZE - (BLOCK_SIZE - 1)
    max_distance = min_distance + 2 * (BLOCK_SIZE - 1)
    reach = length if window_left is None else window_left
    visited = (max_distance >= 0) & (min_distance <= reach)
    # Full blocks need no mask: every query sees every key. A block in which the sequence ends is never full.
    full = (min_distance >= 0) & (max_distance <= reach) & ((block[:, None] + 1) * BLOCK_SIZE <= length)
    return BlockMask.from_kv_blocks(
        *_block_lists(visited & ~full),
        *_block_lists(full),
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=_causal if window_left is None else _sliding_window(window_left),
        seq_lengths=(length, length),
    )


def _block_lists(selected: Tensor) -> tuple[Tensor, Tensor]:
    """Return BlockMask's counts [1, 1, rows] and column indices [1, 1, rows, columns], selected columns first."""
    columns = selected.int().argsort(dim=-1, descending=True, stable=True)
    return selected.sum(dim=-1).int()[None, None], columns.int()[None, None]


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _sliding_window(window_left: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key <= window_left)

    return mask_mod
