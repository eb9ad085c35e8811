"""The scaling model: from a layout, a system and an efficiency to the time of a step, an evaluation and a run.

A step is accumulation x (matrix products + gradient traffic + all-to-all + ring attention), the exposed time of
reduce-scatter and all-gather, and the optimizer. All-to-alls overlap with nothing: Megatron-Core's dispatcher waits for
each. Data loading, logging, launch gaps and slow GPUs are not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...config import Config
from ...hardware import System
from ...memory import activation_bytes
from ...model.size import flops_per_token, state_bytes_per_gpu
from .assumptions import Assumptions
from .errors import EstimateError
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
class Estimate:
    """The estimate of one configuration on one system.

    Attributes:
        config, system, assumptions: its inputs.
        efficiency: of the matrix products, as a fraction of the dense bf16 peak.
        step: seconds by part.
        bytes_per_step: that one GPU sends, by collective, with balanced routing.
        tokens_per_second: per GPU, without evaluations.
        mfu: model FLOPs per second over the dense bf16 peak, without evaluations.
        evaluation_seconds: of one evaluation.
        samples: mean samples to target; None where the reference has no point.
        seconds_to_target: of a run with its evaluations; None where `samples` is.
        state_bytes, activation_bytes: of one GPU; the activations are an estimate from above.
    """

    config: Config
    system: System
    assumptions: Assumptions
    efficiency: float
    step: StepTime
    bytes_per_step: dict[str, float]
    tokens_per_second: float
    mfu: float
    evaluation_seconds: float
    samples: float | None
    seconds_to_target: float | None
    state_bytes: int
    activation_bytes: int


def make_estimate(
    config: Config, counts: Mapping[str, int], system: System, efficiency: float, assumptions: Assumptions
) -> Estimate:
    """Estimate one configuration.

    Args:
        config: as `train` takes it.
        counts: parameters by kind, as `model.size.count_parameters` gives them.
        system: the GPUs.
        efficiency: of the matrix products, a fraction of the dense bf16 peak.
        assumptions: everything else.

    Raises:
        EstimateError: tensor or pipeline parallelism, or fp32.
    """
    check_supported(config)
    step = step_time(config, counts, system, efficiency, assumptions)
    rate = config.free.global_batch_size * config.fixed.sequence_length / config.parallel.world_size / step.seconds
    evaluation = evaluation_time(config, system, efficiency, assumptions)
    samples = samples_to_target(config)
    sent = sum(group.sent for group in replica_groups(config, counts))
    return Estimate(
        config=config,
        system=system,
        assumptions=assumptions,
        efficiency=efficiency,
        step=step,
        bytes_per_step={
            "all_to_all": config.accumulation_steps * all_to_all_bytes(config),
            "ring_attention": config.accumulation_steps * ring_attention_bytes(config),
            "reduce_scatter": sent * assumptions.gradient_bytes,
            "all_gather": sent * assumptions.weight_bytes,
        },
        tokens_per_second=rate,
        mfu=rate * flops_per_token(config) / (system.peak_tflops * 1e12),
        evaluation_seconds=evaluation,
        samples=samples,
        seconds_to_target=None if samples is None else run_time(config, step.seconds, evaluation, samples),
        state_bytes=state_bytes_per_gpu(config, dict(counts)),
        activation_bytes=activation_bytes(config),
    )


def step_time(
    config: Config, counts: Mapping[str, int], system: System, efficiency: float, assumptions: Assumptions
) -> StepTime:
    """Return the seconds of one optimizer step, by part. Arguments as of `make_estimate`."""
    passes = config.accumulation_steps
    products = matrix_time(config, system, efficiency, assumptions)
    groups = replica_groups(config, counts)
    reduction = sum(
        _collective_time(group, assumptions.gradient_bytes, config, system, assumptions) for group in groups
    )
    gathering = sum(_collective_time(group, assumptions.weight_bytes, config, system, assumptions) for group in groups)
    return StepTime(
        matrix_products=passes * products,
        gradient_traffic=passes * gradient_traffic_time(params_per_gpu(config, counts), system, assumptions),
        all_to_all=passes * all_to_all_time(config, system, assumptions),
        ring_attention=passes * ring_attention_bytes(config) / (system.link_gbs * 1e9 * assumptions.link_fraction),
        # Megatron-Core reduces gradients during the last backward pass and gathers weights during the first forward.
        reduce_scatter=_exposed_time(reduction, products * (1 - _FORWARD), assumptions.overlap),
        all_gather=_exposed_time(gathering, products * _FORWARD, assumptions.overlap),
        optimizer=_optimizer_time(groups, system, assumptions),
    )


def matrix_time(config: Config, system: System, efficiency: float, assumptions: Assumptions) -> float:
    """Return the seconds of one micro batch's matrix products, forward and backward, on the busiest rank."""
    imbalance = assumptions.imbalance if config.parallel.expert > 1 else 1.0
    work = tokens_per_micro_batch(config) * work_per_token(config, imbalance)
    return work / (system.peak_tflops * 1e12 * efficiency)


