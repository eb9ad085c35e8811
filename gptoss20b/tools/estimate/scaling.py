"""From a layout, a system and an efficiency to the time of a step, an evaluation and a run.

A step is accumulation x (matrix products + gradient traffic + all-to-all + ring attention), then what is left of the
gradient reduction and the weight gathering, then the optimizer. The all-to-alls hide behind nothing: Megatron-Core's
dispatcher waits for each. Nothing else is modelled: no data loading, no logging, no launch gaps, no slow GPUs.
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
from .traffic import Group, all_to_all_bytes, all_to_alls, context_bytes, experts_again, groups, resident, tokens

# Mean samples to the target of 20 reference runs by global batch size: the reference convergence points of v6.0 and
# v6.1 (mlperf-logging). What is between is interpolated; below 16 the rules take 16's; above 64 there is none.
CONVERGENCE = {16: 194_764.8, 32: 234_700.8, 64: 301_670.4}
_FORWARD = 1 / 3  # of a micro batch's FLOPs; backward is the rest
_STATE_TRAFFIC = 24  # bytes: fp32 master weight and two moments, each read and written


@dataclass(frozen=True)
class Step:
    """Seconds of one optimizer step on the slowest GPU, by part; communication is what nothing hides."""

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
    """What `estimate` says of one configuration on one system.

    Attributes:
        config, system, assumptions: what it was made from.
        efficiency: of the matrix products, as a fraction of the dense bf16 peak.
        step: seconds by part.
        bytes_per_step: that one GPU sends, by collective, with balanced routing.
        tokens_per_second: per GPU, evaluations left out.
        mfu: model FLOPs per second over the dense bf16 peak, evaluations left out.
        evaluation_seconds: of one evaluation.
        samples: to the target, on average; None where the reference has no point.
        seconds_to_target: of a run with its evaluations; None likewise.
        state_bytes, activation_bytes: of one GPU; the activations are an estimate from above.
    """

    config: Config
    system: System
    assumptions: Assumptions
    efficiency: float
    step: Step
    bytes_per_step: dict[str, float]
    tokens_per_second: float
    mfu: float
    evaluation_seconds: float
    samples: float | None
    seconds_to_target: float | None
    state_bytes: int
    activation_bytes: int


def estimate(
    config: Config, counts: Mapping[str, int], system: System, efficiency: float, assumed: Assumptions | None = None
) -> Estimate:
    """Reckon one configuration.

    Args:
        config: as `train` takes it.
        counts: parameters by kind, as `model.size.count_parameters` gives them.
        efficiency: of the matrix products, a fraction of the dense bf16 peak.

    Raises:
        EstimateError: tensor or pipeline parallel, or fp32.
    """
    covered(config)
    assumed = assumed or Assumptions()
    step = step_time(config, counts, system, efficiency, assumed)
    rate = config.free.global_batch_size * config.fixed.sequence_length / config.parallel.world_size / step.seconds
    evaluation = evaluation_time(config, system, efficiency, assumed)
    samples = samples_to_target(config)
    shared = groups(config, counts)
    exchanged = sum(group.exchanged for group in shared)
    return Estimate(
        config=config,
        system=system,
        assumptions=assumed,
        efficiency=efficiency,
        step=step,
        bytes_per_step={
            "all_to_all": config.accumulation_steps * all_to_all_bytes(config),
            "ring_attention": config.accumulation_steps * context_bytes(config),
            "reduce_scatter": exchanged * assumed.gradient_bytes,
            "all_gather": exchanged * assumed.weight_bytes,
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
    config: Config, counts: Mapping[str, int], system: System, efficiency: float, assumed: Assumptions
) -> Step:
    """Seconds of one optimizer step, by part. Arguments as of `estimate`."""
    passes = config.accumulation_steps
    products = matrix_time(config, system, efficiency, assumed)
    shared = groups(config, counts)
    reduction = sum(_exchange(group, assumed.gradient_bytes, config, system, assumed) for group in shared)
    gathering = sum(_exchange(group, assumed.weight_bytes, config, system, assumed) for group in shared)
    return Step(
        matrix_products=passes * products,
        gradient_traffic=passes * traffic_time(resident(config, counts), system, assumed),
        all_to_all=passes * all_to_all_time(config, system, assumed),
        ring_attention=passes * context_bytes(config) / (system.link_gbs * 1e9 * assumed.link_fraction),
        reduce_scatter=_left(reduction, products * (1 - _FORWARD), assumed.overlap),
        all_gather=_left(gathering, products * _FORWARD, assumed.overlap),
        optimizer=_optimizer_time(shared, system, assumed),
    )


def matrix_time(config: Config, system: System, efficiency: float, assumed: Assumptions) -> float:
    """Seconds of one micro batch's matrix products, forward and backward; the busiest rank's experts with EP > 1."""
    busiest = assumed.imbalance if config.parallel.expert > 1 else 1.0
    return tokens(config) * work_per_token(config, busiest) / (system.peak_tflops * 1e12 * efficiency)


def work_per_token(config: Config, imbalance: float = 1.0) -> float:
    """FLOPs that a GPU does per token: the model's, those that RECOMPUTE does again, and more rows than the mean."""
    model = config.model
    forward = flops_per_token(config) / 3
    experts = 2 * model.num_layers * model.router_topk * 3 * model.hidden_size * model.moe_ffn_hidden_size
    logits = 2 * model.vocab_size * model.hidden_size
    again = {"moe": experts, "layers": forward - logits}.get(config.execution.recompute, 0)
    of_experts = experts * (4 if experts_again(config) else 3)
    return 3 * forward + again + of_experts * (imbalance - 1)


