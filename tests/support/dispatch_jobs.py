"""What the ranks of `test_expert_exchange` do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.jobs import Variables, layouts


def beside_megatrons(variables: list[Variables], tokens: list[int], lean: float) -> list[dict[str, Any]]:
    """For each layout: our dispatcher's rows, sums and gradients, and Megatron-Core's, of the same routing.

    Args:
        tokens: of each rank.
        lean: how much the router prefers low expert numbers; at 9 each token chooses the first of them.

    Returns:
        For each layout what both got, under "ours" and "theirs".
    """
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    from gptoss20b.model.dispatch import SortingDispatcher
    from gptoss20b.model.megatron_config import build_transformer_config

    outcomes = []
    with layouts(variables) as configs:
        for config in configs:
            rank = torch.distributed.get_rank()
            settings = build_transformer_config(config, on_gpu=False)
            experts, local = config.model.num_experts, config.model.num_experts // config.parallel.expert
            first = local * parallel_state.get_expert_model_parallel_rank()
            theirs = MoEAlltoAllTokenDispatcher(
                local, list(range(first, first + local)), config=settings, pg_collection=get_default_pg_collection()
            )
            random = torch.Generator().manual_seed(rank)
            logits = torch.randn(tokens[rank], experts, generator=random) - lean * torch.arange(experts)
            chosen = logits.topk(config.model.router_topk).indices
            routing_map = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, chosen, value=True)
            x = torch.randn(tokens[rank], 1, config.model.hidden_size, generator=random)
            found = {
                name: _through(dispatcher, x, routing_map, logits.softmax(1) * routing_map)
                for name, dispatcher in {"ours": SortingDispatcher(settings), "theirs": theirs}.items()
            }
            outcomes.append(found)
    return outcomes


def _through(dispatcher: Any, x: Tensor, routing_map: Tensor, probabilities: Tensor) -> dict[str, Any]:
    x, probabilities = x.clone().requires_grad_(), probabilities.clone().requires_grad_()
    rows, chances = dispatcher.token_dispatch(*dispatcher.dispatch_preprocess(x, routing_map, probabilities))
    rows, counts, chances = dispatcher.dispatch_postprocess(rows, chances)
    # Stands for the experts: other numbers for other rows, and none for none.
    out = rows * torch.linspace(1, 2, rows.numel()).view_as(rows) * chances[:, None]
    out = dispatcher.combine_postprocess(dispatcher.token_combine(dispatcher.combine_preprocess(out)))
    out.square().sum().backward()
    assert x.grad is not None
    assert probabilities.grad is not None
    return {
        "rows": rows.detach().numpy(),
        "probabilities": chances.detach().numpy(),
        "counts": [int(count) for count in counts],
        "sums": out.detach().numpy(),
        "gradient of the hidden states": x.grad.numpy(),
        "gradient of the probabilities": (probabilities.grad * routing_map).numpy(),
    }