def work_per_token(config: Config, imbalance: float = 1.0) -> float:
    """Return the FLOPs that a GPU does per token: the model's, the recomputed ones, and the busiest rank's surplus.

    Args:
        config: sizes of the model, and RECOMPUTE.
        imbalance: rows of the busiest rank over the mean.
    """
    model = config.model
    forward = flops_per_token(config) / 3
    experts = 2 * model.num_layers * model.router_topk * 3 * model.hidden_size * model.moe_ffn_hidden_size
    logits = 2 * model.vocab_size * model.hidden_size
    recomputed = {"moe": experts, "layers": forward - logits}.get(config.execution.recompute, 0)
    expert_work = experts * (4 if recomputes_experts(config) else 3)
    return 3 * forward + recomputed + expert_work * (imbalance - 1)


def gradient_traffic_time(parameters: float, system: System, assumptions: Assumptions) -> float:
    """Return the seconds of a micro batch's memory traffic that grows with the parameters of a GPU, not its tokens."""
    return parameters * assumptions.traffic_bytes / _memory_rate(system, assumptions)


def grad_zero_time(parameters: float, system: System, assumptions: Assumptions) -> float:
    """Return the seconds of zeroing the gradients of the parameters on a GPU, once a step."""
    return parameters * assumptions.gradient_bytes / _memory_rate(system, assumptions)


def all_to_all_time(config: Config, system: System, assumptions: Assumptions) -> float:
    """Return the seconds of one micro batch's all-to-alls: the busiest rank's bytes and latencies; 0 with EP 1."""
    expert = config.parallel.expert
    if expert == 1:
        return 0.0
    busiest = all_to_all_bytes(config) * assumptions.imbalance
    # Peers inside the NVLink domain and outside it are served at the same time; the slower part decides.
    inside = min(expert, system.nvlink_domain_size(config.parallel.gpus_per_node))
    outside = (expert - inside) / (expert - 1)
    slower = max((1 - outside) / system.link_gbs, outside / system.network_gbs)
    latency = all_to_alls_per_layer(config) * config.model.num_layers * assumptions.latency_us * 1e-6
    return busiest * slower / (1e9 * assumptions.link_fraction) + latency


def evaluation_time(config: Config, system: System, efficiency: float, assumptions: Assumptions) -> float:
    """Return the seconds of one evaluation: forward passes over as many whole micro batches as the busiest rank has."""
    rounds = math.ceil(config.fixed.eval_samples / (config.execution.micro_batch_size * config.parallel.data))
    config = config.model_copy(update={"execution": config.execution.model_copy(update={"recompute": "none"})})
    forward = matrix_time(config, system, efficiency, assumptions) * _FORWARD
    ring = ring_attention_bytes(config) * _FORWARD / (system.link_gbs * 1e9 * assumptions.link_fraction)
    return rounds * (forward + all_to_all_time(config, system, assumptions) / 2 + ring)


def run_time(config: Config, step: float, evaluation: float, samples: float) -> float:
    """Return the seconds from run_start to the target: training on the samples, and an evaluation per interval."""
    interval = config.eval_interval_steps * config.free.global_batch_size
    return samples / config.free.global_batch_size * step + samples / interval * evaluation


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
    """Check that the scaling model covers a configuration.

    Raises:
        EstimateError: tensor or pipeline parallelism, or fp32.
    """
    parallel = config.parallel
    if parallel.tensor > 1 or parallel.pipeline > 1:
        raise EstimateError(
            f"TENSOR_PARALLEL, PIPELINE_PARALLEL: got {parallel.tensor} and {parallel.pipeline}; the scaling model "
            "covers expert, data and context parallel. Set both to 1."
        )
    if config.execution.precision == "fp32":
        raise EstimateError("PRECISION: got fp32; the scaling model counts bf16 bytes and the bf16 peak. Set bf16.")


def _memory_rate(system: System, assumptions: Assumptions) -> float:
    return system.memory_tbs * 1e12 * assumptions.memory_fraction


def _collective_time(
    group: ReplicaGroup, element_bytes: float, config: Config, system: System, assumptions: Assumptions
) -> float:
    """Return the seconds of one reduce-scatter or all-gather in a replica group.

    Bytes that leave an NVLink domain share the networks of the group's members in that domain.
    """
    domain = system.nvlink_domain_size(config.parallel.gpus_per_node)
    members = max(1, domain // group.stride)
    rate = system.link_gbs if group.size <= members else min(system.link_gbs, members * system.network_gbs)
    return group.sent * element_bytes / (rate * 1e9 * assumptions.link_fraction)


def _exposed_time(communication: float, window: float, overlap: float) -> float:
    """Return the exposed (not overlapped) communication time.

    Args:
        communication: seconds it takes.
        window: seconds of work that can hide it.
        overlap: largest fraction of it that can be hidden.
    """
    return max(communication * (1 - overlap), communication - window)


def _optimizer_time(groups: tuple[ReplicaGroup, ...], system: System, assumptions: Assumptions) -> float:
    """Return the seconds of the memory traffic of gradient norm, AdamW and zeroing gradients. Nothing overlaps."""
    owned = sum(group.owned for group in groups)
    parameters = sum(group.parameters for group in groups)
    # Gradients are read twice: for the norm and for the update.
    update = _STATE_TRAFFIC + 2 * assumptions.gradient_bytes + assumptions.weight_bytes
    return owned * update / _memory_rate(system, assumptions) + grad_zero_time(parameters, system, assumptions)