def traffic_time(parameters: float, system: System, assumed: Assumptions) -> float:
    """Seconds of memory traffic in one micro batch that grows with the parameters on a GPU, not with its tokens."""
    return parameters * assumed.traffic_bytes / _memory_rate(system, assumed)


def clearing_time(parameters: float, system: System, assumed: Assumptions) -> float:
    """Seconds of clearing the gradients of the parameters on a GPU, once a step."""
    return parameters * assumed.gradient_bytes / _memory_rate(system, assumed)


def all_to_all_time(config: Config, system: System, assumed: Assumptions) -> float:
    """Seconds of one micro batch's all-to-alls: the busiest rank's bytes, and a latency for each; 0 with EP 1."""
    expert = config.parallel.expert
    if expert == 1:
        return 0.0
    busiest = all_to_all_bytes(config) * assumed.imbalance
    joined = min(expert, system.nvlink_domain_size(config.parallel.gpus_per_node))
    outside = (expert - joined) / (expert - 1)
    slower = max((1 - outside) / system.link_gbs, outside / system.network_gbs)
    latency = all_to_alls(config) * config.model.num_layers * assumed.latency_us * 1e-6
    return busiest * slower / (1e9 * assumed.link_fraction) + latency


def evaluation_time(config: Config, system: System, efficiency: float, assumed: Assumptions) -> float:
    """Seconds of one evaluation: whole micro batches of forward passes, as many as the busiest rank has."""
    rounds = math.ceil(config.fixed.eval_samples / (config.execution.micro_batch_size * config.parallel.data))
    config = config.model_copy(update={"execution": config.execution.model_copy(update={"recompute": "none"})})
    forward = matrix_time(config, system, efficiency, assumed) * _FORWARD
    ring = context_bytes(config) * _FORWARD / (system.link_gbs * 1e9 * assumed.link_fraction)
    return rounds * (forward + all_to_all_time(config, system, assumed) / 2 + ring)


def run_time(config: Config, step: float, evaluation: float, samples: float) -> float:
    """Seconds from run_start to the target: training on the samples, and an evaluation after each interval."""
    interval = config.eval_interval_steps * config.free.global_batch_size
    return samples / config.free.global_batch_size * step + samples / interval * evaluation


def samples_to_target(config: Config) -> float | None:
    """Mean samples to the target by the reference convergence points, for the model and rules they were made with."""
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


def covered(config: Config) -> None:
    """Refuse what the model does not cover.

    Raises:
        EstimateError: tensor or pipeline parallel, or fp32.
    """
    parallel = config.parallel
    if parallel.tensor > 1 or parallel.pipeline > 1:
        raise EstimateError(
            f"TENSOR_PARALLEL, PIPELINE_PARALLEL: got {parallel.tensor} and {parallel.pipeline}; the scaling model "
            "covers expert, data and context parallel. Set both to 1."
        )
    if config.execution.precision == "fp32":
        raise EstimateError("PRECISION: got fp32; the scaling model counts bf16 bytes and the bf16 peak. Set bf16.")


def _memory_rate(system: System, assumed: Assumptions) -> float:
    return system.memory_tbs * 1e12 * assumed.memory_fraction


def _exchange(group: Group, size: float, config: Config, system: System, assumed: Assumptions) -> float:
    """Seconds of one reduce-scatter or all-gather; what leaves a domain goes by the networks of its members there."""
    joined = system.nvlink_domain_size(config.parallel.gpus_per_node)
    members = max(1, joined // group.stride)
    rate = system.link_gbs if group.size <= members else min(system.link_gbs, members * system.network_gbs)
    return group.exchanged * size / (rate * 1e9 * assumed.link_fraction)


def _left(communication: float, window: float, overlap: float) -> float:
    """What is left of a communication that hides behind a window of work, up to a fraction of itself."""
    return max(communication * (1 - overlap), communication - window)


def _optimizer_time(shared: tuple[Group, ...], system: System, assumed: Assumptions) -> float:
    """Seconds of the memory traffic of norm, AdamW and clearing gradients; nothing of it overlaps."""
    owned = sum(group.owned for group in shared)
    everything = sum(group.parameters for group in shared)
    update = _STATE_TRAFFIC + 2 * assumed.gradient_bytes + assumed.weight_bytes  # gradients are read for the norm too
    return owned * update / _memory_rate(system, assumed) + clearing_time(everything, system, assumed)
