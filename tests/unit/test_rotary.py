"""QK norm and rotation against complex numbers in fp64, and against Megatron-Core's own operators."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptoss20b.model.rotary import rms_norm_rope, rotary_cos_sin, split_qkv_rope
from tests.support.attention_reference import check_rope


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 40),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 8),
    head_dim=st.sampled_from([8, 16, 64]),
    normed=st.booleans(),
    magnitude=st.sampled_from([1.0, 1.35]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_random_shapes(
    length: int, groups: int, repeats: int, head_dim: int, normed: bool, magnitude: float, dtype: torch.dtype
) -> None:
    check_rope(split_qkv_rope, length, groups, repeats, head_dim, normed, magnitude, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("normed", [True, False])
def test_compiled(normed: bool) -> None:
    check_rope(split_qkv_rope.compiled, 20, 2, 4, 16, normed, 1.35)


def angle_table(length: int, pairs: int) -> Tensor:
    half = torch.rand(length, 1, 1, pairs) * 100
    return torch.cat([half, half], dim=-1)


def test_numbers_equal_megatrons() -> None:
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    angles = angle_table(40, 8)
    x, norm = torch.randn(40, 2, 4, 16), torch.nn.RMSNorm(16, eps=1e-5)
    norm.weight.data.normal_()
    cos, sin = (table.squeeze(2) for table in rotary_cos_sin(angles, 1.35))
    ours = rms_norm_rope(x, norm.weight, cos, sin, 1e-5)
    torch.testing.assert_close(ours, _apply_rotary_pos_emb_bshd(norm(x), angles, mscale=1.35))


def test_a_table_is_computed_once() -> None:
    angles = angle_table(7, 4)
    cos, sin = rotary_cos_sin(angles, 2.0)
    assert cos.shape == (7, 1, 1, 1, 4)
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, 4.0))
    assert rotary_cos_sin(angles, 2.0)[0] is cos
    assert rotary_cos_sin(angles.clone(), 2.0)[0] is not cos


def test_bf16_is_rounded_once() -> None:
    x = torch.randn(64, 1, 8, 64).bfloat16()
    cos, sin = (table.squeeze(2) for table in rotary_cos_sin(angle_table(64, 32), 1.0))
    exact = rms_norm_rope(x.float(), torch.ones(64), cos, sin, 1e-5)
    assert torch.equal(rms_norm_rope(x, torch.ones(64).bfloat16(), cos, sin, 1e-5), exact.bfloat16())


def test_outputs_are_contiguous_for_attention_kernels() -> None:
    cos, sin = rotary_cos_sin(torch.rand(6, 1, 1, 8), 1.0)
    outputs = split_qkv_rope(torch.randn(6, 2, 80), 2, (None, None), cos, sin, 1e-5)
    assert [x.shape for x in outputs] == [(6, 2, heads, 8) for heads in (6, 2, 2)]
    assert all(x.is_contiguous() for x in outputs)
