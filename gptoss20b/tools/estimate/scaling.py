"""The scaling model: from a layout, a system and an efficiency to the time of a step, an evaluation and a run.

A step is accumulation x (matrix products + gradient traffic + all-to-all + ring attention), the exposed time of
reduce-scatter and all-gather, and the optimizer. All-to-alls overlap with nothing: Megatron-Core's dispatcher waits for
each. Data loading, logging, launch gaps and slow GPUs are not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...config import Config
from ...hardware import System
from ...memory import PeakMemory, peak_memory
from ...model.size import flops_per_token, state_bytes_per_gpu
from .assumptions import Assumptions, EstimateError
from .traffic import (
    ReplicaGroup,
    all_to_all_bytes,
    all_to_alls_per_layer,
    params_per_gpu,
    recomputes_experts,
    replica_groups,
    ring_attention_bytes,
    tokens_per_micro_batch,
)

# Mean samples to target of 20 reference runs, by global batch size: the reference convergence points of v6.0 and v6.1
# (mlperf-logging). Sizes between them are interpolated. Below 16 the rules take 16's; above 64 there is none.
CONVERGENCE = {16: 194_764.8, 32: 234_700.8, 64: 301_670.4}
_FORWARD = 1 / 3  # share of a micro batch's FLOPs; backward is the rest
_STATE_TRAFFIC = 24  # bytes per parameter: fp32 master weight and two moments, each read and written


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step on the slowest GPU, by part. Communication counts where it is exposed."""

    matrix_products: float
    gradient_traffic: float
    all_to_all: float
    ring_attention: float
    reduce_scatter: float
    all_gather: float
    optimizer: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return float(sum(vars(self).values()))


