"""The grouped experts against one plain feed-forward network after another, in fp64, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss20b.model.experts import weighted_swiglu, weighted_swiglu_backward
from gptoss20b.model.fused import FusedFunction
from tests.support.expert_cases import FFN, HIDDEN, compare, gradients, inputs, make


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("counts", [[5, 7, 3], [0, 4, 0, 9], [40, 0, 0, 1], [1], [0, 0, 6], [0, 0]])
def test_fp32(counts: list[int], openai: bool) -> None:
    compare(counts, openai, torch.float32, 1e-5)


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("counts", [[8, 0, 24, 16], [0, 90, 0], [1]])
def test_bf16(counts: list[int], openai: bool) -> None:
    compare(counts, openai, torch.bfloat16, 1e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=9), openai=st.booleans())
def test_random_loads(dtype: torch.dtype, tolerance: float, counts: list[int], openai: bool) -> None:
    # The gradient of one row's probability is a sum that may cancel: in bf16 a hundredth is kept by many rows only.
    assume(dtype == torch.float32 or sum(counts) >= 32)
    compare(counts, openai, dtype, tolerance)


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_kernels_are_given_what_requires_no_gradients(
    openai: bool, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or torch compiled each twice: for layers whose input requires gradients and for recomputed ones.
    requiring = []

    def watched(function: FusedFunction[..., Any], *arguments: Any) -> Any:
        requiring.append(any(isinstance(each, Tensor) and each.requires_grad for each in arguments))
        return function.eager(*arguments)

    monkeypatch.setattr(FusedFunction, "__call__", watched)
    gradients(make(2, openai, recompute=recompute), [3, 5])
    assert requiring == [False] * (2 + recompute + 2 * openai)


def test_a_weight_of_zero_still_has_its_gradient() -> None:
    module = make(1, openai=False)
    rows, _, weight = inputs(4, torch.float32)
    chances = torch.zeros(4, requires_grad=True)
    out, _ = module(rows, torch.tensor([4]), chances)
    (out * weight).sum().backward()
    assert not out.any()
    assert chances.grad is not None
    assert chances.grad.all()


class Recorded(TorchDispatchMode):
    """The operators that run, with the shapes of what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor):
                self.made.append((str(func.overloadpacket), tuple(each.shape)))
        return out


@pytest.mark.parametrize(("openai", "gemms"), [(False, 6), (True, 8)])
def test_each_product_is_one_grouped_gemm_of_tensors_as_they_lie(openai: bool, gemms: int) -> None:
    # Forward, and two gradients, of up/gate and of down; and the sums that are the biases' gradients.
    module, (rows, chances, _) = make(3, openai, torch.bfloat16), inputs(32, torch.bfloat16)
    with Recorded() as recorded:
        out, _ = module(rows, torch.tensor([20, 0, 12]), chances)
        out.backward(torch.ones_like(out))
    names = [name for name, _ in recorded.made]
    assert names.count("aten._grouped_mm") == gemms
    assert not {"aten.clone", "aten.contiguous", "aten.mm", "aten.index_put", "aten.index_add"} & set(names)
    weight_shapes = {tuple(p.shape) for p in module.parameters() if p.dim() == 3}
    assert weight_shapes == {(3, 2 * FFN, HIDDEN), (3, HIDDEN, FFN)}
    copied = [made for made in recorded.made if made[0] == "aten.copy_" and made[1] in weight_shapes]
    assert copied == []
    for parameter in module.parameters():
        assert parameter.grad is not None
        # What DDP adds to the fp32 gradients lies as they do.
        assert parameter.grad.dim() == 2 or parameter.grad.is_contiguous()


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_the_activation_changes_no_bit_and_keeps_less(openai: bool, dtype: torch.dtype) -> None:
    counts = [20, 0, 12]
    found, kept = [], []
    for recompute in (False, True):
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):  # type: ignore[misc]
            found.append(gradients(make(3, openai, dtype, recompute=recompute), counts))
        kept.append(sum(x.numel() * x.element_size() for x in saved))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
    assert kept[0] - kept[1] == sum(counts) * FFN * dtype.itemsize, "the activation, and nothing else"


def test_experts_are_marked_as_such_for_megatrons_ddp() -> None:
    assert all(getattr(parameter, "allreduce", True) is False for parameter in make(2, True).parameters())


@pytest.mark.slow
def test_what_a_gpu_runs_compiles_to_the_same() -> None:
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
