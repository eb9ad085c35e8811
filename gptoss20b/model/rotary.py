"""Split the QKV projection's output, normalize and rotate queries and keys, in one pass over memory.

Megatron-Core copies the queries out of the projection, normalizes them and rotates them in five operators. Each reads
and writes 64 heads x head_dim of every token. Compiled on a GPU, `split_qkv_rope` reads the projection's output once
and writes each result once; so does its gradient.

Rounding: everything is computed in fp32 and rounded once, to the projection's dtype, at the end. Megatron-Core rounds
after the norm, rounds the cosines and sines, and rounds each product and their sum.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused import fused


class NormWeight(torch.nn.RMSNorm):
    """The RMSNorm weight in Megatron-Core's q_layernorm and k_layernorm slots; `split_qkv_rope` does the arithmetic.

    The module is called although it computes nothing: Megatron's DDP waits for a module's gathered parameters when that
    module is called.
    """

    def __init__(self, hidden_size: int, config: Any, eps: float) -> None:
        super().__init__(hidden_size, eps=eps)

    def forward(self) -> Tensor:  # type: ignore[override]
        """Return the weight [hidden_size]."""
        return self.weight


def rotation_table(angles: Tensor, magnitude: float) -> Tensor:
    """Return the cosines and sines of Megatron-Core's angles, in one table of their shape.

    Args:
        angles: [sequence, 1, 1, head_dim] fp32, with equal halves.
        magnitude: factor of both: YaRN's concentration factor, else 1.

    Returns:
        [sequence, 1, 1, head_dim] fp32: the cosines in the first half, the sines in the second.
    """
    half = angles.chunk(2, dim=-1)[0]
    return torch.cat([half.cos() * magnitude, half.sin() * magnitude], dim=-1)


def give_rotation_tables(rotary: torch.nn.Module, magnitude: float) -> None:
    """Let Megatron-Core's rotary or YaRN module return its `rotation_table` in place of the angles.

    So cosines and sines are computed once per micro batch, and every layer gets them as the argument that Megatron-Core
    hands on, recomputed and compiled layers too.
    """

    def to_table(_module: Any, _arguments: Any, angles: Any) -> Any:
        if isinstance(angles, tuple):  # YaRN's module also returns its magnitude, which the caller ignores
            return rotation_table(angles[0], magnitude), *angles[1:]
        return rotation_table(angles, magnitude)

    rotary.register_forward_hook(to_table)


def rms_norm_rope(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Normalize the last dimension (RMSNorm), then rotate its first half against its second.

    Args:
        x: [sequence, ..., head_dim].
        weight: [head_dim] of the norm, or None for no norm.
        cos: cosines [sequence, ..., head_dim / 2] fp32, broadcast over x.
        sin: sines of the same shape.
        eps: epsilon of the norm.

    Returns:
        A contiguous tensor of x's shape and dtype.
    """
    wide = x.float()
    if weight is not None:
        wide = F.rms_norm(wide, weight.shape, weight.float(), eps)
    first, second = wide.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


@fused()
def split_qkv_rope(
    qkv: Tensor,
    num_query_groups: int,
    norm_weights: tuple[Tensor | None, Tensor | None],
    rotation: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values from the output of linear_qkv.

    The results are contiguous. Attention kernels take any order of the outer dimensions, and this one needs no copy
    before or after them.

    Args:
        qkv: [sequence, batch, groups x (heads / groups + 2) x head_dim]: each group's queries, key and value.
        num_query_groups: key-value heads.
        norm_weights: [head_dim] of the norm of queries and of keys; None for no norm.
        rotation: [sequence, 1, 1, head_dim] from `rotation_table`.
        eps: epsilon of the norms.

    Returns:
        Query [sequence, batch, heads, head_dim] and key [sequence, batch, groups, head_dim], normalized and rotated,
        and value [sequence, batch, groups, head_dim].
    """
    head_dim = rotation.shape[-1]
    cos, sin = rotation.unsqueeze(2).chunk(2, dim=-1)
    split = qkv.reshape(*qkv.shape[:-1], num_query_groups, -1, head_dim)
    query, key, value = torch.split_with_sizes(split, [split.shape[3] - 2, 1, 1], dim=3)
    query = rms_norm_rope(query, norm_weights[0], cos, sin, eps).flatten(2, 3)
    key = rms_norm_rope(key, norm_weights[1], cos, sin, eps).flatten(2, 3)
    # Copy the values, a tenth of the data. The gradient of a view would be one more pass over the whole projection's.
    return query, key, value.flatten(2, 3).clone(memory_format=torch.contiguous_format)
