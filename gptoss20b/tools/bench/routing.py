"""Balance of the routing: how evenly the router spreads the tokens of a step over the experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .result import Routing


def measure_routing(step: Callable[[], object], gpt: Any) -> Routing:
    """Run a step of a Megatron-Core model and count each expert's rows, over all micro batches, in every layer."""
    counts: dict[Any, Tensor] = {}

    def count(router: Any, _: Any, output: tuple[Tensor, Tensor]) -> None:
        routing_map = output[1]  # [tokens, experts] booleans
        counts[router] = counts.get(router, 0) + routing_map.sum(0).detach()

    handles = [layer.mlp.router.register_forward_hook(count) for layer in gpt.decoder.layers]
    step()
    for handle in handles:
        handle.remove()
    return summarize_routing(torch.stack(list(counts.values())))


def summarize_routing(counts: Tensor) -> Routing:
    """Return the balance of rows by expert, [layers, experts].

    >>> summarize_routing(torch.tensor([[4, 0], [2, 2]]))
    Routing(max_over_mean=1.5, worst_layer=2.0)
    """
    layers = counts.max(1).values / counts.double().mean(1)
    return Routing(max_over_mean=float(layers.mean()), worst_layer=float(layers.max()))
