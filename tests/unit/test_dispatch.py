"""Permutation of rows by expert and back: as a loop does it, without waiting for the device, deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss20b.config import resolve
from gptoss20b.model.dispatch import AllToAllPlan, SortingDispatcher
from gptoss20b.model.fused import FusedFunction
from gptoss20b.model.rows import build_permutation, pack_rows, unpack_rows
from gptoss20b.process_groups import single_process
from tests.support.dispatch_cases import check_dispatcher, make_routing, single_rank_dispatcher
from tests.support.tensor_checks import RecordOperators


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    ("tokens", "experts", "topk", "skew"),
    [(64, 32, 4, 0.0), (33, 8, 4, 9.0), (1, 8, 4, 0.0), (7, 4, 4, 0.0), (5, 1, 1, 0.0), (40, 8, 1, 9.0)],
)
def test_one_rank(dtype: torch.dtype, tolerance: float, tokens: int, experts: int, topk: int, skew: float) -> None:
    check_dispatcher("cpu", dtype, tolerance, tokens, experts, topk, skew)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@settings(max_examples=30)
@given(tokens=st.integers(1, 40), experts=st.integers(1, 12), data=st.data(), skew=st.sampled_from([0.0, 0.3, 9.0]))
def test_one_rank_at_random(
    dtype: torch.dtype, tolerance: float, tokens: int, experts: int, data: Any, skew: float
) -> None:
    topk = data.draw(st.integers(1, experts), label="topk")
    # The gradient of one probability is a sum that may cancel: in bf16 a hundredth is kept by many rows only.
    assume(dtype == torch.float32 or tokens * topk >= 16)
    check_dispatcher("cpu", dtype, tolerance, tokens, experts, topk, skew)


def test_kernels_get_tensors_that_require_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    requiring = []

    def watched(function: FusedFunction[..., Any], x: Tensor, index: Tensor) -> Any:
        requiring.append(x.requires_grad)
        return function.eager(x, index)

    monkeypatch.setattr(FusedFunction, "__call__", watched)
    check_dispatcher("cpu", torch.float32, 1e-5, 8, 4, 2, 0.0)
    assert requiring == [False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_travel_with_their_rows(dtype: torch.dtype) -> None:
    """All bits of the fp32 probabilities and of their gradients arrive, also behind bf16 rows."""
    routing_map, probs = make_routing(40, 8, 4, 0.5, seed=2)
    permutation = build_permutation(routing_map, 4)
    probs = probs.gather(1, permutation.topk_experts).flatten().requires_grad_()
    x = torch.randn(40, 24).to(dtype).requires_grad_()
    packed = pack_rows(x, probs, permutation)
    assert packed.stride(0) * packed.itemsize % 16 == 0
    order = torch.randperm(160)
    rows, row_probs = unpack_rows(packed, order, order.argsort())
    assert torch.equal(rows, x[permutation.row_tokens][order])
    assert torch.equal(row_probs, probs[permutation.row_choices][order])
    upstream = torch.randn_like(rows), torch.randn_like(row_probs)
    torch.autograd.backward([rows, row_probs], upstream)
    choices = permutation.row_choices[order].argsort()
    assert probs.grad is not None and torch.equal(probs.grad, upstream[1][choices])
    assert x.grad is not None and torch.equal(x.grad, upstream[0][choices].float().view(40, 4, 24).sum(1).to(dtype))


def test_the_permutation_locates_each_choice() -> None:
    routing_map, _ = make_routing(20, 6, 3, 0.5, seed=3)
    order = build_permutation(routing_map, 3)
    row_experts = torch.repeat_interleave(torch.arange(6), order.tokens_per_expert)
    for token in range(20):
        assert order.topk_experts[token].tolist() == routing_map[token].nonzero().flatten().tolist()
        assert row_experts[order.topk_rows[token]].equal(order.topk_experts[token])
        assert order.row_tokens[order.topk_rows[token]].tolist() == [token] * 3
    assert order.row_choices[order.topk_rows.flatten()].tolist() == list(range(60))


@settings(max_examples=50)
@given(
    counts=st.integers(1, 5).flatmap(
        lambda experts: st.lists(
            st.lists(st.integers(0, 6), min_size=experts, max_size=experts), min_size=1, max_size=5
        )
    )
)
def test_received_rows_are_sorted_by_expert_then_source(counts: list[list[int]]) -> None:
    received = [
        (expert, source, number)
        for source, by_expert in enumerate(counts)
        for expert, count in enumerate(by_expert)
        for number in range(count)
    ]
    order, inverse = AllToAllPlan(torch.tensor(counts), torch.empty(0), None).expert_order(len(received))
    assert [received[row] for row in order.tolist()] == sorted(received)
    assert order[inverse].tolist() == list(range(len(received)))


# Operators that read a value, or make a tensor whose size depends on values.
SYNCHRONIZING = {
    "aten._local_scalar_dense",
    "aten.item",
    "aten.is_nonzero",
    "aten.equal",
    "aten.nonzero",
    "aten.masked_select",
    "aten.bincount",
    "aten.histc",
    "aten.unique_consecutive",
    "aten._unique2",
    "aten.unique_dim",
    "aten.repeat_interleave",
}


class ForbidSync(TorchDispatchMode):
    """Raise on operators that would make the host wait for a GPU: a read value, a size from values, a copy."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func.overloadpacket)
        self.operators += 1
        assert name not in SYNCHRONIZING, f"{name} waits for the device"
        if name == "aten.index":
            assert all(index is None or index.dtype != torch.bool for index in args[1]), (
                "a boolean mask waits for the device: the size of the result is in its values"
            )
        # Tensors of this test are on the CPU already: a copy with a device is one that the code asks for.
        assert name != "aten._to_copy" or kwargs.get("device") is None, "a copy to the host waits for the device"
        return func(*args, **kwargs)


