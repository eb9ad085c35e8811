"""From the projection's output to normed, rotated queries and keys, in one pass over memory.

Megatron-Core copies the queries out of the projection, norms them, and rotates them in five operators, each reading and
writing 64 heads x head_dim of every token. Here one function does all of it, for queries, keys and values; compiled on
a GPU, it reads the projection's output once and writes each result once, and its gradient likewise.

Rounding: everything is computed in fp32 and rounded once, to the projection's type, at the end. Megatron-Core rounds
after the norm, rounds the cosines and sines, and rounds each product and their sum.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused import fused


class NormWeight(torch.nn.RMSNorm):
    """Megatron-Core's q_layernorm and k_layernorm slots: the RMSNorm's weight, for the arithmetic in `split_rotate`.

    It is called, though it computes nothing, because Megatron's DDP waits for a module's gathered parameters when that
    module is called.
    """

    def __init__(self, hidden_size: int, config: Any, eps: float) -> None:
        super().__init__(hidden_size, eps=eps)

    def forward(self) -> Tensor:  # type: ignore[override]
        """The weight [hidden_size]."""
        return self.weight


# The compiler looks through a cache at the function behind it: it would compute the tables in each layer.
@torch.compiler.disable  # type: ignore[untyped-decorator]
@functools.lru_cache(maxsize=4)
def rotation(angles: Tensor, magnitude: float) -> tuple[Tensor, Tensor]:
    """The cosines and sines that `split_rotate` takes, from Megatron-Core's table of angles.

    Args:
        angles: [sequence, 1, 1, head_dim] fp32, whose halves are equal. Megatron's rotary modules return the same
            tensor at every call with the same length, so that every layer of every step shares one table; a layer that
            is recomputed gets a copy, and makes its own.
        magnitude: multiplies both; YaRN's concentration factor, else 1.

    Returns:
        Two of [sequence, 1, 1, 1, head_dim / 2], fp32.
    """
    half = angles.chunk(2, dim=-1)[0].unsqueeze(2)
    return half.cos() * magnitude, half.sin() * magnitude


def norm_rotate(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension, then rotation of its first half against its second.

    Args:
        x: [sequence, ..., head_dim].
        weight: [head_dim] of the norm, or None for no norm.
        cos, sin: [sequence, ..., head_dim / 2], fp32, broadcast over x.
        eps: the norm's.

    Returns:
        As x, contiguous.
    """
    wide = x.float()
    if weight is not None:
        wide = F.rms_norm(wide, weight.shape, weight.float(), eps)
    first, second = wide.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


@fused()
def split_rotate(
    projected: Tensor,
    groups: int,
    weights: tuple[Tensor | None, Tensor | None],
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values from the output of the QKV projection.

    Args:
        projected: [sequence, batch, groups x (heads / groups + 2) x head_dim]: each group's queries, key and value.
        groups: key-value heads.
        weights: [head_dim] of the norm of the queries and of the keys; None for no norm.
        cos, sin: from `rotation`.
        eps: the norms'.

    Returns:
        Query [sequence, batch, heads, head_dim], normed and rotated; key likewise and value by groups. All contiguous:
        attention kernels take any order of the outer dimensions, and this one needs no copy before or after them.
    """
    head_dim = 2 * cos.shape[-1]
    split = projected.reshape(*projected.shape[:-1], groups, -1, head_dim)
    query, key, value = torch.split_with_sizes(split, [split.shape[3] - 2, 1, 1], dim=3)
    query = norm_rotate(query, weights[0], cos, sin, eps).flatten(2, 3)
    key = norm_rotate(key, weights[1], cos, sin, eps).flatten(2, 3)
    # A copy of a tenth: as a view, its gradient would be one more pass over all of the projection's.
    return query, key, value.flatten(2, 3).clone(memory_format=torch.contiguous_format)
