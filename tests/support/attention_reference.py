"""The comparison of attention and rotation with plain fp64 that the tests on a CPU and on a GPU share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gptoss20b.model.rotary import rotation_table
from gptoss20b.selftest import reference

# Largest relative error, by the dtype of the inputs.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def check_against_fp64(
    function: Callable[..., Sequence[Tensor]],
    expected_function: Callable[..., Sequence[Tensor]],
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Compare outputs and all inputs' gradients on the same normal inputs of these shapes, rounded to this dtype."""
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    exact = [torch.randn(*s, generator=generator).to(dtype).double().requires_grad_() for s in shapes]
    inputs = [x.detach().to(device, dtype).requires_grad_() for x in exact]
    expected, got = expected_function(*exact), function(*inputs)
    # Toward the output itself, lest a sink's gradient be a sum that cancels to little more than what bf16 rounds away.
    weights = [
        (torch.randn(x.shape, generator=generator) + 2 * x.detach() / x.detach().std()).to(dtype) for x in expected
    ]
    torch.autograd.backward(expected, [w.double() for w in weights])
    torch.autograd.backward(got, [w.to(device) for w in weights])
    assert [x.dtype for x in got] == [dtype] * len(expected)
    for one, other in zip([*got, *(x.grad for x in inputs)], [*expected, *(x.grad for x in exact)], strict=True):
        assert one is not None
        assert other is not None
        assert one.shape == other.shape
        difference, size = float((one.detach().cpu().double() - other.detach()).norm()), float(other.detach().norm())
        # What is exactly zero (the scores' gradient where a query sees one key) has no relative error.
        assert difference < TOLERANCE[dtype] * (size if size > 1e-9 else max(1.0, float(weights[0].norm())))


def check_attention(
    attention: Callable[..., Tensor],
    length: int,
    heads: int,
    groups: int,
    head_dim: int,
    window_left: int | None,
    with_sink: bool,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Check a function like `gptoss20b.model.attention.dot_product_attention` on two sequences."""
    query, key = (2, heads, length, head_dim), (2, groups, length, head_dim)
    scale = 1 / math.sqrt(head_dim)
    check_against_fp64(
        lambda q, k, v, *sink: [attention(q, k, v, scale, window_left, *(sink or (None,)))],
        lambda q, k, v, *sink: [reference.attention(q, k, v, window_left, *(sink or (None,)))],
        [query, key, key, *([(heads,)] if with_sink else [])],
        dtype,
        device,
    )


def check_rope(
    split_qkv_rope: Callable[..., tuple[Tensor, Tensor, Tensor]],
    length: int,
    groups: int,
    repeats: int,
    head_dim: int,
    normed: bool,
    magnitude: float,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Check a function like `gptoss20b.model.rotary.split_qkv_rope` on two sequences."""
    eps = 1e-2  # large enough to be seen
    angles = torch.rand(length, head_dim // 2, generator=torch.Generator().manual_seed(length)) * 50
    rotation = rotation_table(torch.cat([angles, angles], dim=-1)[:, None, None].to(device), magnitude)

    def expected(qkv: Tensor, *weights: Tensor) -> Sequence[Tensor]:
        return reference.split_norm_rope(qkv, groups, weights, angles.double(), magnitude, eps)

    def ours(qkv: Tensor, *weights: Tensor) -> Sequence[Tensor]:
        return split_qkv_rope(qkv, groups, weights or (None, None), rotation, eps)

    shapes = [(length, 2, groups * (repeats + 2) * head_dim), *([(head_dim,), (head_dim,)] if normed else [])]
    check_against_fp64(ours, expected, shapes, dtype, device)
