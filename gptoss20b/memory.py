"""The memory model: state of a rank, the peak of a training step, checkpoint sizes.

The peak is derived, not fitted: it sums the tensors that the torch back end keeps on a GPU, from the model's sizes.
Tests compare it with traces (`gptoss20b.proof`), and docs/reference/memory.md shows both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .checkpoint.files import bytes_on_disk, host_bytes_to_save
from .config import Config

if TYPE_CHECKING:
    from .model.size import ModelSize

# Rows of a rank's experts over the mean of all ranks, for which a GPU should have room. A judgement: nothing balances
# the routing of the closed division, and no public log of the reference shows how unbalanced it gets.
RECOMMENDED_IMBALANCE = 2.0
# Free blocks between the tensors at the peak, as a part of their bytes. The caching allocator with expandable segments
# had 0.1 to 2.4 % in traces.
_FREE_BLOCKS = 0.01
# At the end of a chunk of the loss exist its logits, their gradient, and the gradient of the chunk before.
_LOGITS_TENSORS = 3
_FP32, _INT64 = 4, 8


@dataclass(frozen=True)
class Moment:
    """A moment of a step at which memory may peak.

    Attributes:
        bytes: tensors that do not depend on the routing, the state included.
        row_bytes: tensors of the rows that this rank's experts receive, with balanced routing.
    """

    bytes: int
    row_bytes: int


@dataclass(frozen=True)
class PeakMemory:
    """The peak of one rank's step: of the last layer's backward pass on the first stage, or of the loss on the last.

    An imbalance is the number of rows of this rank's experts over the mean of all ranks, taken over all layers.

    Attributes:
        state_bytes: weights, gradients, main weights and moments.
        moments: those at which memory may peak.
    """

    state_bytes: int
    moments: tuple[Moment, ...]

    def live_bytes(self, imbalance: float = 1.0) -> int:
        """Return the highest sum of tensors."""
        return round(max(moment.bytes + imbalance * moment.row_bytes for moment in self.moments))

    def reserved_bytes(self, imbalance: float = 1.0) -> int:
        """Return the bytes that the caching allocator takes from the GPU, with expandable segments."""
        return round((1 + _FREE_BLOCKS) * self.live_bytes(imbalance))

    def survivable_imbalance(self, memory_bytes: float) -> float | None:
        """Return the imbalance at which the reserved bytes reach those of the GPU; below 1 if they always exceed them.

        None if routing does not change the peak, because no rows come from other ranks.
        """
        room = memory_bytes / (1 + _FREE_BLOCKS)
        limits = [(room - moment.bytes) / moment.row_bytes for moment in self.moments if moment.row_bytes]
        return min(limits, default=None)

    def fits(self, memory_bytes: float, imbalance: float = RECOMMENDED_IMBALANCE) -> bool:
        """Return True if the reserved bytes at an imbalance are not above those of the GPU."""
        return self.reserved_bytes(imbalance) <= memory_bytes

    def describe(self, memory_bytes: float) -> str:
        """Return the reserved bytes, against those of a GPU, and the rows that fit."""
        balanced, unbalanced, room = (
            each / 2**30 for each in (self.reserved_bytes(), self.reserved_bytes(RECOMMENDED_IMBALANCE), memory_bytes)
        )
        text = f"{balanced:.1f} GiB of {room:.1f}"
        survivable = self.survivable_imbalance(memory_bytes)
        if survivable is not None:
            text += f" with balanced routing, {unbalanced:.1f} with {RECOMMENDED_IMBALANCE:g} times the mean rows"
        if not self.fits(memory_bytes, 1.0):
            return f"{text}: DOES NOT FIT"
        if survivable is None:
            return text
        if survivable < RECOMMENDED_IMBALANCE:
            return f"{text}: ONLY up to {survivable:.1f} times fit, so a step may run out of memory"
        return f"{text}: up to {survivable:.1f} times fit"


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


def peak_memory(config: Config, state: int | None = None) -> PeakMemory:
    """Return the peak of a step. ``state`` is `state_bytes`, which is counted from the modules if it is None.

    Transformer Engine keeps its own tensors, and COMPILE=layers fewer: both are taken to be like COMPILE=kernels of
    the torch back end, and are not traced.
    """
    state = state_bytes(config) if state is None else state
    model, parallel, recompute = config.model, config.parallel, config.execution.recompute
    tokens = _tokens(config)
    number = _number_bytes(config)
    stage_layers = model.num_layers // parallel.pipeline
    kept, outside = _kept_outside_experts(config), _bytes_outside_experts(config)
    row, row_kept = _row_bytes(config), _kept_row_bytes(config)
    rows = tokens * model.router_topk
    stream = number * tokens * model.hidden_size  # one tensor of the residual stream

    # The last layer's backward pass on the first stage: its warm-up has left a micro batch for each stage.
    layers = stage_layers * min(parallel.pipeline, config.accumulation_steps)
    # The gradients of two residuals, and that of the down projection's weight.
    local_experts = model.num_experts // parallel.expert
    gradients = 2 * stream + number * local_experts * model.hidden_size * model.moe_ffn_hidden_size
    # Of each row: the gradients of the experts' output, of the activation, and of gates and ups.
    row_gradients = number * (model.hidden_size + 3 * model.moe_ffn_hidden_size)
    backward = state + layers * kept + gradients
    backward_rows = layers * row_kept + row_gradients
    if recompute == "layers":
        backward += outside
    if recompute in ("moe", "layers"):
        backward_rows += row

    # The loss on the last stage keeps the last layer's output, its norm and the gradient of that.
    loss = state + stage_layers * kept + 3 * stream + _loss_bytes(config)
    moments = [(backward, backward_rows), (loss, stage_layers * row_kept)]
    if parallel.expert == 1:  # all rows are this rank's own
        return PeakMemory(state, tuple(Moment(fixed + rows * each, 0) for fixed, each in moments))
    return PeakMemory(state, tuple(Moment(fixed, rows * each) for fixed, each in moments))


def _tokens(config: Config) -> int:
    """Return the tokens of a micro batch on one rank. Sequence parallelism splits them over tensor-parallel ranks."""
    return (
        config.fixed.sequence_length
        * config.execution.micro_batch_size
        // (config.parallel.tensor * config.parallel.context)
    )


def _number_bytes(config: Config) -> int:
    """Return the bytes of a number in weights and activations."""
    return 2 if config.execution.bf16_weights else 4


def _bytes_outside_experts(config: Config) -> int:
    """Return the bytes that one layer without its experts' rows needs in its backward pass."""
    model = config.model
    heads = model.num_attention_heads
    queries, keys_values = heads * model.head_dim, 2 * model.num_query_groups * model.head_dim
    # Two residuals and the two norms' outputs; rotated queries, keys, values; attention's output.
    numbers = 4 * model.hidden_size + queries + keys_values + queries
    statistics = 2 + heads  # of the two norms; the log-sum-exp
    if model.qk_norm:  # the projection before the norms, and theirs
        numbers += queries + keys_values
        statistics += heads + model.num_query_groups
    if model.attention_sinks:  # attention before the sinks
        numbers += queries
        statistics += heads
    # The router's scores in fp32 and its choice; two copies of the probabilities, four of the order of rows.
    routing = model.num_experts * (_FP32 + 1) + model.router_topk * (2 * _FP32 + 4 * _INT64)
    return _tokens(config) * (_number_bytes(config) * numbers + _FP32 * statistics + routing)


