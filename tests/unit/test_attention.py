"""Attention against a plain fp64 softmax with an explicit mask, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptoss20b.model.attention import causal_attention, window_attention


def plain(query: Tensor, key: Tensor, value: Tensor, past: int | None, sink: Tensor | None) -> Tensor:
    """Softmax over an S x S mask in fp64."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    length = query.shape[2]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    visible = (distance >= 0) & (distance <= (length if past is None else past))
    scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).masked_fill(~visible, -math.inf)
    if sink is not None:
        column = sink[None, :, None, None].expand(query.shape[0], -1, length, 1)
        return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1] @ value
    return scores.softmax(dim=-1) @ value


def compare(length: int, heads: int, groups: int, head_dim: int, past: int | None, with_sink: bool) -> None:
    generator = torch.Generator().manual_seed(length * 31 + heads)
    shapes = [(2, heads, length, head_dim), (2, groups, length, head_dim), (2, groups, length, head_dim), (heads,)]
    double = [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]
    single = [x.detach().float().requires_grad_() for x in double]
    weight = torch.randn(shapes[0], dtype=torch.float64, generator=generator)

    expected = plain(*double[:3], past, double[3] if with_sink else None)
    (expected * weight).sum().backward()
    scale, sink = 1 / math.sqrt(head_dim), single[3] if with_sink else None
    if past is None:
        got = causal_attention(*single[:3], scale, sink)
    else:
        got = window_attention(*single[:3], scale, past, sink)
    (got * weight.float()).sum().backward()

    used = 4 if with_sink else 3
    for one, other in [(got, expected), *((s.grad, d.grad) for s, d in zip(single[:used], double[:used], strict=True))]:
        assert one is not None
        assert other is not None
        assert one.shape == other.shape
        assert float((one.detach().double() - other.detach()).norm() / other.detach().norm()) < 1e-5


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("past", [0, 1, 127, 128, 129, None])
@pytest.mark.parametrize("length", [2, 64, 130, 257, 384])
def test_windows_and_lengths(length: int, past: int | None, with_sink: bool) -> None:
    if past == 0 and not with_sink:
        # The query sees its own key alone: the gradients of scores are exactly zero, so only the output is compared.
        value = torch.randn(1, 2, length, 8)
        out = window_attention(torch.randn(1, 4, length, 8), torch.randn(1, 2, length, 8), value, 0.3, 0)
        torch.testing.assert_close(out, value.repeat_interleave(2, dim=1))
        return
    compare(length, heads=4, groups=2, head_dim=16, past=past, with_sink=with_sink)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(2, 300),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 4),
    head_dim=st.sampled_from([8, 16, 24, 64]),
    past=st.one_of(st.none(), st.integers(1, 310)),
    with_sink=st.booleans(),
)
def test_random_shapes(
    length: int, groups: int, repeats: int, head_dim: int, past: int | None, with_sink: bool
) -> None:
    compare(length, groups * repeats, groups, head_dim, past, with_sink)


def test_a_window_of_the_whole_sequence_is_full_attention() -> None:
    query, key, value = torch.randn(1, 4, 200, 16), torch.randn(1, 2, 200, 16), torch.randn(1, 2, 200, 16)
    torch.testing.assert_close(
        window_attention(query, key, value, 0.25, 199), causal_attention(query, key, value, 0.25)
    )


def test_no_tensor_of_a_windowed_layer_grows_with_the_square_of_the_length() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else (out,):
                if isinstance(each, Tensor):
                    self.elements = max(self.elements, each.numel())
            return out

    length, heads = 8192, 2
    query, key, value = (torch.randn(1, heads, length, 16, requires_grad=True) for _ in range(3))
    with Largest() as largest:
        window_attention(query, key, value, 0.25, 128).sum().backward()
    assert 0 < largest.elements < heads * length * length / 8
