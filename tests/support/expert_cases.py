"""The experts beside plain feed-forward networks in fp64, on any device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss20b.model.experts import SWIGLU_LIMIT, GroupedExperts
from gptoss20b.selftest import reference
from tests.support.tensor_checks import relative_error

HIDDEN, FFN = 16, 24


class LeaveGarbage(TorchDispatchMode):
    """Leave ``garbage`` where grouped_mm multiplies no rows, as kernels of some GPUs leave what was in memory before.

    ``filled`` counts the products over no rows.
    """

    def __init__(self, garbage: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.garbage, self.filled = garbage, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten._grouped_mm and out.dim() == 3:
            offsets = (args[2] if len(args) > 2 else kwargs["offs"]).tolist()
            for expert, (start, end) in enumerate(zip([0, *offsets], offsets, strict=False)):
                if start == end:
                    out[expert] = self.garbage
                    self.filled += 1
        return out


def make_experts(
    experts: int,
    openai: bool,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    recompute: bool = False,
) -> GroupedExperts:
    """Return experts with random weights. The larger ones of ``openai`` reach the clamps."""
    config: Any = SimpleNamespace(
        hidden_size=HIDDEN,
        moe_ffn_hidden_size=FFN,
        add_bias_linear=openai,
        activation_func_clamp_value=SWIGLU_LIMIT if openai else None,
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
    moved: GroupedExperts = module.to(device)
    return moved


def make_inputs(rows: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Return rows and probabilities, both leaves, and the output's gradient."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, HIDDEN, generator=generator).to(device, dtype).requires_grad_()
    probs = torch.rand(rows, generator=generator).to(device).requires_grad_()
    return x, probs, torch.randn(rows, HIDDEN, generator=generator).to(device, dtype)


def check_experts(
    counts: list[int], openai: bool, dtype: torch.dtype, tolerance: float, device: torch.device | str = "cpu"
) -> None:
    """Check output and all gradients of experts with ``counts`` rows each."""
    module = make_experts(len(counts), openai, dtype, device)
    rows, probs, grad = make_inputs(sum(counts), dtype, device)
    wide_rows, wide_probs = (x.detach().double().requires_grad_() for x in (rows, probs))

    weights = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    expected = reference.experts(weights, wide_rows, counts, wide_probs, openai, dtype)
    (expected * grad).sum().backward()
    out, bias = module(rows, torch.tensor(counts, device=device), probs)
    (out * grad).sum().backward()

    assert bias is None
    assert out.dtype == dtype
    assert relative_error(out, expected) < tolerance
    assert relative_error(rows.grad, wide_rows.grad) < tolerance
    assert relative_error(probs.grad, wide_probs.grad) < tolerance
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert relative_error(parameter.grad, weights[name].grad) < tolerance, name
        # An expert without rows gets no gradient, neither noise nor another's.
        for expert, count in enumerate(counts):
            assert bool(parameter.grad[expert].any()) == (count > 0), name


def compute_gradients(
    module: GroupedExperts, counts: list[int], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return output and gradients by name, for bit-exact comparison."""
    rows, probs, grad = make_inputs(sum(counts), module.linear_fc1.weight.dtype, device)
    out, _ = module(rows, torch.tensor(counts, device=device), probs)
    leaves = {"rows": rows, "probs": probs, **dict(module.named_parameters())}
    gradients = torch.autograd.grad((out * grad).sum(), list(leaves.values()))
    return {"output": out.detach(), **dict(zip(leaves, gradients, strict=True))}
