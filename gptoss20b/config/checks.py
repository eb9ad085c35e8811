"""What a well-typed configuration can still get wrong: the rules of the division, the layout, the batch.

Each check returns problems instead of raising, so that a user sees all of them at once. A problem says what is wrong,
what was got, what was expected and how to fix it. Source of the layout rules: MLPerf Training rules for gpt_oss_20b
and Megatron-Core's own restrictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from .environment import settings
from .presets import PRESETS
from .tree import Config, FixedHyperparameters, ModelConfig


@dataclass(frozen=True)
class Problem:
    """One thing to fix.

    Attributes:
        variables: environment names of the settings involved, the first one to change first.
        message: what is wrong, got, expected and fix, without the variable's name.
    """

    variables: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return f"{self.variables[0]}: {self.message}"


def check_config(config: Config) -> list[Problem]:
    """All problems of a well-typed configuration, in the order in which a user would fix them."""
    return [*_division(config), *_layout(config), *_batch(config), *_numbers(config), *_balancing(config)]


def fixed_hyperparameter_overrides(config: Config) -> list[tuple[str, str, object, object]]:
    """The settings that differ from the closed division's fixed values: (field, variable, got, required)."""
    differing = []
    for name, field in FixedHyperparameters.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        got, required = getattr(config.fixed, name), field.default
        if got != required:
            differing.append((name, str(extra["env"]), got, required))
    return differing


# What each node may have in its own way.
_PER_NODE = {"DATADIR", "LOGDIR", "CPU_THREADS", "CACHE_CLEARED"}


def mismatched_settings(configs: Sequence[Config]) -> list[str]:
    """What the ranks of one run were told differently, a line per setting: ``SEED: 1 on rank 0, 2 on rank 3``.

    Args:
        configs: each rank's configuration, in order of rank.
    """
    found = []
    for variable, setting in settings().items():
        values: list[Any] = [reduce(getattr, setting.path, config) for config in configs]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None and variable not in _PER_NODE:
            found.append(f"{variable}: {values[0]} on rank 0, {values[other]} on rank {other}")
    return found


def _division(config: Config) -> Iterator[Problem]:
    if config.submission.division != "closed":
        return
    preset = FixedHyperparameters(**PRESETS[config.model.variant].get("fixed", {}))
    for name, variable, got, required in fixed_hyperparameter_overrides(config):
        if got == getattr(preset, name):
            continue  # comes with the variant, whose own problem is reported below
        yield Problem(
            (variable, "SUBMISSION_DIVISION"),
            f"got {got}, but the closed division fixes it at {required}. Unset {variable}, "
            "or set SUBMISSION_DIVISION=open.",
        )
    if config.model.variant != "reference":
        yield Problem(
            ("MODEL_VARIANT", "SUBMISSION_DIVISION"),
            f"got '{config.model.variant}', but the closed division trains 'reference'. Unset MODEL_VARIANT, "
            "or set SUBMISSION_DIVISION=open.",
        )
    elif config.model != ModelConfig(**PRESETS["reference"]["model"]):
        yield Problem(
            ("VOCAB_SIZE", "SUBMISSION_DIVISION"),
            f"got {config.model.vocab_size}, but the closed division trains with the Llama 3 tokenizer's 128256. "
            "Unset VOCAB_SIZE, or set SUBMISSION_DIVISION=open.",
        )
    if config.data.eod_token is not None:
        yield Problem(
            ("EOD_TOKEN", "SUBMISSION_DIVISION"),
            f"got {config.data.eod_token}, but the benchmark's data has no end-of-document token and the closed "
            "division's loss counts every position. Unset EOD_TOKEN, or set SUBMISSION_DIVISION=open.",
        )


def _layout(config: Config) -> Iterator[Problem]:
    parallel, model = config.parallel, config.model
    world = parallel.world_size
    ranks = f"{world} ranks (DGXNNODES {parallel.nodes} x DGXNGPU {parallel.gpus_per_node})"
    split = parallel.tensor * parallel.pipeline * parallel.context
    if world % split:
        yield Problem(
            ("TENSOR_PARALLEL", "PIPELINE_PARALLEL", "CONTEXT_PARALLEL", "DGXNNODES", "DGXNGPU"),
            f"tensor x pipeline x context parallel is {parallel.tensor} x {parallel.pipeline} x {parallel.context} = "
            f"{split}, which does not divide the {ranks}. Choose sizes whose product divides {world}.",
        )
        return
    if model.num_experts % parallel.expert:
        yield Problem(
            ("EXPERT_PARALLEL", "MODEL_VARIANT"),
            f"got {parallel.expert}, which does not divide the model's {model.num_experts} experts. "
            f"Use one of {_divisors(model.num_experts)}.",
        )
    if parallel.data * parallel.context % parallel.expert:
        yield Problem(
            ("EXPERT_PARALLEL", "DGXNNODES", "DGXNGPU"),
            f"got {parallel.expert}, which does not divide the data-parallel world of "
            f"{parallel.data * parallel.context} (from {ranks}). Use one of "
            f"{_divisors(parallel.data * parallel.context)}, or change DGXNNODES or DGXNGPU.",
        )
    if parallel.tensor > 1 and parallel.expert > 1:
        yield Problem(
            ("TENSOR_PARALLEL", "EXPERT_PARALLEL"),
            f"got {parallel.tensor} with EXPERT_PARALLEL={parallel.expert}; tensor parallel must be 1 when expert "
            "parallel is above 1. Set TENSOR_PARALLEL=1 or EXPERT_PARALLEL=1.",
        )
    if model.num_query_groups % parallel.tensor:
        yield Problem(
            ("TENSOR_PARALLEL", "MODEL_VARIANT"),
            f"got {parallel.tensor}, which does not divide the model's {model.num_query_groups} key-value groups. "
            f"Use one of {_divisors(model.num_query_groups)}.",
        )
    if model.vocab_size % parallel.tensor:
        yield Problem(
            ("TENSOR_PARALLEL", "VOCAB_SIZE"),
            f"got {parallel.tensor}, which does not divide the vocabulary of {model.vocab_size}. "
            "Choose a TENSOR_PARALLEL that does, or pad VOCAB_SIZE to a multiple of it.",
        )
    if model.num_layers % parallel.pipeline:
        yield Problem(
            ("PIPELINE_PARALLEL", "MODEL_VARIANT"),
            f"got {parallel.pipeline}, which does not divide the model's {model.num_layers} layers. "
            f"Use one of {_divisors(model.num_layers)}.",
        )
    if config.execution.backend == "torch":
        yield from check_torch_backend(config)
    if config.execution.backend == "transformer_engine":
        yield from check_transformer_engine_backend(config)
    if config.fixed.sequence_length % (2 * parallel.context) and parallel.context > 1:
        yield Problem(
            ("CONTEXT_PARALLEL", "SEQUENCE_LENGTH"),
            f"got {parallel.context}, but sequences of {config.fixed.sequence_length} tokens cannot be cut into "
            f"{2 * parallel.context} equal parts. Choose CONTEXT_PARALLEL so that twice it divides the length.",
        )


