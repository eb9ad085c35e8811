"""Attention against a plain fp64 softmax with an explicit mask, forward and backward, and its cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gptoss20b.model.attention import dot_product_attention
from tests.support.attention_reference import check_attention
from tests.support.tensor_checks import RecordOperators


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("window_left", [0, 1, 127, 128, 129, None])
@pytest.mark.parametrize(
    ("length", "groups", "head_dim", "dtype"),
    [*((length, 2, 16, torch.float32) for length in (2, 130, 384)), (257, 1, 64, torch.bfloat16)],
)
def test_windows_and_lengths(
    length: int, groups: int, head_dim: int, dtype: torch.dtype, window_left: int | None, with_sink: bool
) -> None:
    check_attention(dot_product_attention, length, 4, groups, head_dim, window_left, with_sink, dtype)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 300),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 8),
    head_dim=st.sampled_from([8, 16, 24, 64]),
    window_left=st.one_of(st.none(), st.integers(0, 310)),
    with_sink=st.booleans(),
)
def test_random_shapes(
    length: int, groups: int, repeats: int, head_dim: int, window_left: int | None, with_sink: bool
) -> None:
    check_attention(dot_product_attention, length, groups * repeats, groups, head_dim, window_left, with_sink)


# Of a few queries that see a few keys, the scores' gradients are differences of nearly equal numbers; and over the
# heads that share a key, torch's kernel for CPUs sums its gradient in bf16.
@settings(max_examples=10, deadline=None)
@given(
    length=st.integers(60, 300),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 6),
    head_dim=st.sampled_from([16, 24, 64]),
    window_left=st.one_of(st.none(), st.integers(2, 310)),
    with_sink=st.booleans(),
)
def test_random_shapes_in_bf16(
    length: int, groups: int, repeats: int, head_dim: int, window_left: int | None, with_sink: bool
) -> None:
    heads = groups * repeats
    check_attention(dot_product_attention, length, heads, groups, head_dim, window_left, with_sink, torch.bfloat16)


def record(
    length: int, window_left: int | None, heads: int = 4, groups: int = 1, with_sink: bool = False
) -> RecordOperators:
    query, key, value = (torch.randn(1, n, length, 8, requires_grad=True) for n in (heads, groups, groups))
    sink = torch.randn(heads, requires_grad=True) if with_sink else None
    recorded = RecordOperators()
    with recorded:
        dot_product_attention(query, key, value, 0.25, window_left, sink).sum().backward()
    return recorded


def sdpa_shapes(recorded: RecordOperators) -> tuple[torch.Size, torch.Size]:
    """Return the shapes of query and key in the one forward call of fused attention."""
    ((query, key),) = (
        operator.inputs[:2]
        for operator in recorded.operators
        if "scaled_dot_product" in operator.name and "backward" not in operator.name
    )
    return query, key


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("window_left", [128, None])
def test_no_tensor_grows_with_the_square_of_the_length(window_left: int | None, with_sink: bool) -> None:
    length, heads = 2048, 2
    assert record(length, window_left, heads, with_sink=with_sink).largest < heads * length * length / 6


@pytest.mark.parametrize(("length", "window_left"), [(1024, 128), (2048, 128), (2048, 256)])
def test_work_is_proportional_to_the_window_and_to_the_length(length: int, window_left: int) -> None:
    query, key = sdpa_shapes(record(length, window_left))
    assert query[:3].numel() * key[2] == 4 * length * 2 * window_left  # each query the keys of two blocks


@pytest.mark.parametrize(("window_left", "with_sink"), [(None, False), (None, True), (128, False), (128, True)])
def test_keys_are_not_copied_for_the_heads_that_share_them(window_left: int | None, with_sink: bool) -> None:
    _, key = sdpa_shapes(record(300, window_left, heads=8, groups=2, with_sink=with_sink))
    assert key[1] == 2


@pytest.mark.parametrize(
    ("dtype", "window_left", "with_sink", "kernels", "called_kernels"),
    [
        (torch.bfloat16, None, False, ("cudnn", "flash"), ["cudnn", "flash"]),
        (torch.bfloat16, None, False, ("cudnn",), ["cudnn"]),
        (torch.bfloat16, None, False, ("flash",), ["flash"]),
        (torch.bfloat16, None, False, ("flex",), ["flex"]),
        (torch.bfloat16, 4096, False, ("flash",), ["flash"]),  # a window of the whole sequence is none
        (torch.bfloat16, 128, False, ("flash",), ["flex"]),
        (torch.bfloat16, None, True, ("cudnn",), ["flex"]),
        (torch.float32, None, False, ("flash",), ["flex"]),  # no fused kernel: torch would make the S x S scores
    ],
)
def test_kernel_choice_on_a_gpu(
    dtype: torch.dtype,
    window_left: int | None,
    with_sink: bool,
    kernels: tuple[str, ...],
    called_kernels: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []
    backends = torch.backends.cuda

    def sdpa(*_tensors: Tensor, is_causal: bool, scale: float, enable_gqa: bool) -> None:
        assert (is_causal, scale, enable_gqa) == (True, 0.25, True)
        assert not backends.math_sdp_enabled()
        assert not backends.mem_efficient_sdp_enabled()  # it would copy the keys
        enabled = {"cudnn": backends.cudnn_sdp_enabled(), "flash": backends.flash_sdp_enabled()}
        called.extend(name for name, is_enabled in enabled.items() if is_enabled)

    def flex(*arguments: Any) -> None:
        _, _, _, scale, window, sink, mask = arguments
        assert (scale, window, sink is not None, mask) == (0.25, window_left, with_sink, None)
        called.append("flex")

    monkeypatch.setattr(F, "scaled_dot_product_attention", sdpa)
    monkeypatch.setattr("gptoss20b.model.attention.flex_sink_attention", flex)
    # Tensors of a GPU that is not there; a test before this one may have told torch to read it as the CPU.
    with FakeTensorMode(), torch._C.DisableTorchFunction():
        query, key = (torch.empty(1, n, 4096, 64, dtype=dtype, device="cuda") for n in (8, 2))
        sink = torch.empty(8, device="cuda") if with_sink else None
        dot_product_attention(query, key, key, 0.25, window_left, sink, kernels)
    assert called == called_kernels
    assert backends.math_sdp_enabled()  # restored