@pytest.fixture(scope="module")
def layer() -> Iterator[Any]:
    """Return Megatron-Core's mixture-of-experts layer of the small model, with its router."""
    from gptoss20b.model.build import build_model

    with single_process():
        model = build_model(resolve({"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open"}), "torch", on_gpu=False)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.1, generator=random)
        yield model.decoder.layers[0].mlp


def test_experts_split_by_tensor_parallelism_are_refused(layer: Any) -> None:
    two = SimpleNamespace(size=lambda: 2, rank=lambda: 0)
    groups = SimpleNamespace(ep=None, expt_tp=two, tp_ep=two)
    with pytest.raises(ValueError, match="2 tensor parallel ranks"):
        SortingDispatcher(layer.config, groups)


def test_on_one_rank_the_host_waits_for_nothing(layer: Any) -> None:
    assert isinstance(layer.token_dispatcher, SortingDispatcher)
    x = torch.randn(24, 2, 64, requires_grad=True)
    with ForbidSync() as mode:
        out, _ = layer(x)
        out.backward(torch.ones_like(out))
    assert mode.operators > 50, "the layer ran under the mode"
    assert x.grad is not None


def test_on_several_ranks_the_host_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Mock(wait_for_splits=Mock(return_value=([3, 0], [1, 4])))
    all_to_all = Mock(side_effect=lambda _, x, *sizes: x)
    monkeypatch.setattr("gptoss20b.model.dispatch.all_to_all", all_to_all)
    dispatcher = single_rank_dispatcher(8, 2)
    monkeypatch.setattr(dispatcher, "_plan", plan, raising=False)
    monkeypatch.setattr(dispatcher, "ep_group", None, raising=False)
    rows, _ = dispatcher.token_dispatch(torch.ones(3, 4), torch.ones(3))
    dispatcher.token_combine(rows)
    # Rows to the experts, and outputs back. Sizes received come first.
    sizes = [call.args[2:] for call in all_to_all.call_args_list]
    assert sizes == [([1, 4], [3, 0]), ([3, 0], [1, 4])]
    assert plan.wait_for_splits.call_count == 1


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: x.masked_select(x > 1),
        lambda x: x.sum().item(),
        lambda x: x.to("cpu", torch.float64),
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 3])),
    ],
)
def test_the_mode_detects_waiting(wait: Callable[[Tensor], Any]) -> None:
    with pytest.raises(AssertionError, match="waits for the device"), ForbidSync():
        wait(torch.arange(3.0))


def test_a_second_forward_pass_before_the_first_backward_pass(layer: Any) -> None:
    # As pipeline parallelism runs them: the dispatcher must not mix up two micro batches.
    inputs = [torch.randn(16, 1, 64, requires_grad=True) for _ in range(2)]
    separate = [torch.autograd.grad(layer(x)[0].sum(), x)[0] for x in inputs]
    outputs = [layer(x)[0] for x in inputs]
    for x, out, expected in zip(inputs, outputs, separate, strict=True):
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], expected)


def test_permuting_makes_one_tensor_of_the_rows_size() -> None:
    routing_map, probs = make_routing(64, 8, 4, 0.0, seed=1)
    dispatcher, x = single_rank_dispatcher(8, 4), torch.randn(64, 1, 128)
    with RecordOperators() as recorded:
        rows, row_probs = dispatcher.token_dispatch(*dispatcher.dispatch_preprocess(x, routing_map, probs))
        rows, _, _ = dispatcher.dispatch_postprocess(rows, row_probs)
        dispatcher.token_combine(dispatcher.combine_preprocess(rows))
    large = {
        storage
        for operator in recorded.operators
        for shape, storage in zip(operator.outputs, operator.storages, strict=True)
        if shape.numel() >= x.numel()
    }
    assert large - {x.untyped_storage().data_ptr()} == {rows.untyped_storage().data_ptr()}
