"""The memory model: state counted from the modules, activations estimated from above, checkpoint sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .checkpoint.files import bytes_on_disk, host_bytes_to_save
from .config import Config

if TYPE_CHECKING:
    from .model.size import ModelSize

# Activations of the reference model were estimated at 26 to 39 GiB a sequence of 8,192 tokens: 24 layers of width
# 2,880 in bf16, no recomputation (docs/tuning.md). Scaling needs numbers per token, layer and unit of width. The upper
# end is 16 of the experts (top-4, each with an input row, a gate, an up projection and an activation), which
# `activation_bytes` counts by arithmetic, and this rest.
_OTHER_NUMBERS = 39 * 2**30 / (2 * 8192 * 24 * 2880) - 4 * 4


def state_bytes(config: Config) -> int:
    """Return the bytes of weights, gradients and optimizer state on one rank, counted from the modules."""
    return _measure_size(config).state_bytes_per_gpu


def checkpoint_bytes(config: Config) -> int:
    """Return the bytes of one checkpoint."""
    return bytes_on_disk(config, _measure_size(config).total_parameters)


def save_bytes(config: Config) -> int:
    """Return the peak host memory, in bytes, that writing a checkpoint takes on one node; 0 if the run writes none."""
    if config.checkpoints.interval == "0":
        return 0
    return host_bytes_to_save(config, _measure_size(config).total_parameters)


def activation_bytes(config: Config) -> int:
    """Estimate the bytes of activations that one rank keeps for the backward pass, without those RECOMPUTE frees.

    The estimate is proportional to tokens, layers, width and precision. It assumes balanced routing.
    """
    model, parallel, recompute = config.model, config.parallel, config.execution.recompute
    tokens = config.fixed.sequence_length * config.execution.micro_batch_size / (parallel.tensor * parallel.context)
    bytes_per_number = 2 if config.execution.bf16_weights else 4
    layers = model.num_layers / parallel.pipeline
    # Numbers per token and layer.
    activation = model.router_topk * model.moe_ffn_hidden_size
    experts = model.router_topk * model.hidden_size + 3 * activation
    freed = {"moe_act": activation, "moe": experts}.get(recompute, 0)
    layer = _OTHER_NUMBERS * model.hidden_size + experts - freed
    # With RECOMPUTE=layers each layer keeps its input, and one layer at a time is computed again in full.
    kept = layers * model.hidden_size + layer if recompute == "layers" else layers * layer
    return round(bytes_per_number * tokens * kept)


def _measure_size(config: Config) -> ModelSize:
    from .model.size import compute_model_size

    return compute_model_size(config)
