"""Bytes that a GPU moves: between experts, for the distributed optimizer, and in its own memory. Pure arithmetic.

Tensor and pipeline parallel are taken to be 1. Bytes are those one GPU sends; it receives as many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...config import Config

ACTIVATION_BYTES = 2  # bf16


@dataclass(frozen=True)
class Group:
    """The ranks that share one kind of parameters.

    Attributes:
        parameters: of this kind on each of its ranks.
        size: ranks that hold a copy.
        stride: distance between neighbours in rank order.
    """

    parameters: float
    size: int
    stride: int

    @property
    def owned(self) -> float:
        """Parameters whose optimizer state one rank holds."""
        return self.parameters / self.size

    @property
    def exchanged(self) -> float:
        """Parameters that a rank sends in one reduce-scatter or one all-gather."""
        return self.parameters - self.owned


def tokens(config: Config) -> float:
    """Tokens of one micro batch on one GPU."""
    return config.execution.micro_batch_size * config.fixed.sequence_length / config.parallel.context


def experts_again(config: Config) -> bool:
    """Whether RECOMPUTE sends tokens to the experts, and computes them, once more in the backward pass."""
    return config.execution.recompute in ("moe", "layers")


def all_to_alls(config: Config) -> int:
    """All-to-alls of one layer and micro batch: there and back, forward, backward, and if need be forward again."""
    return 6 if experts_again(config) else 4


def all_to_all_bytes(config: Config) -> float:
    """Bytes of one micro batch's all-to-alls if routing is balanced.

    Each token's hidden state goes to top_k experts, of which (EP - 1) / EP are on other ranks.
    """
    model, expert = config.model, config.parallel.expert
    one_way = tokens(config) * model.router_topk * model.hidden_size * ACTIVATION_BYTES * (expert - 1) / expert
    return all_to_alls(config) * one_way * model.num_layers


def context_bytes(config: Config) -> float:
    """Bytes of one micro batch's ring attention: keys and values in each forward pass, backward with gradients too."""
    model, context = config.model, config.parallel.context
    keys_values = tokens(config) * 2 * model.num_query_groups * model.head_dim * ACTIVATION_BYTES
    return (4 if config.execution.recompute == "layers" else 3) * keys_values * (context - 1) * model.num_layers


def groups(config: Config, counts: Mapping[str, int]) -> tuple[Group, Group]:
    """The expert and the other parameters, each with the ranks that share them.

    Args:
        counts: parameters by kind, as `model.size.count_parameters` gives them.
    """
    parallel = config.parallel
    experts = Group(counts["experts"] / parallel.expert, parallel.expert_data, parallel.expert)
    rest = Group(counts["embedding"] + counts["other"], parallel.world_size, 1)
    return experts, rest


def resident(config: Config, counts: Mapping[str, int]) -> float:
    """Parameters on one GPU."""
    return sum(group.parameters for group in groups(config, counts))
