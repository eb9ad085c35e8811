"""The model's operators in plain torch, one step after another: references for the fused ones, in fp64.

Each works in the dtype and on the device of its arguments, and autograd gives its gradients. The start-up self-test and
the tests compare with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.experts import SWIGLU_ALPHA, SWIGLU_LIMIT


def attention(query: Tensor, key: Tensor, value: Tensor, window_left: int | None, sink: Tensor | None) -> Tensor:
    """Compute `model.attention.dot_product_attention` by a softmax over an S x S mask, scaled by 1/sqrt(head_dim)."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    length = query.shape[2]
    position = torch.arange(length, device=query.device)
    distance = position[:, None] - position[None, :]
    visible = (distance >= 0) & (distance <= (length if window_left is None else window_left))
    scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).masked_fill(~visible, -math.inf)
    if sink is not None:
        column = sink[None, :, None, None].expand(query.shape[0], -1, length, 1)
        return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1] @ value
    return scores.softmax(dim=-1) @ value


def norm_rope(x: Tensor, weight: Tensor | None, angles: Tensor, magnitude: float, eps: float) -> Tensor:
    """Normalize, then turn complex numbers by their angle.

    Args:
        x: [sequence, batch, heads, head_dim].
        weight: [head_dim] of the norm, or None for no norm.
        angles: [sequence, head_dim / 2].
        magnitude: of the rotation.
        eps: of the norm.
    """
    if weight is not None:
        x = x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.full_like(angles, magnitude), angles)[:, None, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def split_norm_rope(
    qkv: Tensor, groups: int, weights: Sequence[Tensor], angles: Tensor, magnitude: float, eps: float
) -> list[Tensor]:
    """Compute `model.rotary.split_qkv_rope`. ``weights`` are those of both norms, or empty for no norm."""
    head_dim = 2 * angles.shape[-1]
    parts = qkv.unflatten(-1, (groups, -1, head_dim))
    query, key, value = parts[:, :, :, :-2].flatten(2, 3), parts[:, :, :, -2], parts[:, :, :, -1]
    query_weight, key_weight = weights or (None, None)
    turned = (norm_rope(x, w, angles, magnitude, eps) for x, w in ((query, query_weight), (key, key_weight)))
    return [*turned, value]


def swiglu(gate_up: Tensor, clamped: bool, rounded: Tensor | None = None) -> Tensor:
    """Return SwiGLU, or the released gpt-oss's clamped variant, of ``gate_up`` [rows, 2 x ffn], the gate first.

    ``rounded`` are the same numbers as another implementation rounded them: values are clamped where these are. The
    derivative jumps at the limits, and bf16 has 32 numbers between 7 and 8: gradients would differ by a tenth.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if not clamped:
        return F.silu(gate) * up
    rounded_gate, rounded_up = (gate_up if rounded is None else rounded).detach().chunk(2, dim=-1)
    gate = torch.where(rounded_gate <= SWIGLU_LIMIT, gate, SWIGLU_LIMIT)
    up = torch.where(rounded_up.abs() <= SWIGLU_LIMIT, up, SWIGLU_LIMIT * rounded_up.sign())
    return gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)


def experts(
    weights: Mapping[str, Tensor], rows: Tensor, counts: Sequence[int], probs: Tensor, clamped: bool, dtype: torch.dtype
) -> Tensor:
    """Compute `model.experts.GroupedExperts`, one expert after another.

    Args:
        weights: parameters by name, in the dtype of the rows.
        rows: [rows, hidden], sorted by expert.
        counts: rows of each expert.
        probs: [rows].
        clamped: compute the released gpt-oss's activation.
        dtype: of the implementation to compare with, which decides where values are clamped.
    """
    out = []
    for expert, (part, part_probs) in enumerate(zip(rows.split(list(counts)), probs.split(list(counts)), strict=True)):
        hidden = part @ weights["linear_fc1.weight"][expert].T
        rounded = hidden.detach().to(dtype)
        if "linear_fc1.bias" in weights:
            bias = weights["linear_fc1.bias"][expert]
            hidden, rounded = hidden + bias, rounded + bias.detach()
        hidden = swiglu(hidden, clamped, rounded) @ weights["linear_fc2.weight"][expert].T
        if "linear_fc2.bias" in weights:
            hidden = hidden + weights["linear_fc2.bias"][expert]
        out.append(hidden * part_probs[:, None])
    return torch.cat(out)


def cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Compute `model.loss.linear_cross_entropy`, with the logits of all tokens at once."""
    return (F.cross_entropy(hidden @ weight.T, labels, reduction="none") * mask).sum()
