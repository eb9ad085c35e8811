"""Attention, QK norm and rotation as they run on a GPU, against the same fp64 references as on a CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from gptoss20b.model.attention import dot_product_attention
from gptoss20b.model.kernels import attention_kernels
from gptoss20b.model.rotary import split_qkv_rope
from tests.support.attention_reference import check_attention, check_rope
from tests.support.tensor_checks import forbid_gpu_sync


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("window_left", [0, 1, 127, 128, 129, None])
@pytest.mark.parametrize("length", [130, 384])
def test_windows_and_lengths(length: int, window_left: int | None, with_sink: bool, dtype: torch.dtype) -> None:
    check_attention(dot_product_attention, length, 8, 2, 64, window_left, with_sink, dtype, "cuda")


@pytest.mark.parametrize(("heads", "groups"), [(8, 1), (8, 8), (64, 8)])
@pytest.mark.parametrize(("window_left", "with_sink"), [(None, False), (128, False), (127, True)])
def test_groups(heads: int, groups: int, window_left: int | None, with_sink: bool) -> None:
    check_attention(dot_product_attention, 1024, heads, groups, 64, window_left, with_sink, torch.bfloat16, "cuda")


@pytest.mark.parametrize("setting", ["auto", "cudnn", "flash", "flex"])
@pytest.mark.parametrize("groups", [2, 8])
def test_each_kernel_of_full_causal_layers(setting: str, groups: int) -> None:
    if setting == "cudnn" and torch.version.hip is not None:
        pytest.skip("cuDNN is NVIDIA's")
    attention = partial(dot_product_attention, kernels=attention_kernels(setting, groups))
    check_attention(attention, 1024, 16, groups, 64, None, False, torch.bfloat16, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("length", [3, 256])
def test_rotation(length: int, normed: bool, dtype: torch.dtype) -> None:
    check_rope(split_qkv_rope, length, 8, 8, 64, normed, 1.35, dtype, "cuda")


@pytest.mark.parametrize(("window_left", "with_sink"), [(None, False), (128, False), (127, True), (None, True)])
def test_memory_grows_with_the_length_and_not_its_square(window_left: int | None, with_sink: bool) -> None:
    def peak_bytes(length: int) -> int:
        query, key = (
            torch.randn(length, 1, n, 64, dtype=torch.bfloat16, device="cuda").permute(1, 2, 0, 3).requires_grad_()
            for n in (64, 8)
        )
        sink = torch.zeros(64, dtype=torch.bfloat16, device="cuda", requires_grad=True) if with_sink else None
        for _ in range(2):  # the second time without the memory of compiling and tuning
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            dot_product_attention(query, key, key, 0.125, window_left, sink).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    assert peak_bytes(8192) < 2.5 * peak_bytes(4096)


def test_the_host_does_not_wait_for_the_gpu() -> None:
    query, key = (torch.randn(1, n, 512, 64, dtype=torch.bfloat16, device="cuda").requires_grad_() for n in (8, 2))
    sinks = torch.zeros(8, device="cuda", requires_grad=True)
    for window_left, sink in ((None, None), (128, None), (127, sinks)):
        dot_product_attention(query, key, key, 0.125, window_left, sink).sum().backward()  # compiles
        with forbid_gpu_sync():
            dot_product_attention(query, key, key, 0.125, window_left, sink).sum().backward()
