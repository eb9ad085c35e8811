"""Checks of a well-typed configuration: rules of the division, parallel layout, batch size, optional features.

Each check yields problems instead of raising, so that a user sees all of them at once. The layout rules come from the
MLPerf Training rules for gpt_oss_20b and from Megatron-Core's own restrictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .environment import settings
from .presets import PRESETS
from .tree import Config, FixedHyperparameters, ModelConfig


@dataclass(frozen=True)
class Problem:
    """One configuration error.

    ``variables`` names the settings involved, the first one to change first. The message leaves out that name.
    """

    variables: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return f"{self.variables[0]}: {self.message}"


def check_config(config: Config) -> list[Problem]:
    """Return all problems of a well-typed configuration, in the order in which a user would fix them."""
    found = [*_check_division(config), *_check_layout(config), *_check_batch(config)]
    return [*found, *_check_ranges(config), *_check_load_balancing(config)]


def fixed_hyperparameter_overrides(config: Config) -> list[tuple[str, str, object, object]]:
    """Return (field, variable, value, required value) of each setting that differs from the closed division's rules."""
    overrides = []
    for variable, setting in settings().items():
        branch, field = setting.path[0], setting.path[-1]
        if branch != "fixed":
            continue
        value, required = setting.value_in(config), FixedHyperparameters.model_fields[field].default
        if value != required:
            overrides.append((field, variable, value, required))
    return overrides


# Settings that may differ between nodes: local folders, and how each node was prepared.
_PER_NODE = {
    "DATADIR", "LOGDIR", "MLLOG_STDOUT", "TELEMETRY", "TELEMETRY_INTERVAL", "CPU_THREADS", "NUMA_BINDING",
    "CACHE_CLEARED",
}  # fmt: skip


def mismatched_settings(configs: Sequence[Config]) -> list[str]:
    """Compare the settings of all ranks, in rank order. Return lines such as ``SEED: 1 on rank 0, 2 on rank 3``."""
    lines = []
    for variable, setting in settings().items():
        values = [setting.value_in(config) for config in configs]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None and variable not in _PER_NODE:
            lines.append(f"{variable}: {values[0]} on rank 0, {values[other]} on rank {other}")
    return lines


def _check_division(config: Config) -> Iterator[Problem]:
    if config.submission.division != "closed":
        return
    preset = FixedHyperparameters(**PRESETS[config.model.variant].get("fixed", {}))
    for name, variable, value, required in fixed_hyperparameter_overrides(config):
        # A value that comes with the variant is not reported again: the variant is, below.
        if value != getattr(preset, name):
            yield _open_division_only(variable, value, f"the closed division fixes it at {required}")
    if config.model.variant != "reference":
        yield _open_division_only(
            "MODEL_VARIANT", f"'{config.model.variant}'", "the closed division trains 'reference'"
        )
    elif config.init_from is None and config.model != ModelConfig(**PRESETS["reference"]["model"]):
        yield _open_division_only(
            "VOCAB_SIZE", config.model.vocab_size, "the closed division trains with the Llama 3 tokenizer's 128256"
        )
    if config.init_from is not None:
        yield _open_division_only(
            "INIT_FROM", f"'{config.init_from}'", "the closed division starts from random weights"
        )
    if config.data.skip_samples:
        yield _open_division_only("SKIP_SAMPLES", config.data.skip_samples, "the closed division trains on all data")
    if config.data.eod_token is not None:
        yield _open_division_only(
            "EOD_TOKEN",
            config.data.eod_token,
            "the benchmark's data has no end-of-document token and the closed division's loss counts every position",
        )


def _open_division_only(variable: str, value: object, rule: str) -> Problem:
    return Problem(
        (variable, "SUBMISSION_DIVISION"),
        f"got {value}, but {rule}. Unset {variable}, or set SUBMISSION_DIVISION=open.",
    )


