"""Jobs of the ranks of `test_all_to_all`."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.dispatch_cases import make_routing
from tests.support.jobs import Variables, layouts


def compare_dispatchers(variables: list[Variables], tokens: list[int], skew: float) -> list[dict[str, Any]]:
    """Run this project's and Megatron-Core's dispatcher on the same routing.

    Args:
        variables: settings of each layout.
        tokens: number of tokens of each rank.
        skew: as in `make_routing`.

    Returns:
        For each layout, the results of "ours" and "megatron".
    """
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    from gptoss20b.model.dispatch import SortingDispatcher
    from gptoss20b.model.megatron_config import build_transformer_config

    outcomes = []
    with layouts(variables) as configs:
        for config in configs:
            rank = dist.get_rank()
            transformer = build_transformer_config(config, on_gpu=False)
            experts, local = config.model.num_experts, config.model.num_experts // config.parallel.expert
            first = local * parallel_state.get_expert_model_parallel_rank()
            megatron = MoEAlltoAllTokenDispatcher(
                local, list(range(first, first + local)), config=transformer, pg_collection=get_default_pg_collection()
            )
            routing_map, probs = make_routing(tokens[rank], experts, config.model.router_topk, skew, seed=rank)
            x = torch.randn(tokens[rank], 1, config.model.hidden_size, generator=torch.Generator().manual_seed(rank))
            outcomes.append(
                {
                    name: _dispatch_and_combine(dispatcher, x, routing_map, probs)
                    for name, dispatcher in {"ours": SortingDispatcher(transformer), "megatron": megatron}.items()
                }
            )
    return outcomes


def _dispatch_and_combine(dispatcher: Any, x: Tensor, routing_map: Tensor, probs: Tensor) -> dict[str, Any]:
    x, probs = x.clone().requires_grad_(), probs.clone().requires_grad_()
    rows, row_probs = dispatcher.token_dispatch(*dispatcher.dispatch_preprocess(x, routing_map, probs))
    rows, counts, row_probs = dispatcher.dispatch_postprocess(rows, row_probs)
    # In place of the experts: other factors for other rows.
    out = rows * torch.linspace(1, 2, rows.numel()).view_as(rows) * row_probs[:, None]
    out = dispatcher.combine_postprocess(dispatcher.token_combine(dispatcher.combine_preprocess(out)))
    out.square().sum().backward()
    assert x.grad is not None
    assert probs.grad is not None
    return {
        "rows": rows.detach().numpy(),
        "probs": row_probs.detach().numpy(),
        "counts": [int(count) for count in counts],
        "sums": out.detach().numpy(),
        "grad of hidden states": x.grad.numpy(),
        "grad of probs": (probs.grad * routing_map).numpy(),
    }
