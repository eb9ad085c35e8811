"""The grouped experts against one plain feed-forward network after another, in fp64, forward and backward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptoss20b.model.experts import GroupedExperts

HIDDEN, FFN = 16, 24


def make(experts: int, openai: bool, dtype: torch.dtype = torch.float32) -> GroupedExperts:
    config: Any = SimpleNamespace(
        hidden_size=HIDDEN,
        moe_ffn_hidden_size=FFN,
        add_bias_linear=openai,
        activation_func_clamp_value=7.0 if openai else None,
        params_dtype=dtype,
        use_cpu_initialization=True,
    )
    module = GroupedExperts(experts, config)
    generator = torch.Generator().manual_seed(experts)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return module


def plain(weights: dict[str, Tensor], rows: Tensor, counts: list[int], probabilities: Tensor, openai: bool) -> Tensor:
    out = []
    for number, (part, chance) in enumerate(zip(rows.split(counts), probabilities.split(counts), strict=True)):
        hidden = part @ weights["linear_fc1.weight"][number].T
        if openai:
            hidden = hidden + weights["linear_fc1.bias"][number]
        gate, up = hidden.chunk(2, dim=-1)
        if openai:
            gate, up = gate.clamp(max=7), up.clamp(-7, 7)
            hidden = gate * torch.sigmoid(1.702 * gate) * (up + 1)
        else:
            hidden = F.silu(gate) * up
        hidden = hidden @ weights["linear_fc2.weight"][number].T
        if openai:
            hidden = hidden + weights["linear_fc2.bias"][number]
        out.append(hidden * chance[:, None])
    return torch.cat(out)


def relative(one: Tensor | None, other: Tensor | None) -> float:
    assert one is not None
    assert other is not None
    return float((one.double() - other).norm() / other.norm().clamp(min=1e-30))


def compare(counts: list[int], openai: bool, dtype: torch.dtype, tolerance: float) -> None:
    module = make(len(counts), openai, dtype)
    generator = torch.Generator().manual_seed(sum(counts))
    rows = torch.randn(sum(counts), HIDDEN, generator=generator, dtype=torch.float64)
    chances = torch.rand(sum(counts), generator=generator, dtype=torch.float64)
    weight = torch.randn(sum(counts), HIDDEN, generator=generator, dtype=torch.float64)
    rows, chances = rows.to(dtype).double(), chances.float().double()  # what the module is given, exactly
    rows.requires_grad_()
    chances.requires_grad_()
    own_rows, own_chances = rows.detach().to(dtype).requires_grad_(), chances.detach().float().requires_grad_()

    weights = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    expected = plain(weights, rows, counts, chances, openai)
    (expected * weight).sum().backward()
    got, bias = module(own_rows, torch.tensor(counts), own_chances)
    (got * weight.to(dtype)).sum().backward()

    assert bias is None
    assert got.dtype == dtype
    assert relative(got, expected) < tolerance
    assert relative(own_rows.grad, rows.grad) < tolerance
    assert relative(own_chances.grad, chances.grad) < tolerance
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, weights[name].grad) < tolerance, name
        # An expert without rows gets no gradient, and neither noise nor another's.
        for number, count in enumerate(counts):
            assert bool(parameter.grad[number].any()) == (count > 0)


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("counts", [[5, 7, 3], [0, 4, 0, 9], [40, 0, 0, 1], [1], [0, 0, 6]])
def test_fp32(counts: list[int], openai: bool) -> None:
    compare(counts, openai, torch.float32, 1e-5)


@pytest.mark.parametrize("openai", [False, True])
def test_bf16(openai: bool) -> None:
    compare([8, 0, 24, 16], openai, torch.bfloat16, 1e-2)


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=9).filter(lambda c: sum(c) > 0), openai=st.booleans())
def test_random_loads(counts: list[int], openai: bool) -> None:
    compare(counts, openai, torch.float32, 1e-5)


def test_experts_are_marked_as_such_for_megatrons_ddp() -> None:
    assert all(getattr(parameter, "allreduce", True) is False for parameter in make(2, True).parameters())