def _check_layout(config: Config) -> Iterator[Problem]:
    parallel, model = config.parallel, config.model
    world, replica = parallel.world_size, parallel.ranks_per_replica
    ranks = f"{world} ranks (DGXNNODES {parallel.nodes} x DGXNGPU {parallel.gpus_per_node})"
    if world % replica:
        yield Problem(
            ("TENSOR_PARALLEL", "PIPELINE_PARALLEL", "CONTEXT_PARALLEL", "DGXNNODES", "DGXNGPU"),
            f"tensor x pipeline x context parallel is {parallel.tensor} x {parallel.pipeline} x {parallel.context} = "
            f"{replica}, which does not divide the {ranks}. Choose sizes whose product divides {world}.",
        )
        return
    expert, tensor, pipeline = parallel.expert, parallel.tensor, parallel.pipeline
    experts, groups, layers, vocabulary = model.num_experts, model.num_query_groups, model.num_layers, model.vocab_size
    yield from _must_divide(("EXPERT_PARALLEL", "MODEL_VARIANT"), expert, experts, f"the model's {experts} experts")
    # Megatron-Core spreads the experts over data and context parallel ranks together.
    data = parallel.data * parallel.context
    whole = f"the data-parallel world of {data} (from {ranks})"
    fix = f"Use one of {_divisors(data)}, or change DGXNNODES or DGXNGPU."
    yield from _must_divide(("EXPERT_PARALLEL", "DGXNNODES", "DGXNGPU"), expert, data, whole, fix)
    if tensor > 1 and expert > 1:
        yield Problem(
            ("TENSOR_PARALLEL", "EXPERT_PARALLEL"),
            f"got {tensor} with EXPERT_PARALLEL={expert}; tensor parallel must be 1 when expert parallel is above 1. "
            "Set TENSOR_PARALLEL=1 or EXPERT_PARALLEL=1.",
        )
    whole = f"the model's {groups} key-value groups"
    yield from _must_divide(("TENSOR_PARALLEL", "MODEL_VARIANT"), tensor, groups, whole)
    whole = f"the vocabulary of {vocabulary}"
    fix = "Choose a TENSOR_PARALLEL that does, or pad VOCAB_SIZE to a multiple of it."
    yield from _must_divide(("TENSOR_PARALLEL", "VOCAB_SIZE"), tensor, vocabulary, whole, fix)
    yield from _must_divide(("PIPELINE_PARALLEL", "MODEL_VARIANT"), pipeline, layers, f"the model's {layers} layers")
    if config.execution.backend == "torch":
        yield from check_torch_backend(config)
    if config.execution.backend == "transformer_engine":
        yield from check_transformer_engine_backend(config)
    # Context parallel cuts a sequence into 2 chunks per rank, to balance causal attention.
    length, chunks = config.fixed.sequence_length, 2 * parallel.context
    if parallel.context > 1 and length % chunks:
        yield Problem(
            ("CONTEXT_PARALLEL", "SEQUENCE_LENGTH"),
            f"got {parallel.context}, but sequences of {length} tokens cannot be cut into {chunks} equal parts. "
            "Choose CONTEXT_PARALLEL so that twice it divides the length.",
        )


def _must_divide(variables: tuple[str, ...], size: int, total: int, whole: str, fix: str = "") -> Iterator[Problem]:
    if total % size:
        fix = fix or f"Use one of {_divisors(total)}."
        yield Problem(variables, f"got {size}, which does not divide {whole}. {fix}")


def _divisors(number: int) -> str:
    return ", ".join(str(i) for i in range(1, number + 1) if number % i == 0)


def check_transformer_engine_backend(config: Config) -> Iterator[Problem]:
    """Yield settings that the Transformer Engine back end cannot honor. Also called once BACKEND=auto has chosen it."""
    if config.execution.compile_mode == "layers":
        yield Problem(
            ("COMPILE", "BACKEND"),
            "got layers, but torch.compile cannot trace into Transformer Engine's own kernels. "
            "Set COMPILE=kernels or BACKEND=torch.",
        )
    if config.init_from is not None:
        yield Problem(
            ("INIT_FROM", "BACKEND"),
            f"got '{config.init_from}', but Transformer Engine keeps norms inside its projections, and only the torch "
            "back end reads weights. Set BACKEND=torch.",
        )
    if config.execution.attention_kernel != "auto":
        yield Problem(
            ("ATTENTION_KERNEL", "BACKEND"),
            f"got {config.execution.attention_kernel}, but Transformer Engine chooses its own attention kernels. "
            "Unset ATTENTION_KERNEL, or set BACKEND=torch.",
        )


