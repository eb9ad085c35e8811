"""Model size: parameters counted from its modules, FLOPs per token, bytes of training state per GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import Config
from ..config.tree import Parallel
from ..process_groups import single_process


@dataclass(frozen=True)
class ModelSize:
    """Figures printed by `python -m gptoss20b info`.

    Attributes:
        active_parameters: parameters that one token uses: router_topk experts per layer and the LM head, but not the
            input embedding.
        flops_per_token: forward and backward, without recomputation.
        state_bytes_per_gpu: weights, gradients, master weights and moments on one rank, without activations.
    """

    variant: str
    layers: int
    total_parameters: int
    active_parameters: int
    flops_per_token: float
    state_bytes_per_gpu: int
    layout: str


def count_parameters(config: Config) -> dict[str, int]:
    """Count parameters by kind ("experts", "embedding", "other") in Megatron-Core's modules on the meta device.

    Builds the whole model in this process, on process groups of its own: not for use inside a run.
    """
    from .build import build_model

    # YaRN has no parameters, and Megatron-Core's YaRN module cannot compute its tables on the meta device.
    model_config = config.model.model_copy(update={"yarn": None})
    one_rank = Parallel(nodes=1, gpus_per_node=1, expert=1)
    whole = config.model_copy(update={"parallel": one_rank, "model": model_config})
    with single_process(), torch.device("meta"):
        model = build_model(whole, "torch", on_gpu=False)
    counts = {"experts": 0, "embedding": 0, "other": 0}
    for name, parameter in model.named_parameters():
        kind = "experts" if ".experts." in name else "embedding" if name.startswith("embedding.") else "other"
        counts[kind] += parameter.numel()
    return counts


def flops_per_token(config: Config) -> float:
    """Return training FLOPs per token: three times the forward pass's matrix products, averaged over a sequence.

    Forward = 2 [L (H (n_h + 2 n_kv) d + n_h d H + H E) + L k 3 H F + V H] + 4 n_h d x sum over layers of the mean
    number of keys a query sees. Norms, softmax and activations are not counted, as usual for MFU.
    """
    m, length = config.model, config.fixed.sequence_length
    attention = (
        m.hidden_size * (m.num_attention_heads + 2 * m.num_query_groups) * m.head_dim
        + m.num_attention_heads * m.head_dim * m.hidden_size
    )
    layer = attention + m.hidden_size * m.num_experts + m.router_topk * 3 * m.hidden_size * m.moe_ffn_hidden_size
    keys = sum(
        _mean_keys(length, m.window_left if m.has_sliding_window(n) else length) for n in range(1, m.num_layers + 1)
    )
    forward = 2 * (m.num_layers * layer + m.vocab_size * m.hidden_size) + 4 * m.num_attention_heads * m.head_dim * keys
    return 3.0 * forward


def _mean_keys(length: int, window_left: int) -> float:
    """Return the mean of min(position, window_left) + 1 over positions 0..length-1.

    >>> _mean_keys(8192, 8192), _mean_keys(4, 1)
    (4096.5, 1.75)
    """
    partial = min(window_left, length - 1)  # positions that see less than a full window
    return (partial * (partial + 1) / 2 + (length - partial) * (partial + 1)) / length


def state_bytes_per_gpu(config: Config, counts: dict[str, int]) -> int:
    """Return bytes of weights, fp32 gradients and this rank's shard of fp32 master weights and Adam moments.

    Experts are split over expert parallel ranks, and their optimizer state over the ranks that hold the same experts.
    All other parameters are on every rank, with their optimizer state split over the data-parallel (and
    context-parallel) ranks. Tensor parallelism is taken to divide them evenly. The stage of a pipeline is the first or
    the last: it has as many layers as any, and the embedding or the output layer.
    """
    p = config.parallel
    weight_bytes = 2 if config.execution.bf16_weights else 4
    # fp32 weights are their own master copy.
    optimizer_bytes = 12 if config.execution.bf16_weights else 8
    experts = counts["experts"] / (p.expert * p.pipeline)
    vocabulary = config.model.vocab_size * config.model.hidden_size
    layers = counts["embedding"] + counts["other"] - 2 * vocabulary
    other = (layers / p.pipeline + vocabulary * (2 if p.pipeline == 1 else 1)) / p.tensor
    local_params = experts + other
    return round(
        local_params * (weight_bytes + 4) + optimizer_bytes * (experts / p.expert_data + other / (p.data * p.context))
    )


def compute_model_size(config: Config) -> ModelSize:
    """Return all figures of one configuration, counted by `count_parameters`."""
    counts = count_parameters(config)
    model, p = config.model, config.parallel
    return ModelSize(
        variant=model.variant,
        layers=model.num_layers,
        total_parameters=sum(counts.values()),
        active_parameters=counts["other"] + counts["experts"] * model.router_topk // model.num_experts,
        flops_per_token=flops_per_token(config),
        state_bytes_per_gpu=state_bytes_per_gpu(config, counts),
        layout=f"{p.world_size} GPUs, EP {p.expert}, TP {p.tensor}, PP {p.pipeline}, CP {p.context}, "
        f"{config.execution.precision}",
    )
