"""Routing results and a check of the token dispatcher, on any device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gptoss20b.model.dispatch import SortingDispatcher
from tests.support.tensor_checks import relative_error

HIDDEN = 8
NO_GROUPS: Any = SimpleNamespace(ep=None, expt_tp=None, tp_ep=None)  # Megatron-Core takes None for a group of one rank


def single_rank_dispatcher(experts: int, topk: int) -> SortingDispatcher:
    """Return the dispatcher of a rank that has all experts."""
    return SortingDispatcher(SimpleNamespace(num_moe_experts=experts, moe_router_topk=topk), NO_GROUPS)


def make_routing(tokens: int, experts: int, topk: int, skew: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return a routing map [tokens, experts] and fp32 probabilities that are 0 where the map is False.

    With ``skew`` 0 the experts are alike; the larger it is, the more tokens choose the first ones. With 9 every token
    chooses the first ``topk``.
    """
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=random) - skew * torch.arange(experts)
    routing_map = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.topk(topk).indices, value=True)
    return routing_map, logits.softmax(1) * routing_map


def check_dispatcher(
    device: torch.device | str, dtype: torch.dtype, tolerance: float, tokens: int, experts: int, topk: int, skew: float
) -> None:
    """Check rows, probabilities and counts against a loop, and the sum over experts and all gradients in fp64."""
    routing_map, probs = (x.to(device) for x in make_routing(tokens, experts, topk, skew, seed=tokens))
    random = torch.Generator().manual_seed(experts)
    x = torch.randn(tokens, 1, HIDDEN, generator=random).to(device, dtype).requires_grad_()
    scale = torch.randn(tokens * topk, HIDDEN, generator=random).to(device, dtype)  # per row, so that rows differ
    weight = torch.randn(tokens, 1, HIDDEN, generator=random).to(device, dtype)
    probs.requires_grad_()

    dispatcher = single_rank_dispatcher(experts, topk)
    rows, row_probs = dispatcher.token_dispatch(*dispatcher.dispatch_preprocess(x, routing_map, probs))
    rows, counts, row_probs = dispatcher.dispatch_postprocess(rows, row_probs)
    outputs = dispatcher.combine_preprocess(rows * scale * row_probs[:, None].to(dtype))
    out = dispatcher.combine_postprocess(dispatcher.token_combine(outputs))
    (out * weight).sum().backward()

    pairs = [(t, e) for e in range(experts) for t in range(tokens) if routing_map[t, e]]
    row_tokens, row_experts = (torch.tensor(column, device=device) for column in zip(*pairs, strict=True))
    assert torch.equal(rows, x[row_tokens, 0])
    assert torch.equal(row_probs, probs[row_tokens, row_experts])
    assert counts.tolist() == routing_map.sum(0).tolist()
    assert counts.device == x.device

    wide, wide_probs = (each.detach().double().requires_grad_() for each in (x, probs))
    parts = wide[row_tokens, 0] * scale * wide_probs[row_tokens, row_experts, None]
    expected = torch.zeros(tokens, HIDDEN, dtype=torch.float64, device=device).index_add(0, row_tokens, parts)
    (expected * weight[:, 0]).sum().backward()
    for got, want in ((out[:, 0], expected), (x.grad, wide.grad), (probs.grad, wide_probs.grad)):
        assert relative_error(got, want) <= tolerance
