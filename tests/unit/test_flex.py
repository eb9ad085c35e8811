"""Flex attention, as GPUs run it: its numbers, uncompiled on a CPU, and its lists of blocks."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from gptoss20b.model.attention import TorchCoreAttention
from gptoss20b.model.flex import (
    BLOCK_SIZE,
    _flex_with_sink,
    flex_sink_attention,
    kernel_options,
    window_block_mask,
)
from tests.support.attention_reference import check_attention

CPU = torch.device("cpu")


@pytest.fixture
def gradients_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flex_attention take inputs that require gradients: uncompiled it has them on a CPU, but refuses."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize(
    ("length", "groups", "repeats", "window_left", "with_sink", "dtype"),
    [
        (130, 2, 4, None, False, torch.float32),
        (130, 1, 8, None, True, torch.float32),
        (257, 2, 2, 128, True, torch.float32),
        (257, 2, 1, 127, False, torch.float32),
        (200, 1, 2, 129, True, torch.float32),
        (64, 2, 2, 1, True, torch.float32),
        (64, 2, 2, 0, False, torch.float32),
        (64, 2, 2, 0, True, torch.float32),
        (257, 2, 2, 128, True, torch.bfloat16),
        (257, 2, 2, None, False, torch.bfloat16),
    ],
)
def test_numbers(
    length: int, groups: int, repeats: int, window_left: int | None, with_sink: bool, dtype: torch.dtype
) -> None:
    check_attention(flex_sink_attention, length, groups * repeats, groups, 16, window_left, with_sink, dtype)


@pytest.mark.parametrize(
    ("capability", "head_dim", "size", "hip", "chosen"),
    [
        ((10, 0), 64, 2, None, True),
        ((10, 3), 64, 2, None, True),
        ((9, 0), 64, 2, None, False),
        ((12, 0), 64, 2, None, False),
        ((10, 0), 128, 2, None, False),
        ((10, 0), 64, 4, None, False),
        ((10, 0), 64, 2, "7.1", False),
    ],
)
def test_only_known_architectures_and_heads_get_options(
    capability: tuple[int, int],
    head_dim: int,
    size: int,
    hip: str | None,
    chosen: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    query: Any = SimpleNamespace(is_cuda=True, shape=(2, 8, 256, head_dim), element_size=lambda: size)
    assert (kernel_options(query) is not None) == chosen
    assert kernel_options(torch.ones(1, 1, 1, 64, dtype=torch.bfloat16)) is None


def listed_blocks(counts: Tensor | None, columns: Tensor | None) -> Tensor:
    """Return the lists of blocks as a matrix of booleans."""
    assert counts is not None
    assert columns is not None
    first = torch.arange(columns.shape[-1]) < counts[..., None]
    return torch.zeros_like(columns).scatter(-1, columns.long(), first.int()).bool()


def all_blocks(mask: BlockMask) -> list[Tensor]:
    return [
        listed_blocks(mask.kv_num_blocks, mask.kv_indices),
        listed_blocks(mask.full_kv_num_blocks, mask.full_kv_indices),
        listed_blocks(mask.q_num_blocks, mask.q_indices),
        listed_blocks(mask.full_q_num_blocks, mask.full_q_indices),
    ]


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 900), window_left=st.one_of(st.none(), st.integers(0, 900)))
@example(length=640, window_left=0)
@example(length=640, window_left=1)
@example(length=640, window_left=127)
@example(length=640, window_left=128)
@example(length=640, window_left=129)
@example(length=640, window_left=384)
@example(length=641, window_left=None)
def test_blocks_equal_those_of_torchs_own_search(length: int, window_left: int | None) -> None:
    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= query - (length if window_left is None else window_left))

    ours = window_block_mask(length, window_left, CPU)
    theirs = create_block_mask(visible, None, None, length, length, device="cpu", BLOCK_SIZE=BLOCK_SIZE)
    for one, other in zip(all_blocks(ours), all_blocks(theirs), strict=True):
        assert torch.equal(one, other)
    assert ours.seq_lengths == theirs.seq_lengths


def test_blocks_visited_are_proportional_to_the_window() -> None:
    def visited(length: int, window_left: int) -> int:
        mask = window_block_mask(length, window_left, CPU)
        assert mask.full_kv_num_blocks is not None
        return int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())

    assert visited(8192, 128) == 2 * 64 - 1  # its own and the one before
    assert visited(16384, 128) == 2 * 128 - 1
    assert visited(8192, 1024) == sum(min(9, row + 1) for row in range(64))


def test_making_the_mask_tries_no_pairs_of_positions() -> None:
    length = 128 * 128
    mask = window_block_mask.__wrapped__(length, 128, CPU)  # behind the cache
    largest = max(x.numel() for x in mask.as_tuple() if isinstance(x, Tensor))
    assert largest <= math.ceil(length / BLOCK_SIZE) ** 2
    assert window_block_mask(length, 128, CPU) is window_block_mask(length, 128, CPU)


@pytest.mark.parametrize("sinks", [False, True])
def test_a_compiled_layer_is_whole_and_takes_the_mask_that_it_has_prepared(
    sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(
        **{"context_parallel_size": 1, "kv_channels": 16, "window_size": (77, 0), "window_attn_skip_freq": [1]},
        **{
            "num_query_groups": 2,
            "num_attention_heads": 4,
            "tensor_model_parallel_size": 1,
            "attention_kernel": "auto",
        },
        **{"softmax_type": "learnable" if sinks else "vanilla", "params_dtype": torch.float32},
        use_cpu_initialization=True,
    )
    core = TorchCoreAttention(config, layer_number=1)
    if core.softmax_offset is not None:
        core.softmax_offset.data.fill_(0.5)
    query, key = (torch.randn(300, 1, heads, 16) for heads in (4, 2))
    expected = core(query, key, key)
    core.prepare(300, CPU)
    monkeypatch.setattr("gptoss20b.model.flex.window_block_mask", None)
    monkeypatch.setattr("gptoss20b.model.attention.sdpa_sliding_window", None)

    def on_gpu(*arguments: Any) -> Tensor:  # as dot_product_attention does there
        query, key, value, scale, window, sink, _, mask = arguments
        return flex_sink_attention(query, key, value, scale, window, sink, mask)

    monkeypatch.setattr("gptoss20b.model.attention.dot_product_attention", on_gpu)
    with torch.no_grad():
        whole = torch.compile(core, backend="eager", fullgraph=True)(query, key, key)
    torch.testing.assert_close(whole, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize(("window_left", "with_sink"), [(None, True), (128, True), (128, False)])
def test_the_compiler_takes_it_as_one_graph(window_left: int | None, with_sink: bool) -> None:
    # Tracing, mask as an argument and the autograd graph are the compiler's on a GPU; only the kernels are not.
    traced = torch.compile(_flex_with_sink.eager, backend="aot_eager", fullgraph=True, dynamic=False)

    def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, sink: Tensor | None) -> Tensor:
        return traced(q, k, v, sink, window_block_mask(q.shape[2], window, CPU), scale)

    check_attention(attention, 300, 4, 2, 16, window_left, with_sink)
