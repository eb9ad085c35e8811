"""What a test of the dispatcher does, on any device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gptoss20b.model.dispatch import SortingDispatcher

HIDDEN = 8
ALONE: Any = SimpleNamespace(ep=None, expt_tp=None, tp_ep=None)  # what Megatron-Core takes for groups of one rank


def alone(experts: int, top_k: int) -> SortingDispatcher:
    """The dispatcher of a rank that has all experts."""
    return SortingDispatcher(SimpleNamespace(num_moe_experts=experts, moe_router_topk=top_k), ALONE)


def routed(tokens: int, experts: int, top_k: int, lean: float, seed: int) -> tuple[Tensor, Tensor]:
    """A router's result: routing map [tokens, experts], and fp32 probabilities that are 0 where it is False.

    With ``lean`` 0 the experts are alike; the larger it is, the more tokens go to the first ones.
    """
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=random) - lean * torch.arange(experts)
    chosen = logits.topk(top_k).indices
    routing_map = torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, chosen, value=True)
    return routing_map, torch.softmax(logits, 1) * routing_map


def check(
    device: torch.device | str, dtype: torch.dtype, tolerance: float, tokens: int, experts: int, top_k: int, lean: float
) -> None:
    """Rows, probabilities and counts as written down in a loop; the sum over experts and all gradients in fp64."""
    routing_map, probabilities = (x.to(device) for x in routed(tokens, experts, top_k, lean, seed=tokens))
    random = torch.Generator().manual_seed(experts)
    x = torch.randn(tokens, 1, HIDDEN, generator=random).to(device, dtype).requires_grad_()
    scale = torch.randn(tokens * top_k, HIDDEN, generator=random).to(device, dtype)  # of each row, so that rows differ
    weight = torch.randn(tokens, 1, HIDDEN, generator=random).to(device, dtype)
    probabilities.requires_grad_()

    dispatcher = alone(experts, top_k)
    rows, chances = dispatcher.token_dispatch(*dispatcher.dispatch_preprocess(x, routing_map, probabilities))
    rows, counts, chances = dispatcher.dispatch_postprocess(rows, chances)
    chances.retain_grad()
    sent = dispatcher.combine_preprocess(rows * scale * chances[:, None].to(dtype))
    out = dispatcher.combine_postprocess(dispatcher.token_combine(sent))
    (out * weight).sum().backward()

    pairs = [(t, e) for e in range(experts) for t in range(tokens) if routing_map[t, e]]
    token_of_row, expert_of_row = (torch.tensor(column, device=device) for column in zip(*pairs, strict=True))
    assert torch.equal(rows, x[token_of_row, 0])
    assert torch.equal(chances, probabilities[token_of_row, expert_of_row])
    assert counts.tolist() == routing_map.sum(0).tolist()
    assert counts.device == x.device

    wide, wide_probabilities = (each.detach().double().requires_grad_() for each in (x, probabilities))
    parts = wide[token_of_row, 0] * scale * wide_probabilities[token_of_row, expert_of_row, None]
    expected = torch.zeros(tokens, HIDDEN, dtype=torch.float64, device=device).index_add(0, token_of_row, parts)
    (expected * weight[:, 0]).sum().backward()
    for got, want in ((out[:, 0], expected), (x.grad, wide.grad), (probabilities.grad, wide_probabilities.grad)):
        assert got is not None
        assert want is not None
        assert float((got.detach().double() - want.detach()).norm()) <= tolerance * float(want.detach().norm())
