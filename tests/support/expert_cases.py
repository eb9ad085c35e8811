"""What a test of the experts does, on any device; beside them plain feed-forward networks, one by one, in fp64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptoss20b.model.experts import GroupedExperts

HIDDEN, FFN = 16, 24


def make(
    experts: int,
    openai: bool,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    recompute: bool = False,
) -> GroupedExperts:
    """Experts with random weights; the larger ones of ``openai`` reach the clamps."""
    config: Any = SimpleNamespace(
        hidden_size=HIDDEN,
        moe_ffn_hidden_size=FFN,
        add_bias_linear=openai,
        activation_func_clamp_value=7.0 if openai else None,
        params_dtype=dtype,
        use_cpu_initialization=True,
        recompute_granularity="selective" if recompute else None,
        recompute_modules=["moe_act"] if recompute else None,
    )
    module = GroupedExperts(experts, config)
    generator = torch.Generator().manual_seed(experts)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 1.0 if openai else 0.5, generator=generator)
    return module.to(device)


def plain(
    weights: dict[str, Tensor], rows: Tensor, counts: list[int], probabilities: Tensor, openai: bool, dtype: torch.dtype
) -> Tensor:
    """In the inputs' type, except that what is clamped is what ``dtype`` rounds over the edge.

    The derivative jumps there, and bf16 has 32 numbers between 7 and 8: gradients would differ by a tenth.
    """
    out = []
    for number, (part, chance) in enumerate(zip(rows.split(counts), probabilities.split(counts), strict=True)):
        hidden = part @ weights["linear_fc1.weight"][number].T
        if openai:
            bias = weights["linear_fc1.bias"][number]
            hidden, rounded = hidden + bias, hidden.detach().to(dtype) + bias.detach()
        gate, up = hidden.chunk(2, dim=-1)
        if openai:
            rounded_gate, rounded_up = rounded.chunk(2, dim=-1)
            gate = torch.where(rounded_gate <= 7, gate, 7)
            up = torch.where(rounded_up.abs() <= 7, up, 7 * rounded_up.sign())
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
    assert one.shape == other.shape
    return float((one.detach().double() - other.detach()).norm() / other.detach().norm().clamp(min=1e-30))


def inputs(rows: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Rows and probabilities, both leaves, and the weight of each element of the result in a scalar."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, HIDDEN, generator=generator).to(device, dtype).requires_grad_()
    chances = torch.rand(rows, generator=generator).to(device).requires_grad_()
    return x, chances, torch.randn(rows, HIDDEN, generator=generator).to(device, dtype)


def compare(
    counts: list[int], openai: bool, dtype: torch.dtype, tolerance: float, device: torch.device | str = "cpu"
) -> None:
    """Output and all gradients of experts that get ``counts`` rows."""
    module = make(len(counts), openai, dtype, device)
    own_rows, own_chances, weight = inputs(sum(counts), dtype, device)
    rows, chances = (x.detach().double().requires_grad_() for x in (own_rows, own_chances))

    weights = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    expected = plain(weights, rows, counts, chances, openai, dtype)
    (expected * weight).sum().backward()
    got, bias = module(own_rows, torch.tensor(counts, device=device), own_chances)
    (got * weight).sum().backward()

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
            assert bool(parameter.grad[number].any()) == (count > 0), name


def gradients(module: GroupedExperts, counts: list[int], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Output and gradients by name, for comparison to the bit."""
    rows, chances, weight = inputs(sum(counts), module.linear_fc1.weight.dtype, device)
    out, _ = module(rows, torch.tensor(counts, device=device), chances)
    leaves = {"rows": rows, "probabilities": chances, **dict(module.named_parameters())}
    found = torch.autograd.grad((out * weight).sum(), list(leaves.values()))
    return {"output": out.detach(), **dict(zip(leaves, found, strict=True))}
