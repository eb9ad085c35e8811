"""Attention against a plain fp64 softmax with an explicit mask, forward and backward, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss20b.model import attention
from gptoss20b.model.attention import dot_product_attention
from tests.support.attention_reference import compare_attention

EDGES = [0, 1, 127, 128, 129, None]


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("past", EDGES)
@pytest.mark.parametrize("length", [2, 130, 384])
def test_windows_and_lengths(length: int, past: int | None, with_sink: bool) -> None:
    compare_attention(dot_product_attention, length, 4, 2, 16, past, with_sink)


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("past", EDGES)
def test_windows_in_bf16(past: int | None, with_sink: bool) -> None:
    compare_attention(dot_product_attention, 257, 4, 1, 64, past, with_sink, torch.bfloat16)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 300),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 8),
    head_dim=st.sampled_from([8, 16, 24, 64]),
    past=st.one_of(st.none(), st.integers(0, 310)),
    with_sink=st.booleans(),
)
def test_random_shapes(
    length: int, groups: int, repeats: int, head_dim: int, past: int | None, with_sink: bool
) -> None:
    compare_attention(dot_product_attention, length, groups * repeats, groups, head_dim, past, with_sink)


# Of a few queries that see a few keys, the scores' gradients are differences of nearly equal numbers; and over the
# heads that share a key, torch's kernel for CPUs sums its gradient in bf16.
@settings(max_examples=10, deadline=None)
@given(
    length=st.integers(60, 300),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 6),
    head_dim=st.sampled_from([16, 24, 64]),
    past=st.one_of(st.none(), st.integers(2, 310)),
    with_sink=st.booleans(),
)
def test_random_shapes_in_bf16(
    length: int, groups: int, repeats: int, head_dim: int, past: int | None, with_sink: bool
) -> None:
    compare_attention(
        dot_product_attention, length, groups * repeats, groups, head_dim, past, with_sink, torch.bfloat16
    )


class Work(TorchDispatchMode):
    """Elements of the largest tensor made; scores and heads of keys in every call of fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.scores, self.key_heads = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "scaled_dot_product" in str(func) and "backward" not in str(func):
            query, key = args[:2]
            self.scores += query.shape[:3].numel() * key.shape[2]
            self.key_heads = key.shape[1]
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.numel())
        return out


def work(length: int, past: int | None, heads: int = 4, groups: int = 1, with_sink: bool = False) -> Work:
    query, key, value = (torch.randn(1, n, length, 8, requires_grad=True) for n in (heads, groups, groups))
    sink = torch.randn(heads, requires_grad=True) if with_sink else None
    with Work() as seen:
        dot_product_attention(query, key, value, 0.25, past, sink).sum().backward()
    return seen


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("past", [128, None])
def test_no_tensor_grows_with_the_square_of_the_length(past: int | None, with_sink: bool) -> None:
    length, heads = 2048, 2
    seen = work(length, past, heads, with_sink=with_sink)
    assert 0 < seen.largest < heads * length * length / 6


def test_work_is_proportional_to_the_window_and_to_the_length() -> None:
    assert work(1024, 128).scores == 4 * 1024 * 2 * 128  # each query the keys of two blocks
    assert work(2048, 128).scores == 2 * work(1024, 128).scores
    assert work(2048, 256).scores == 2 * work(2048, 128).scores


@pytest.mark.parametrize(("past", "with_sink"), [(None, False), (None, True), (128, False), (128, True)])
def test_keys_are_not_copied_for_the_heads_that_share_them(past: int | None, with_sink: bool) -> None:
    assert work(300, past, heads=8, groups=2, with_sink=with_sink).key_heads == 2


@pytest.mark.parametrize(
    ("dtype", "past", "with_sink", "way"),
    [
        (torch.bfloat16, None, False, "sdpa"),
        (torch.bfloat16, 4096, False, "sdpa"),  # a window of the whole sequence is none
        (torch.bfloat16, 128, False, "flex"),
        (torch.bfloat16, None, True, "flex"),
        (torch.float32, None, False, "flex"),  # no fused kernel: torch would make the S x S scores
    ],
)
def test_the_way_on_a_gpu(
    dtype: torch.dtype, past: int | None, with_sink: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    backends = torch.backends.cuda

    def sdpa(*_tensors: Tensor, is_causal: bool, scale: float, enable_gqa: bool) -> None:
        assert (is_causal, scale, enable_gqa) == (True, 0.25, True)
        assert backends.flash_sdp_enabled()
        assert backends.cudnn_sdp_enabled()
        assert not backends.math_sdp_enabled()
        assert not backends.mem_efficient_sdp_enabled()  # it would copy the keys
        taken.append("sdpa")

    def flex(query: Tensor, key: Tensor, value: Tensor, scale: float, seen: int | None, sink: Tensor | None) -> None:
        assert (scale, seen, sink is not None) == (0.25, past, with_sink)
        taken.append("flex")

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", sdpa)
    monkeypatch.setattr(attention, "flex_sink_attention", flex)
    # Tensors of a GPU that is not there; a test before this one may have told torch to read it as the CPU.
    with FakeTensorMode(), torch._C.DisableTorchFunction():
        query, key = (torch.empty(1, n, 4096, 64, dtype=dtype, device="cuda") for n in (8, 2))
        dot_product_attention(query, key, key, 0.25, past, torch.empty(8, device="cuda") if with_sink else None)
    assert taken == [way]
    assert backends.math_sdp_enabled()  # for others, afterwards
