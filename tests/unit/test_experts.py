"""The grouped experts against one plain feed-forward network after another, in fp64, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptoss20b.model.experts import weighted_swiglu, weighted_swiglu_backward
from gptoss20b.model.fused import FusedFunction
from gptoss20b.model.grouped_gemm import zero_unused
from tests.support.expert_cases import (
    FFN,
    HIDDEN,
    LeaveGarbage,
    check_experts,
    compute_gradients,
    make_experts,
    make_inputs,
)
from tests.support.tensor_checks import RecordOperators

FP32, BF16 = (torch.float32, 1e-5), (torch.bfloat16, 1e-2)


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize(
    ("counts", "precision"),
    [
        *((counts, FP32) for counts in ([5, 7, 3], [0, 4, 0, 9], [40, 0, 0, 1], [1], [0, 0, 6], [0, 0])),
        *((counts, BF16) for counts in ([8, 0, 24, 16], [0, 90, 0], [1])),
    ],
)
def test_numbers(counts: list[int], precision: tuple[torch.dtype, float], openai: bool) -> None:
    check_experts(counts, openai, *precision)


@pytest.mark.parametrize(("dtype", "tolerance"), [FP32, BF16])
@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=9), openai=st.booleans())
def test_random_loads(dtype: torch.dtype, tolerance: float, counts: list[int], openai: bool) -> None:
    # The gradient of one row's probability is a sum that may cancel: in bf16 a hundredth is kept by many rows only.
    assume(dtype == torch.float32 or sum(counts) >= 32)
    check_experts(counts, openai, dtype, tolerance)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e4])
@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("counts", [[5, 0, 7, 0], [0, 0, 24, 0], [0, 16, 3], [0, 0]])
@pytest.mark.parametrize("precision", [FP32, BF16])
def test_what_a_product_over_no_rows_leaves_in_memory_reaches_no_gradient(
    counts: list[int], openai: bool, garbage: float, precision: tuple[torch.dtype, float]
) -> None:
    with LeaveGarbage(garbage) as mode:
        check_experts(counts, openai, *precision)
    assert mode.filled == (2 + 2 * openai) * counts.count(0)


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_kernels_get_tensors_that_require_no_gradients(
    openai: bool, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else torch would compile each twice: for layers whose input requires gradients and for recomputed ones.
    requiring = []

    def watched(function: FusedFunction[..., Any], *arguments: Any) -> Any:
        requiring.append(any(isinstance(each, Tensor) and each.requires_grad for each in arguments))
        return function.eager(*arguments)

    monkeypatch.setattr(FusedFunction, "__call__", watched)
    compute_gradients(make_experts(2, openai, recompute=recompute), [3, 5])
    # Activation and its gradient, two weights' gradients; with biases those of the biases, and two more.
    assert requiring == [False] * (4 + recompute + 4 * openai)


def test_a_probability_of_zero_still_has_its_gradient() -> None:
    rows, _, grad = make_inputs(4, torch.float32)
    probs = torch.zeros(4, requires_grad=True)
    out, _ = make_experts(1, openai=False)(rows, torch.tensor([4]), probs)
    (out * grad).sum().backward()
    assert not out.any()
    assert probs.grad is not None
    assert probs.grad.all()


@pytest.mark.parametrize(("openai", "gemms"), [(False, 6), (True, 8)])
def test_each_product_is_one_grouped_gemm_without_copies(openai: bool, gemms: int) -> None:
    # Forward and two gradients, of up/gate and of down; and the sums that are the biases' gradients.
    module, (rows, probs, _) = make_experts(3, openai, torch.bfloat16), make_inputs(32, torch.bfloat16)
    with RecordOperators() as recorded:
        out, _ = module(rows, torch.tensor([20, 0, 12]), probs)
        out.backward(torch.ones_like(out))
    assert recorded.names.count("aten._grouped_mm") == gemms
    assert not {"aten.clone", "aten.contiguous", "aten.mm", "aten.index_put", "aten.index_add"} & set(recorded.names)
    weight_shapes = {tuple(p.shape) for p in module.parameters() if p.dim() == 3}
    assert weight_shapes == {(3, 2 * FFN, HIDDEN), (3, HIDDEN, FFN)}
    copied = {
        tuple(shape) for operator in recorded.operators if operator.name == "aten.copy_" for shape in operator.outputs
    }
    assert not weight_shapes & copied
    for parameter in module.parameters():
        assert parameter.grad is not None
        # DDP adds it to fp32 gradients of the same layout.
        assert parameter.grad.dim() == 2 or parameter.grad.is_contiguous()


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_the_activation_is_bit_exact_and_keeps_less(openai: bool, dtype: torch.dtype) -> None:
    counts = [20, 0, 12]
    results, kept_bytes = [], []
    for recompute in (False, True):
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):  # type: ignore[misc]
            results.append(compute_gradients(make_experts(3, openai, dtype, recompute=recompute), counts))
        kept_bytes.append(sum(x.nbytes for x in saved))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name
    assert kept_bytes[0] - kept_bytes[1] == sum(counts) * FFN * dtype.itemsize, "the activation, and nothing else"


def test_experts_are_marked_for_megatrons_ddp() -> None:
    assert all(getattr(parameter, "allreduce", True) is False for parameter in make_experts(2, True).parameters())


@pytest.mark.slow
def test_compiled_kernels_equal_eager_ones() -> None:
    gradients = torch.full((3, 8, 16), float("nan"))
    gradients[1] = 1.0
    zero_unused.compiled(gradients, torch.tensor([True, False, True]))
    assert gradients.sum((1, 2)).tolist() == [0, 128, 0]
    random = torch.Generator().manual_seed(1)
    arguments = (
        5 * torch.randn(18, 2 * FFN, generator=random).bfloat16(),
        torch.rand(18, generator=random),
        torch.randn(3, 2 * FFN, generator=random),
        torch.tensor([0, 0, 1, 1, 1, 2] * 3),
        True,
    )
    grad = torch.randn(18, FFN, generator=random).bfloat16()
    torch.testing.assert_close(weighted_swiglu.compiled(*arguments), weighted_swiglu.eager(*arguments))
    torch.testing.assert_close(
        weighted_swiglu_backward.compiled(grad, *arguments), weighted_swiglu_backward.eager(grad, *arguments)
    )
