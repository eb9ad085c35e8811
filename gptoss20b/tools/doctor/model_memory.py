"""What the model takes: its state, which is arithmetic, and its activations, which are an estimate from above."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...checkpoint.files import bytes_on_disk, host_bytes_to_save
from ...config import Config
from .finding import Finding, failed, passed

if TYPE_CHECKING:
    from ...model.size import Size

# 26 to 39 GiB a sequence of 8,192 tokens for 24 layers of width 2,880 in bf16, without recomputation (docs/tuning.md):
# here as numbers a token, layer and width. Those of its experts are arithmetic and taken off: four experts with a row,
# a gate, an up and an activation of that width each.
_OTHER_NUMBERS = 39 * 2**30 / (2 * 8192 * 24 * 2880) - 4 * 4


def state_bytes(config: Config) -> int:
    """Bytes of weights, gradients and optimizer state on one rank, counted from the modules."""
    return _size(config).state_bytes_per_gpu


def checkpoint_bytes(config: Config) -> int:
    """Bytes of a checkpoint."""
    return bytes_on_disk(config, _size(config).total_parameters)


def save_bytes(config: Config) -> int:
    """Bytes of this node's memory that writing a checkpoint takes at its peak; 0 if the run writes none."""
    if config.checkpoints.interval == "0":
        return 0
    return host_bytes_to_save(config, _size(config).total_parameters)


def _size(config: Config) -> Size:
    from ...model.size import measure
    from ...process_groups import single_process

    with single_process():
        return measure(config)


def activation_bytes(config: Config) -> int:
    """Bytes of activations that one rank keeps for backward, without those that RECOMPUTE frees; an estimate.

    In proportion to tokens, layers, width and precision, and with balanced routing.
    """
    model, parallel, recompute = config.model, config.parallel, config.execution.recompute
    tokens = config.fixed.sequence_length * config.execution.micro_batch_size / (parallel.tensor * parallel.context)
    number_bytes = 2 if config.execution.bf16_weights else 4
    layers = model.num_layers / parallel.pipeline
    # Numbers a token and layer.
    activation = model.router_topk * model.moe_ffn_hidden_size
    experts = model.router_topk * model.hidden_size + 3 * activation
    freed = {"moe_act": activation, "moe": experts}.get(recompute, 0)
    layer = _OTHER_NUMBERS * model.hidden_size + experts - freed
    kept = layers * model.hidden_size + layer if recompute == "layers" else layers * layer
    return round(number_bytes * tokens * kept)


def look_at_back_end(config: Config) -> Finding:
    """Which layers the run will take, by its own choice."""
    from ...model.build import BackendError, choose_backend

    try:
        return passed("back end", f"{choose_backend(config)} (BACKEND={config.execution.backend})")
    except BackendError as error:
        return failed("back end", str(error), "change what the message names")
