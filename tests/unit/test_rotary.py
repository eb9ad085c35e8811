"""QK norm and rotation against complex numbers in fp64, and against Megatron-Core's own operators."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptoss20b.model import rotary
from gptoss20b.model.rotary import give_rotation_tables, rms_norm_rope, rotation_table, split_qkv_rope
from tests.support.attention_reference import check_rope


def split_qkv_rope_on_gpu(
    qkv: Tensor, groups: int, weights: tuple[Tensor | None, Tensor | None], rotation: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what `split_qkv_rope` does on a GPU: with the formula of its gradient."""
    return rotary._SplitQkvRope.apply(qkv, groups, *weights, rotation, eps)  # type: ignore[no-any-return, no-untyped-call]


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
    for function in (split_qkv_rope, split_qkv_rope_on_gpu):
        check_rope(function, length, groups, repeats, head_dim, normed, magnitude, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("normed", [True, False])
def test_compiled(normed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a GPU. FusedFunction compiles nothing on a CPU.
    for function in (rotary._split_qkv_rope, rotary._split_qkv_rope_backward):
        monkeypatch.setattr(rotary, function.eager.__name__, function.compiled)
    check_rope(split_qkv_rope_on_gpu, 20, 2, 4, 16, normed, 1.35)


def angle_table(length: int, pairs: int) -> Tensor:
    half = torch.rand(length, 1, 1, pairs) * 100
    return torch.cat([half, half], dim=-1)


def test_numbers_equal_megatrons() -> None:
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    angles = angle_table(40, 8)
    x, norm = torch.randn(40, 2, 4, 16), torch.nn.RMSNorm(16, eps=1e-5)
    norm.weight.data.normal_()
    cos, sin = rotation_table(angles, 1.35).chunk(2, dim=-1)
    ours = rms_norm_rope(x, norm.weight, cos, sin, 1e-5)
    torch.testing.assert_close(ours, _apply_rotary_pos_emb_bshd(norm(x), angles, mscale=1.35))


@pytest.mark.parametrize("yarn", [False, True])
def test_megatrons_module_returns_the_table(yarn: bool) -> None:
    class Angles(torch.nn.Module):
        def forward(self, length: int) -> Tensor | tuple[Tensor, float]:
            angles = angle_table(length, 4)
            return (angles, 1.35) if yarn else angles

    module = Angles()
    give_rotation_tables(module, 2.0)
    returned = module(7)
    table = returned[0] if yarn else returned
    assert table.shape == (7, 1, 1, 8)
    cos, sin = table.chunk(2, dim=-1)
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, 4.0))


def test_bf16_is_rounded_once() -> None:
    x = torch.randn(64, 1, 8, 64).bfloat16()
    cos, sin = rotation_table(angle_table(64, 32), 1.0).chunk(2, dim=-1)
    exact = rms_norm_rope(x.float(), torch.ones(64), cos, sin, 1e-5)
    assert torch.equal(rms_norm_rope(x, torch.ones(64).bfloat16(), cos, sin, 1e-5), exact.bfloat16())


def test_outputs_are_contiguous_for_attention_kernels() -> None:
    rotation = rotation_table(torch.rand(6, 1, 1, 8), 1.0)
    outputs = split_qkv_rope(torch.randn(6, 2, 80), 2, (None, None), rotation, 1e-5)
    assert [x.shape for x in outputs] == [(6, 2, heads, 8) for heads in (6, 2, 2)]
    assert all(x.is_contiguous() for x in outputs)
