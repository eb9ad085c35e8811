"""Split the QKV projection's output, normalize and rotate queries and keys, in one pass over memory.

Megatron-Core copies the queries out of the projection, normalizes them and rotates them in five operators. Each reads
and writes 64 heads x head_dim of every token. Compiled on a GPU, `split_qkv_rope` reads the projection's output once
and writes each result once. So does its gradient, which has its own formula: from autograd's, the compiler makes
kernels that keep the gradients of queries and keys in fp32 in between. For two sequences of 8,192 tokens those are
288 MiB, written and read once in each layer.

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


Weights = tuple[Tensor | None, Tensor | None]
# Every operand of the gradient is read where it is used. With its own limits, torch would write intermediate results to
# memory, because two sums need them.
_ONE_PASS = {"realize_reads_threshold": 64, "realize_opcount_threshold": 1000}


def split_qkv_rope(
    qkv: Tensor, num_query_groups: int, norm_weights: Weights, rotation: Tensor, eps: float
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
    if not qkv.is_cuda:
        return _split_norm_rope(qkv, num_query_groups, norm_weights, rotation, eps)
    return _SplitQkvRope.apply(qkv, num_query_groups, *norm_weights, rotation, eps)  # type: ignore[no-any-return, no-untyped-call]


def _split_heads(qkv: Tensor, num_query_groups: int, head_dim: int) -> list[Tensor]:
    """Return queries, keys and values as views [sequence, batch, groups, heads of a group, head_dim]."""
    split = qkv.reshape(*qkv.shape[:-1], num_query_groups, -1, head_dim)
    return list(torch.split_with_sizes(split, [split.shape[3] - 2, 1, 1], dim=3))


def _split_norm_rope(
    qkv: Tensor, num_query_groups: int, norm_weights: Weights, rotation: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    cos, sin = rotation.unsqueeze(2).chunk(2, dim=-1)
    query, key, value = _split_heads(qkv, num_query_groups, rotation.shape[-1])
    query = rms_norm_rope(query, norm_weights[0], cos, sin, eps).flatten(2, 3)
    key = rms_norm_rope(key, norm_weights[1], cos, sin, eps).flatten(2, 3)
    # Copy the values, a tenth of the data. The gradient of a view would be one more pass over the whole projection's.
    return query, key, value.flatten(2, 3).clone(memory_format=torch.contiguous_format)


@fused()
def _split_qkv_rope(
    qkv: Tensor, num_query_groups: int, norm_weights: Weights, rotation: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Weights]:
    """Return `split_qkv_rope`'s results, and 1 / RMS of each query and key head, or None for no norm."""
    query, key, _ = _split_heads(qkv, num_query_groups, rotation.shape[-1])
    inverse_norms = (
        None if weight is None else torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        for x, weight in zip((query, key), norm_weights, strict=True)
    )
    return *_split_norm_rope(qkv, num_query_groups, norm_weights, rotation, eps), tuple(inverse_norms)  # type: ignore[return-value]


@fused(options=_ONE_PASS)
def _split_qkv_rope_backward(
    grads: tuple[Tensor, Tensor, Tensor],
    qkv: Tensor | None,
    num_query_groups: int,
    norm_weights: Weights,
    inverse_norms: Weights,
    rotation: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of ``qkv`` and both ``norm_weights`` from those of `_split_qkv_rope`'s first results.

    ``qkv`` is None without norms: a rotation's gradient does not depend on what was rotated.
    """
    cos, sin = rotation.unsqueeze(2).chunk(2, dim=-1)
    heads = (None, None) if qkv is None else _split_heads(qkv, num_query_groups, rotation.shape[-1])
    grad_query, grad_key, grad_value = (grad.unflatten(2, (num_query_groups, -1)) for grad in grads)
    grad_query, grad_query_weight = _rms_norm_rope_backward(
        grad_query, heads[0], norm_weights[0], inverse_norms[0], cos, sin
    )
    grad_key, grad_key_weight = _rms_norm_rope_backward(grad_key, heads[1], norm_weights[1], inverse_norms[1], cos, sin)
    grad = torch.cat([grad_query, grad_key, grad_value], dim=3)
    return grad.flatten(2), grad_query_weight, grad_key_weight


def _rms_norm_rope_backward(
    grad: Tensor, x: Tensor | None, weight: Tensor | None, inverse_norm: Tensor | None, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of `rms_norm_rope`'s x and weight, given that of its result."""
    # Both halves of a head are an axis of 2. The rotation's transpose turns back: first x cos + second x sin, and
    # second x cos - first x sin.
    halves = grad.float().unflatten(-1, (2, -1))
    sign = 1 - 2 * torch.arange(2, device=grad.device)[:, None]
    wide = (halves * cos.unsqueeze(-2) + halves.flip(-2) * (sin.unsqueeze(-2) * sign)).flatten(-2)
    if x is None or weight is None or inverse_norm is None:
        return wide.to(grad.dtype), None
    normed = x.float() * inverse_norm
    grad_weight = (wide * normed).sum((0, 1, 2, 3))
    wide = wide * weight.float()
    wide = inverse_norm * (wide - normed * (wide * normed).mean(-1, keepdim=True))
    return wide.to(x.dtype), grad_weight.to(weight.dtype)


class _SplitQkvRope(torch.autograd.Function):
    """Autograd function of `split_qkv_rope` on a GPU."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        num_query_groups: int,
        query_weight: Tensor | None,
        key_weight: Tensor | None,
        rotation: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Detached, so that one compiled version serves training, recomputation and evaluation.
        weights = tuple(weight if weight is None else weight.detach() for weight in (query_weight, key_weight))
        *results, inverse_norms = _split_qkv_rope(qkv.detach(), num_query_groups, weights, rotation, eps)  # type: ignore[arg-type]
        ctx.num_query_groups = num_query_groups
        has_norms = query_weight is not None
        ctx.save_for_backward(qkv if has_norms else None, *weights, *inverse_norms, rotation)
        return tuple(results)  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *weights, query_norm, key_norm, rotation = ctx.saved_tensors
        grad, *weight_grads = _split_qkv_rope_backward(
            grads,  # type: ignore[arg-type]
            qkv if qkv is None else qkv.detach(),
            ctx.num_query_groups,
            tuple(weights),
            (query_norm, key_norm),
            rotation,
        )
        return grad, None, *weight_grads, None, None