def check_transformer_engine_backend(config: Config) -> Iterator[Problem]:
    """What the Transformer Engine back end cannot do; also asked when BACKEND=auto turns out to mean it."""
    if config.execution.compile_mode == "layers":
        yield Problem(
            ("COMPILE", "BACKEND"),
            "got layers, but Transformer Engine's layers are kernels of its own, which torch.compile cannot see into. "
            "Set COMPILE=kernels or BACKEND=torch.",
        )


def check_torch_backend(config: Config) -> Iterator[Problem]:
    """What the torch back end cannot do; also asked when BACKEND=auto turns out to mean torch."""
    if config.execution.precision in ("fp8", "mxfp8"):
        yield Problem(
            ("PRECISION", "BACKEND"),
            f"got {config.execution.precision}, but only Transformer Engine has 8-bit layers. Set PRECISION=bf16, or "
            "BACKEND=transformer_engine where that is installed.",
        )
    if config.parallel.context > 1:
        yield Problem(
            ("CONTEXT_PARALLEL", "BACKEND"),
            f"got {config.parallel.context}, but the torch back end keeps each sequence on one rank. "
            "Set CONTEXT_PARALLEL=1, or BACKEND=transformer_engine where that is installed.",
        )
    if config.parallel.tensor > 1:
        yield Problem(
            ("TENSOR_PARALLEL", "BACKEND"),
            f"got {config.parallel.tensor}, but Megatron-Core splits a mixture of experts over tensor parallel ranks "
            "only with Transformer Engine's norms. Set TENSOR_PARALLEL=1, or BACKEND=transformer_engine where that is "
            "installed.",
        )


def _batch(config: Config) -> Iterator[Problem]:
    split = config.parallel.tensor * config.parallel.pipeline * config.parallel.context
    if config.parallel.world_size % split:
        return
    gbs, mbs, data = config.free.global_batch_size, config.execution.micro_batch_size, config.parallel.data
    if gbs % (mbs * data):
        yield Problem(
            ("GLOBAL_BATCH_SIZE", "MICRO_BATCH_SIZE", "DGXNNODES", "DGXNGPU"),
            f"got {gbs}, which is not a multiple of micro batch {mbs} x data parallel {data} = {mbs * data}, so the "
            f"accumulation steps would not be a whole number. Use a multiple of {mbs * data}, or change "
            "MICRO_BATCH_SIZE or the number of ranks.",
        )


def _numbers(config: Config) -> Iterator[Problem]:
    if config.free.warmup_steps >= config.fixed.max_steps:
        yield Problem(
            ("WARMUP_STEPS", "MAX_STEPS"),
            f"got {config.free.warmup_steps}, which leaves no step of the {config.fixed.max_steps} to decay. "
            f"Use fewer than {config.fixed.max_steps}.",
        )
    eod, vocabulary = config.data.eod_token, config.model.vocab_size
    if eod is not None and eod >= vocabulary:
        yield Problem(
            ("EOD_TOKEN", "VOCAB_SIZE"),
            f"got {eod}, which is not in the vocabulary of {vocabulary}. Use an id from 0 to {vocabulary - 1}.",
        )


def _balancing(config: Config) -> Iterator[Problem]:
    coefficient, rate = config.fixed.aux_loss_coefficient, config.fixed.expert_bias_rate
    if coefficient and rate:
        yield Problem(
            ("AUX_LOSS_COEFF", "EXPERT_BIAS_RATE"),
            f"got {coefficient} with EXPERT_BIAS_RATE={rate}, which are two ways to one end: the loss would push the "
            "scores, the biases the choice. Unset one of them.",
        )
    split = config.parallel.tensor * config.parallel.context
    if coefficient and split > 1:
        yield Problem(
            ("AUX_LOSS_COEFF", "TENSOR_PARALLEL", "CONTEXT_PARALLEL"),
            f"got {coefficient} with tensor x context parallel {config.parallel.tensor} x {config.parallel.context}, "
            f"where releases of Megatron-Core differ by a factor of {split} in what it means. Use TENSOR_PARALLEL=1 "
            "and CONTEXT_PARALLEL=1, or unset AUX_LOSS_COEFF.",
        )


def _divisors(number: int) -> str:
    return ", ".join(str(i) for i in range(1, number + 1) if number % i == 0)
