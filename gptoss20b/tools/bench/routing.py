"""How evenly the router spread the tokens of a step over the experts: what uniform tokens and fresh weights gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .result import Routing


def routing_of(step: Callable[[], object], gpt: Any) -> Routing:
    """Run a step and count each expert's rows, over all its micro batches, in every layer of a Megatron-Core model."""
    counts: dict[Any, Tensor] = {}

    def count(router: Any, _: Any, output: tuple[Tensor, Tensor]) -> None:
        chosen = output[1]  # [tokens, experts] booleans
        counts[router] = counts.get(router, 0) + chosen.sum(0).detach()

    handles = [layer.mlp.router.register_forward_hook(count) for layer in gpt.decoder.layers]
    step()
    for handle in handles:
        handle.remove()
    return balance(torch.stack(list(counts.values())))


def balance(counts: Tensor) -> Routing:
    """From rows by expert, [layers, experts].

    >>> balance(torch.tensor([[4, 0], [2, 2]]))
    Routing(max_over_mean=1.5, worst_layer=2.0)
    """
    layers = counts.max(1).values / counts.double().mean(1)
    return Routing(max_over_mean=float(layers.mean()), worst_layer=float(layers.max()))