@dataclass(frozen=True)
class ScalingModel:
    """Times of one configuration, with `model.size.count_parameters`, on one system."""

    config: Config
    counts: Mapping[str, int]
    system: System
    assumptions: Assumptions

    def step_time(self, efficiency: float) -> StepTime:
        """Return the seconds of one optimizer step, by part, with this fraction of the peak in matrix products."""
        passes, groups = self.config.accumulation_steps, replica_groups(self.config, self.counts)
        products = self.matrix_time(efficiency)
        reduction = sum(self._collective_time(group, self.assumptions.gradient_bytes) for group in groups)
        gathering = sum(self._collective_time(group, self.assumptions.weight_bytes) for group in groups)
        overlap = self.assumptions.overlap
        return StepTime(
            matrix_products=passes * products,
            gradient_traffic=passes * self.gradient_traffic_time(params_per_gpu(self.config, self.counts)),
            all_to_all=passes * self.all_to_all_time(),
            ring_attention=passes * ring_attention_bytes(self.config) / self._link_rate,
            # Megatron-Core reduces gradients in the last backward pass and gathers weights in the first forward.
            reduce_scatter=_exposed_time(reduction, products * (1 - _FORWARD), overlap),
            all_gather=_exposed_time(gathering, products * _FORWARD, overlap),
            optimizer=self._optimizer_time(groups),
        )

    def matrix_time(self, efficiency: float) -> float:
        """Return the seconds of one micro batch's matrix products, forward and backward, on the busiest rank."""
        imbalance = self.assumptions.imbalance if self.config.parallel.expert > 1 else 1.0
        work = tokens_per_micro_batch(self.config) * work_per_token(self.config, imbalance)
        return work / (self.system.peak_tflops * 1e12 * efficiency)

    def gradient_traffic_time(self, parameters: float) -> float:
        """Return the seconds of a micro batch's memory traffic that grows with the parameters, not the tokens."""
        return parameters * self.assumptions.traffic_bytes / self._memory_rate

    def grad_zero_time(self, parameters: float) -> float:
        """Return the seconds of zeroing the gradients of the parameters on a GPU, once a step."""
        return parameters * self.assumptions.gradient_bytes / self._memory_rate

    def all_to_all_time(self) -> float:
        """Return the seconds of one micro batch's all-to-alls: the busiest rank's bytes and latencies; 0 with EP 1."""
        config, system, expert = self.config, self.system, self.config.parallel.expert
        if expert == 1:
            return 0.0
        busiest = all_to_all_bytes(config) * self.assumptions.imbalance
        # Peers inside the NVLink domain and outside it are served at the same time; the slower part decides.
        inside = min(expert, system.nvlink_domain_size(config.parallel.gpus_per_node))
        outside = (expert - inside) / (expert - 1)
        slower = max((1 - outside) / system.link_gbs, outside / system.network_gbs)
        latency = all_to_alls_per_layer(config) * config.model.num_layers * self.assumptions.latency_us * 1e-6
        return busiest * slower / (1e9 * self.assumptions.link_fraction) + latency

    def evaluation_time(self, efficiency: float) -> float:
        """Return the seconds of one evaluation: forward passes over the busiest rank's whole micro batches."""
        config = self.config
        rounds = math.ceil(config.fixed.eval_samples / (config.execution.micro_batch_size * config.parallel.data))
        config = config.model_copy(update={"execution": config.execution.model_copy(update={"recompute": "none"})})
        plain = replace(self, config=config)
        forward = plain.matrix_time(efficiency) * _FORWARD
        ring = ring_attention_bytes(config) * _FORWARD / self._link_rate
        return rounds * (forward + plain.all_to_all_time() / 2 + ring)

    @property
    def _memory_rate(self) -> float:
        return self.system.memory_tbs * 1e12 * self.assumptions.memory_fraction

    @property
    def _link_rate(self) -> float:
        return self.system.link_gbs * 1e9 * self.assumptions.link_fraction

    def _collective_time(self, group: ReplicaGroup, element_bytes: float) -> float:
        """Return the seconds of one reduce-scatter or all-gather in a replica group.

        Bytes that leave an NVLink domain share the networks of the group's members in that domain.
        """
        system = self.system
        members = max(1, system.nvlink_domain_size(self.config.parallel.gpus_per_node) // group.stride)
        rate = system.link_gbs if group.size <= members else min(system.link_gbs, members * system.network_gbs)
        return group.sent * element_bytes / (rate * 1e9 * self.assumptions.link_fraction)

    def _optimizer_time(self, groups: tuple[ReplicaGroup, ...]) -> float:
        """Return the seconds of the memory traffic of gradient norm, AdamW and zeroing gradients. Nothing overlaps."""
        owned = sum(group.owned for group in groups)
        parameters = sum(group.parameters for group in groups)
        # Gradients are read twice: for the norm and for the update.
        update = _STATE_TRAFFIC + 2 * self.assumptions.gradient_bytes + self.assumptions.weight_bytes
        return owned * update / self._memory_rate + self.grad_zero_time(parameters)


@dataclass(frozen=True)
class Estimate:
    """The estimate of one configuration on one system.

    Attributes:
        model, efficiency: its inputs.
        step: seconds by part.
        bytes_per_step: that one GPU sends, by collective, with balanced routing.
        tokens_per_second: per GPU, without evaluations.
        mfu: model FLOPs per second over the dense bf16 peak, without evaluations.
        evaluation_seconds: of one evaluation.
        samples: mean samples to target; None where the reference has no point.
        seconds_to_target: of a run with its evaluations; None where `samples` is.
        memory: the peak of one GPU.
    """

    model: ScalingModel
    efficiency: float
    step: StepTime
    bytes_per_step: dict[str, float]
    tokens_per_second: float
    mfu: float
    evaluation_seconds: float
    samples: float | None
    seconds_to_target: float | None
    memory: PeakMemory


def make_estimate(model: ScalingModel, efficiency: float) -> Estimate:
    """Estimate one configuration. The efficiency is a fraction of the dense bf16 peak.

    Raises:
        EstimateError: tensor or pipeline parallelism, or fp32.
    """
    config = model.config
    check_supported(config)
    gbs, passes = config.free.global_batch_size, config.accumulation_steps
    step, evaluation = model.step_time(efficiency), model.evaluation_time(efficiency)
    rate = gbs * config.fixed.sequence_length / config.parallel.world_size / step.seconds
    samples = samples_to_target(config)
    seconds = None
    if samples is not None:
        seconds = samples / gbs * step.seconds + samples / (config.eval_interval_steps * gbs) * evaluation
    sent = sum(group.sent for group in replica_groups(config, model.counts))
    return Estimate(
        model=model,
        efficiency=efficiency,
        step=step,
        bytes_per_step={
            "all_to_all": passes * all_to_all_bytes(config),
            "ring_attention": passes * ring_attention_bytes(config),
            "reduce_scatter": sent * model.assumptions.gradient_bytes,
            "all_gather": sent * model.assumptions.weight_bytes,
        },
        tokens_per_second=rate,
        mfu=rate * flops_per_token(config) / (model.system.peak_tflops * 1e12),
        evaluation_seconds=evaluation,
        samples=samples,
        seconds_to_target=seconds,
        memory=peak_memory(config, state_bytes_per_gpu(config, dict(model.counts))),
    )


def work_per_token(config: Config, imbalance: float = 1.0) -> float:
    """Return the FLOPs that a GPU does per token: the model's, the recomputed ones, and the busiest rank's surplus.

    Imbalance is the number of rows of the busiest rank over the mean.
    """
    model = config.model
    forward = flops_per_token(config) / 3
    experts = 2 * model.num_layers * model.router_topk * 3 * model.hidden_size * model.moe_ffn_hidden_size
    logits = 2 * model.vocab_size * model.hidden_size
    recomputed = {"moe": experts, "layers": forward - logits}.get(config.execution.recompute, 0)
    expert_work = experts * (4 if recomputes_experts(config) else 3)
    return 3 * forward + recomputed + expert_work * (imbalance - 1)


def samples_to_target(config: Config) -> float | None:
    """Return the mean samples to target by the reference convergence points; None for another model or target."""
    gbs = config.free.global_batch_size
    sizes = sorted(CONVERGENCE)
    if (
        config.model.variant != "reference"
        or config.fixed.target_loss != type(config.fixed)().target_loss
        or gbs > sizes[-1]
    ):
        return None
    if gbs <= sizes[0]:
        return CONVERGENCE[sizes[0]]
    above = next(size for size in sizes if size >= gbs)
    below = max(size for size in sizes if size < gbs)
    return CONVERGENCE[below] + (CONVERGENCE[above] - CONVERGENCE[below]) * (gbs - below) / (above - below)


def check_supported(config: Config) -> None:
    """Raise EstimateError for a configuration that the scaling model does not cover."""
    parallel = config.parallel
    if parallel.tensor > 1 or parallel.pipeline > 1:
        raise EstimateError(
            f"TENSOR_PARALLEL, PIPELINE_PARALLEL: got {parallel.tensor} and {parallel.pipeline}; the scaling model "
            "covers expert, data and context parallel. Set both to 1."
        )
    if config.execution.precision == "fp32":
        raise EstimateError("PRECISION: got fp32; the scaling model counts bf16 bytes and the bf16 peak. Set bf16.")


def _exposed_time(communication: float, window: float, overlap: float) -> float:
    """Return the exposed (not overlapped) communication time.

    A window of work hides it, up to the fraction ``overlap`` of the communication.
    """
    return max(communication * (1 - overlap), communication - window)