def check_torch_backend(config: Config) -> Iterator[Problem]:
    """Yield settings that the torch back end cannot honor. Also called once BACKEND=auto has chosen it."""
    precision, context, tensor = config.execution.precision, config.parallel.context, config.parallel.tensor
    if precision in ("fp8", "mxfp8"):
        yield _needs_transformer_engine("PRECISION", precision, "only Transformer Engine has 8-bit layers", "bf16")
    if context > 1:
        reason = "the torch back end keeps each sequence on one rank"
        yield _needs_transformer_engine("CONTEXT_PARALLEL", context, reason, 1)
    if tensor > 1:
        reason = (
            "Megatron-Core splits a mixture of experts over tensor parallel ranks only with Transformer Engine's norms"
        )
        yield _needs_transformer_engine("TENSOR_PARALLEL", tensor, reason, 1)
    kernel, variant = config.execution.attention_kernel, config.model.variant
    if config.model.attention_sinks and kernel not in ("auto", "flex"):
        yield Problem(
            ("ATTENTION_KERNEL", "MODEL_VARIANT"),
            f"got {kernel}, but every layer of '{variant}' has attention sinks, which only flex computes. "
            "Set ATTENTION_KERNEL=auto or flex.",
        )


def _needs_transformer_engine(variable: str, value: object, reason: str, alternative: object) -> Problem:
    return Problem(
        (variable, "BACKEND"),
        f"got {value}, but {reason}. Set {variable}={alternative}, or BACKEND=transformer_engine where that is "
        "installed.",
    )


def _check_batch(config: Config) -> Iterator[Problem]:
    if config.parallel.world_size % config.parallel.ranks_per_replica:
        return
    gbs, mbs, data = config.free.global_batch_size, config.execution.micro_batch_size, config.parallel.data
    if gbs % (mbs * data):
        yield Problem(
            ("GLOBAL_BATCH_SIZE", "MICRO_BATCH_SIZE", "DGXNNODES", "DGXNGPU"),
            f"got {gbs}, which is not a multiple of micro batch {mbs} x data parallel {data} = {mbs * data}, so the "
            f"accumulation steps would not be a whole number. Use a multiple of {mbs * data}, or change "
            "MICRO_BATCH_SIZE or the number of ranks.",
        )
    if config.data.skip_samples % gbs:
        yield Problem(
            ("SKIP_SAMPLES", "GLOBAL_BATCH_SIZE"),
            f"got {config.data.skip_samples}, which is not a multiple of the global batch size {gbs}. "
            f"Use {-(-config.data.skip_samples // gbs) * gbs}.",
        )


def _check_ranges(config: Config) -> Iterator[Problem]:
    warmup, steps = config.free.warmup_steps, config.fixed.max_steps
    if warmup >= steps:
        yield Problem(
            ("WARMUP_STEPS", "MAX_STEPS"),
            f"got {warmup}, which leaves no step of the {steps} to decay. Use fewer than {steps}.",
        )
    eod, vocabulary = config.data.eod_token, config.model.vocab_size
    if eod is not None and eod >= vocabulary:
        yield Problem(
            ("EOD_TOKEN", "VOCAB_SIZE"),
            f"got {eod}, which is not in the vocabulary of {vocabulary}. Use an id from 0 to {vocabulary - 1}.",
        )


def _check_load_balancing(config: Config) -> Iterator[Problem]:
    coefficient, rate = config.fixed.aux_loss_coefficient, config.fixed.expert_bias_rate
    if coefficient and rate:
        yield Problem(
            ("AUX_LOSS_COEFF", "EXPERT_BIAS_RATE"),
            f"got {coefficient} with EXPERT_BIAS_RATE={rate}, but only one method of load balancing can be on. "
            "Unset one of them.",
        )
    tensor, context = config.parallel.tensor, config.parallel.context
    if coefficient and tensor * context > 1:
        yield Problem(
            ("AUX_LOSS_COEFF", "TENSOR_PARALLEL", "CONTEXT_PARALLEL"),
            f"got {coefficient} with tensor x context parallel {tensor} x {context}, where releases of Megatron-Core "
            f"scale the loss differently, by a factor of {tensor * context}. Use TENSOR_PARALLEL=1 and "
            "CONTEXT_PARALLEL=1, or unset AUX_LOSS_COEFF.",
        )