def _kept_outside_experts(config: Config) -> int:
    """Return the part of `_bytes_outside_experts` that is kept from the forward pass: of recomputed layers, inputs."""
    if config.execution.recompute != "layers":
        return _bytes_outside_experts(config)
    return _number_bytes(config) * _tokens(config) * config.model.hidden_size


def _row_bytes(config: Config) -> int:
    """Return the bytes of one row that the experts of a layer need in their backward pass."""
    model = config.model
    # The row, gate and up, and the activation.
    numbers = model.hidden_size + 3 * model.moe_ffn_hidden_size
    # Its probability, and the order of received rows and its inverse.
    more = (_FP32 + 2 * _INT64) if config.parallel.expert > 1 else 0
    if model.biases:  # its expert
        more += _INT64
    return _number_bytes(config) * numbers + more


def _kept_row_bytes(config: Config) -> int:
    """Return the part of `_row_bytes` that is kept from the forward pass."""
    if config.execution.recompute in ("moe", "layers"):
        # The dispatcher keeps the order of received rows until its next forward pass.
        return 2 * _INT64 if config.parallel.expert > 1 else 0
    if config.execution.recompute == "moe_act":
        return _row_bytes(config) - _number_bytes(config) * config.model.moe_ffn_hidden_size
    return _row_bytes(config)


def _loss_bytes(config: Config) -> int:
    """Return the bytes of the loss besides its input: the weight's gradient in fp32, and chunks of logits."""
    from .model.loss import chunk_size

    vocabulary = config.model.vocab_size // config.parallel.tensor
    logits = _LOGITS_TENSORS * _number_bytes(config) * vocabulary * chunk_size(_tokens(config), vocabulary)
    return _FP32 * vocabulary * config.model.hidden_size + logits


def _measure_size(config: Config) -> ModelSize:
    from .model.size import compute_model_size

    return compute_model_size(config)
