"""The way through flex_attention that GPUs take: its numbers, run uncompiled on a CPU, and its lists of blocks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from gptoss20b.model import flex as module
from gptoss20b.model.flex import BLOCK_SIZE, flex_sink_attention, window_block_mask
from tests.support.attention_reference import compare_attention

CPU = torch.device("cpu")


@pytest.fixture
def gradients_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled, flex_attention has gradients on a CPU too, but refuses inputs that ask for them."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize(
    ("length", "groups", "repeats", "past", "with_sink", "dtype"),
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
def test_numbers(length: int, groups: int, repeats: int, past: int | None, with_sink: bool, dtype: torch.dtype) -> None:
    compare_attention(flex_sink_attention, length, groups * repeats, groups, 16, past, with_sink, dtype)


def by_block(counts: Tensor | None, columns: Tensor | None) -> Tensor:
    """The lists as a matrix of booleans."""
    assert counts is not None
    assert columns is not None
    first = torch.arange(columns.shape[-1]) < counts[..., None]
    return torch.zeros_like(columns).scatter(-1, columns.long(), first.int()).bool()


def blocks(mask: BlockMask) -> list[Tensor]:
    return [
        by_block(mask.kv_num_blocks, mask.kv_indices),
        by_block(mask.full_kv_num_blocks, mask.full_kv_indices),
        by_block(mask.q_num_blocks, mask.q_indices),
        by_block(mask.full_q_num_blocks, mask.full_q_indices),
    ]


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 900), past=st.one_of(st.none(), st.integers(0, 900)))
@example(length=640, past=0)
@example(length=640, past=1)
@example(length=640, past=127)
@example(length=640, past=128)
@example(length=640, past=129)
@example(length=640, past=384)
@example(length=641, past=None)
def test_the_blocks_are_those_that_torch_finds_by_trying_every_pair(length: int, past: int | None) -> None:
    ours = window_block_mask(length, past, CPU)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= query - (length if past is None else past))

    theirs = create_block_mask(seen, None, None, length, length, device="cpu", BLOCK_SIZE=BLOCK_SIZE)
    for one, other in zip(blocks(ours), blocks(theirs), strict=True):
        assert torch.equal(one, other)
    assert ours.seq_lengths == theirs.seq_lengths


def test_blocks_visited_are_proportional_to_the_window() -> None:
    def visited(length: int, past: int) -> int:
        mask = window_block_mask(length, past, CPU)
        assert mask.full_kv_num_blocks is not None
        return int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())

    assert visited(8192, 128) == 2 * 64 - 1  # its own and the one before
    assert visited(16384, 128) == 2 * 128 - 1
    assert visited(8192, 1024) == sum(min(9, row + 1) for row in range(64))


def test_making_the_mask_tries_no_pairs_of_positions() -> None:
    length = 128 * 128
    mask = window_block_mask.__wrapped__.__wrapped__(length, 128, CPU)  # behind the compiler's fence and the cache
    largest = max(x.numel() for x in mask.as_tuple() if isinstance(x, Tensor))
    assert largest <= math.ceil(length / BLOCK_SIZE) ** 2
    assert window_block_mask(length, 128, CPU) is window_block_mask(length, 128, CPU)


def test_a_compiled_layer_takes_the_mask_that_was_made_once() -> None:
    @torch.compile(backend="eager")
    def layer(x: Tensor) -> Tensor:
        visited: Tensor = window_block_mask(300, 77, x.device).kv_num_blocks
        return x + visited.sum()

    cached = window_block_mask.__wrapped__
    before = cached.cache_info()
    for _ in range(3):
        layer(torch.zeros(2))
    after = cached.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize(("past", "with_sink"), [(None, True), (128, True), (128, False)])
def test_the_compiler_takes_it_as_one_graph(past: int | None, with_sink: bool) -> None:
    # Tracing, mask as an argument and the autograd graph are the compiler's on a GPU; only the kernels are not.
    traced = torch.compile(module._flex_with_sink.eager, backend="aot_eager", fullgraph=True, dynamic=False)

    def attend(
        query: Tensor, key: Tensor, value: Tensor, scale: float, past: int | None, sink: Tensor | None
    ) -> Tensor:
        return traced(query, key, value, sink, window_block_mask(query.shape[2], past, CPU), scale)

    compare_attention(attend, 300, 4, 2, 16, past, with_sink)
