"""Bytes that a GPU sends: between experts, around the context-parallel ring, and for the distributed optimizer.

Pure arithmetic. Tensor and pipeline parallelism are taken as 1. A GPU receives as many bytes as it sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...config import Config

ACTIVATION_BYTES = 2  # bf16
PROBABILITY_BYTES = 16  # behind each row that travels to its expert


@dataclass(frozen=True)
class ReplicaGroup:
    """The ranks that hold copies of one kind of parameters.

    ``stride`` is the distance between neighbours in rank order.
    """

    parameters: float
    size: int
    stride: int

    @property
    def owned(self) -> float:
        """Parameters whose optimizer state one rank holds."""
        return self.parameters / self.size

    @property
    def sent(self) -> float:
        """Parameters that a rank sends in one reduce-scatter or one all-gather."""
        return self.parameters - self.owned


def tokens_per_micro_batch(config: Config) -> float:
    """Return the tokens of one micro batch on one GPU."""
    return config.execution.micro_batch_size * config.fixed.sequence_length / config.parallel.context


def recomputes_experts(config: Config) -> bool:
    """Return whether RECOMPUTE dispatches tokens and computes the experts once more in the backward pass."""
    return config.execution.recompute in ("moe", "layers")


def all_to_alls_per_layer(config: Config) -> int:
    """Return the all-to-alls of one layer and micro batch, as `model.dispatch` makes them."""
    forward = 3  # sizes, rows, outputs
    backward = 2  # the gradients of outputs and rows
    return (2 if recomputes_experts(config) else 1) * forward + backward


def all_to_all_bytes(config: Config) -> float:
    """Return the bytes of one micro batch's all-to-alls under balanced routing, without those of the sizes.

    Each token's hidden state goes to top_k experts, of which (EP - 1) / EP are on other ranks.
    """
    model, expert = config.model, config.parallel.expert
    rows = tokens_per_micro_batch(config) * model.router_topk * (expert - 1) / expert
    passes = 3 if recomputes_experts(config) else 2
    both_ways = 2 * model.hidden_size * ACTIVATION_BYTES + PROBABILITY_BYTES
    return passes * rows * both_ways * model.num_layers


def ring_attention_bytes(config: Config) -> float:
    """Return the bytes of one micro batch's ring attention: keys and values, and in backward their gradients too."""
    model, context = config.model, config.parallel.context
    keys_values = tokens_per_micro_batch(config) * 2 * model.num_query_groups * model.head_dim * ACTIVATION_BYTES
    # Forward sends keys and values once, backward twice (with their gradients), a recomputed forward once more.
    rounds = 4 if config.execution.recompute == "layers" else 3
    return rounds * keys_values * (context - 1) * model.num_layers


def replica_groups(config: Config, counts: Mapping[str, int]) -> tuple[ReplicaGroup, ReplicaGroup]:
    """Return the replica groups of the expert parameters and of all others."""
    parallel = config.parallel
    experts = ReplicaGroup(counts["experts"] / parallel.expert, parallel.expert_data, parallel.expert)
    others = ReplicaGroup(counts["embedding"] + counts["other"], parallel.world_size, 1)
    return experts, others


def params_per_gpu(config: Config, counts: Mapping[str, int]) -> float:
    """Return the number of parameters on one GPU."""
    return sum(group.parameters for group in replica_groups(config, counts))
