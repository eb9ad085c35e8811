"""What the model takes: its state, which is arithmetic, and its activations, which are an estimate from above."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..checkpoint.files import bytes_of
from ..config import Config
from .finding import Finding, failed, passed

if TYPE_CHECKING:
    from ..model.size import Size

# 26 to 39 GiB a sequence of 8,192 tokens for 24 layers of width 2,880 in bf16, without recomputation (docs/tuning.md).
_ACTIVATION_BYTES = 39 * 2**30 / (8192 * 24 * 2880)


def state_bytes(config: Config) -> int:
    """Bytes of weights, gradients and optimizer state on one rank, counted from the modules."""
    return _size(config).state_bytes_per_gpu


def checkpoint_bytes(config: Config) -> int:
    """Bytes of a checkpoint."""
    return bytes_of(config, _size(config).total_parameters)


def _size(config: Config) -> Size:
    from ..model.size import measure
    from ..process_groups import single_process

    with single_process():
        return measure(config)


def activation_bytes(config: Config) -> int:
    """Bytes of activations on one rank, in proportion to tokens, layers, width and precision; an estimate."""
    model, parallel = config.model, config.parallel
    tokens = config.rules.sequence_length * config.execution.micro_batch_size
    wide = 1 if config.execution.bf16_weights else 2
    shared = parallel.tensor * parallel.pipeline * parallel.context
    return round(_ACTIVATION_BYTES * tokens * model.layers * model.hidden_size * wide / shared)


def look_at_back_end(config: Config) -> Finding:
    """Which layers the run will take, by its own choice."""
    from ..model.build import BackendError, choose_backend

    try:
        return passed("back end", f"{choose_backend(config)} (BACKEND={config.execution.backend})")
    except BackendError as error:
        return failed("back end", str(error), "change what the message names")
