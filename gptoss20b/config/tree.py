"""Configuration of one run, as a frozen, typed tree.

Each leaf that a user may set carries the name of its environment variable. The environment reader and the command-line
options are derived from these names, so a new setting is added here and nowhere else. A value that follows from other
values is a property, never a field.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class FrozenModel(BaseModel):
    """Immutable branch of the tree. Rejects unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def setting(env: str, description: str, default: Any = ..., **bounds: Any) -> Any:
    """Declare a leaf that a user sets by the environment variable ``env`` or the option of the same name."""
    return Field(default, description=description, json_schema_extra={"env": env}, **bounds)


# Users may write a choice in any case: CLOSED, MXFP8.
_LOWERCASE = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)


class FixedHyperparameters(FrozenModel):
    """Hyperparameters that the closed division fixes. The open division may change them.

    The defaults are the rules' values (MLPerf Training, gpt_oss_20b, rounds v6.0 and v6.1).
    """

    sequence_length: int = setting("SEQUENCE_LENGTH", "tokens per sequence", 8192, ge=2)
    max_steps: int = setting("MAX_STEPS", "optimizer steps after which an unconverged run stops", 1_200_000, ge=1)
    end_learning_rate_ratio: float = setting("END_LR_RATIO", "end learning rate / base learning rate", 0.1, ge=0, le=1)
    adam_beta1: float = setting("ADAM_BETA1", "AdamW beta 1", 0.9, ge=0, lt=1)
    adam_beta2: float = setting("ADAM_BETA2", "AdamW beta 2", 0.95, ge=0, lt=1)
    adam_epsilon: float = setting("ADAM_EPSILON", "AdamW epsilon", 1e-5, gt=0)
    weight_decay: float = setting("WEIGHT_DECAY", "AdamW decoupled weight decay", 0.1, ge=0)
    gradient_clip: float = setting("GRADIENT_CLIP", "gradients are clipped to this global norm", 1.0, gt=0)
    init_method_std: float = setting("INIT_METHOD_STD", "standard deviation of the initial weights", 0.008, gt=0)
    eval_samples: int = setting("EVAL_SAMPLES", "validation sequences per evaluation, in file order", 1024, ge=1)
    eval_interval_samples: int = setting(
        "EVAL_INTERVAL_SAMPLES", "training sequences between evaluations, rounded up to whole steps", 12_288, ge=1
    )
    target_loss: float = setting("TARGET_LOSS", "evaluation loss to reach, in nats per token", 3.34, gt=0)
    aux_loss_coefficient: float = setting("AUX_LOSS_COEFF", "load-balancing loss coefficient; 0 is off", 0.0, ge=0)
    expert_bias_rate: float = setting(
        "EXPERT_BIAS_RATE",
        "update rate of the expert biases, which also makes the router score with sigmoids; 0 is off",
        0.0,
        ge=0,
    )


class FreeHyperparameters(FrozenModel):
    """The hyperparameters that the closed division leaves free."""

    global_batch_size: int = setting("GLOBAL_BATCH_SIZE", "sequences per optimizer step", 16, ge=1)
    learning_rate: float = setting("LEARNING_RATE", "peak learning rate", 4e-4, gt=0)
    warmup_steps: int = setting("WARMUP_STEPS", "steps of linear learning-rate warm-up", 128, ge=0)


class Yarn(FrozenModel):
    """YaRN scaling of rotary positions (Peng et al. 2023), with the values of the released gpt-oss."""

    factor: float = 32.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False


class ModelConfig(FrozenModel):
    """Model architecture. `presets` holds the variants; a user can change the variant and the vocabulary only."""

    variant: str = setting(
        "MODEL_VARIANT", "model preset: reference, openai, openai_120b, tiny or openai_tiny", "reference"
    )
    vocab_size: int = setting("VOCAB_SIZE", "vocabulary size: rows of the embedding and of the output layer", ge=2)
    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_query_groups: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    num_experts: int = Field(ge=1)
    router_topk: int = Field(ge=1)
    moe_ffn_hidden_size: int = Field(ge=1)
    activation: Literal["swiglu", "clamped_swiglu"] = Field("swiglu", description="expert activation")
    biases: bool = Field(False, description="biases of attention projections, router and experts")
    qk_norm: bool = Field(True, description="RMSNorm on queries and keys over the head dimension, before RoPE")
    attention_sinks: bool = Field(False, description="one learned sink logit per head in the attention softmax")
    window_left: int = Field(128, ge=1, description="earlier keys that a query sees in a sliding-window layer")
    router_softmax_before_topk: bool = Field(
        False, description="softmax over all experts before the top-k choice, instead of over the chosen experts"
    )
    rotary_base: int = 150_000
    yarn: Yarn | None = None
    norm_epsilon: float = Field(1e-5, gt=0)

    @model_validator(mode="after")
    def _check_dimensions(self) -> Self:
        """Refuse what Megatron-Core cannot build, or cannot train."""
        lowest = 1 if self.router_softmax_before_topk else 2
        if not lowest <= self.router_topk <= self.num_experts:
            # The softmax over one chosen expert is 1, so the router would have no gradient.
            raise ValueError(
                f"router_topk is {self.router_topk} of {self.num_experts} experts, expected {lowest} to "
                f"{self.num_experts}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number: RoPE rotates pairs of dimensions")
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, expected a multiple of num_query_groups, "
                f"{self.num_query_groups}"
            )
        return self

    def has_sliding_window(self, layer_number: int) -> bool:
        """Return True for the layers 1, 3, 5, ...; numbers start at 1."""
        return layer_number % 2 == 1


class Parallel(FrozenModel):
    """Parallel layout: how the ranks share the model and the batch."""

    nodes: int = setting("DGXNNODES", "nodes of the run", 1, ge=1, le=100_000)
    gpus_per_node: int = setting("DGXNGPU", "ranks per node, one per GPU", 8, ge=1, le=1024)
    expert: int = setting("EXPERT_PARALLEL", "expert parallel size", 8, ge=1)
    tensor: int = setting("TENSOR_PARALLEL", "tensor parallel size", 1, ge=1)
    pipeline: int = setting("PIPELINE_PARALLEL", "pipeline parallel size", 1, ge=1)
    context: int = setting("CONTEXT_PARALLEL", "context parallel size", 1, ge=1)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.gpus_per_node

    @property
    def ranks_per_replica(self) -> int:
        """Number of ranks that share one sequence: tensor x pipeline x context parallel."""
        return self.tensor * self.pipeline * self.context

    @property
    def data(self) -> int:
        """Data parallel size: groups of ranks that train on different sequences."""
        return self.world_size // self.ranks_per_replica

    @property
    def expert_data(self) -> int:
        """Number of ranks that hold a copy of the same experts."""
        return self.world_size // (self.pipeline * self.expert)


class Execution(FrozenModel):
    """Performance settings. They do not change the result, except for rounding.

    Exception: the open division's load-balancing loss is computed per micro batch, so it depends on `micro_batch_size`.
    """

    micro_batch_size: int = setting("MICRO_BATCH_SIZE", "sequences per forward pass of one rank", 2, ge=1)
    precision: Annotated[Literal["bf16", "fp32", "fp8", "mxfp8"], _LOWERCASE] = setting(
        "PRECISION",
        "arithmetic of the layers: bf16, fp32, or fp8 or mxfp8 for their matrix products and bf16 for the rest; "
        "master weights and gradients are always fp32",
        "bf16",
    )
    backend: Annotated[Literal["auto", "torch", "transformer_engine"], _LOWERCASE] = setting(
        "BACKEND", "layer implementation; auto uses Transformer Engine if it is installed", "auto"
    )
    recompute: Annotated[Literal["none", "moe_act", "moe", "layers"], _LOWERCASE] = setting(
        "RECOMPUTE",
        "activations to recompute in the backward pass to save memory: none, moe_act (the experts' activation "
        "function), moe (the whole expert layer) or layers (everything but each layer's input)",
        "none",
    )
    compile_mode: Annotated[Literal["kernels", "layers"], _LOWERCASE] = setting(
        "COMPILE",
        "what torch.compile compiles on GPUs: kernels (this project's own operators) or layers (also the norms and "
        "the attention of each layer)",
        "kernels",
    )
    attention_kernel: Annotated[Literal["auto", "cudnn", "flash", "flex"], _LOWERCASE] = setting(
        "ATTENTION_KERNEL",
        "torch back end's attention kernel on GPUs for full causal layers without sinks: cudnn, flash, flex or auto "
        "(the first of cudnn and flash that the GPU runs correctly); layers with windows or sinks always use flex",
        "auto",
    )
    warmup_passes: int = setting("WARMUP_PASSES", "warm-up steps on synthetic tokens before the clock starts", 2, ge=0)
    self_test: bool | None = setting(
        "SELF_TEST", "check each kernel against fp64 before the clock starts; default: on GPUs only", None
    )
    timeout_seconds: int = setting("COLLECTIVE_TIMEOUT", "seconds until a stuck collective aborts the run", 45, ge=5)
    deterministic: bool = setting(
        "DETERMINISTIC",
        "make reruns on the same machine bit-identical; slower on GPUs (docs/fault-tolerance.md)",
        False,
    )
    numa_binding: Annotated[Literal["node", "none"], _LOWERCASE] = setting(
        "NUMA_BINDING",
        "bind each rank to the CPUs of its GPU's NUMA node, or none; an environment variable, which the launcher reads",
        "node",
    )
    cpu_threads: int = setting("CPU_THREADS", "CPU threads per rank on a machine without a GPU", 1, ge=1)

    @property
    def bf16_weights(self) -> bool:
        """True if weights and activations are bf16, with fp32 master weights. True for the 8-bit precisions too."""
        return self.precision != "fp32"


class Data(FrozenModel):
    """Location and format of the token files."""

    directory: Path = setting("DATADIR", "folder with the training and validation .bin/.idx files", Path("/data"))
    skip_samples: int = setting(
        "SKIP_SAMPLES",
        "training sequences to leave out of the data order before the next step, such as those at which a run "
        "diverged; a resumed run needs at least the number that it had",
        0,
        ge=0,
    )
    eod_token: int | None = setting("EOD_TOKEN", "id of the end-of-document token, which the loss ignores", None, ge=0)


class Logging(FrozenModel):
    """Result folder, and what is logged how often."""

    directory: Path | None = setting("LOGDIR", "result folder; default: a new folder under results/", None)
    interval: int = setting("LOG_INTERVAL", "optimizer steps between train_loss records and progress lines", 10, ge=1)
    records_on_stdout: bool | None = setting(
        "MLLOG_STDOUT", "print the log's records on stdout, too; default: only where stdout is no terminal", None
    )
    telemetry: bool = setting(
        "TELEMETRY",
        "sample power, clocks and temperature of the node's GPUs into telemetry.csv beside the log, in its "
        "own process (docs/tuning.md)",
        False,
    )
    telemetry_interval: float = setting("TELEMETRY_INTERVAL", "seconds between samples of the GPUs", 1.0, ge=0.1)

    def has_loss(self, step: int) -> bool:
        """Return whether the loss of a step is logged: every `interval` steps, and the first, for a sign of life."""
        return step == 1 or step % self.interval == 0


class Checkpointing(FrozenModel):
    """When and where checkpoints are saved, and whether to resume. Timed runs save none."""

    interval: str = setting(
        "SAVE_INTERVAL",
        "training sequences between checkpoints, or minutes (30min); 0 saves none",
        "0",
        pattern=r"^(0|[1-9]\d{0,11}|[1-9]\d{0,5}min)$",
    )
    keep: int = setting("SAVE_KEEP", "number of newest checkpoints to keep", 2, ge=1)
    directory: Path | None = setting("SAVE_DIR", "checkpoint folder; default: checkpoints/ in LOGDIR", None)
    asynchronous: bool = setting("SAVE_ASYNC", "save in the background, from a copy in host memory", True)
    resume: bool = setting(
        "RESUME", "resume from the newest checkpoint; start from scratch if LOGDIR has no log yet", False
    )

    @property
    def minutes(self) -> int | None:
        """Minutes between checkpoints; None if the interval counts samples."""
        return int(self.interval.removesuffix("min")) if self.interval.endswith("min") else None

    @property
    def samples(self) -> int:
        """Training sequences between checkpoints; 0 if none are saved or the interval is in minutes."""
        return int(self.interval) if self.minutes is None else 0


class Submission(FrozenModel):
    """Submission details for the log. Each SUBMISSION_* is also read with the prefix MLPERF_ or MLLOG_."""

    system: str = setting("DGXSYSTEM", "system name; a configuration file sets it to its own name", "unnamed")
    org: str = setting("SUBMISSION_ORG", "submitting organisation", "reference", min_length=1)
    # `resolve` fills in an empty platform and file name.
    platform: str = setting("SUBMISSION_PLATFORM", "platform name; default: the system name", "")
    division: Annotated[Literal["closed", "open"], _LOWERCASE] = setting(
        "SUBMISSION_DIVISION", "division whose rules apply: closed or open", "closed"
    )
    status: Annotated[Literal["onprem", "cloud", "preview", "research"], _LOWERCASE] = setting(
        "SUBMISSION_STATUS", "system availability: onprem, cloud, preview or research", "onprem"
    )
    config_filename: str = setting(
        "CONFIG_FILENAME", "configuration file's name; default: derived from the system name", ""
    )
    git_commit: str | None = setting("GIT_COMMIT", "commit of the code, used if there is no git repository", None)
    cache_cleared: bool = setting("CACHE_CLEARED", "whether the file-system caches were cleared before this run", False)


class Config(FrozenModel):
    """Complete configuration of one run."""

    # torch takes signed 64-bit seeds.
    seed: int | None = setting(
        "SEED", "seed of the initial weights and the data order; default: random", None, ge=0, lt=2**63
    )
    init_from: Path | None = setting(
        "INIT_FROM",
        "folder of weights to start from instead of the seed's, which also gives the model's dimensions: of `convert`, "
        "or of Hugging Face's GptOssForCausalLM",
        None,
    )
    submission: Submission = Submission()
    model: ModelConfig
    fixed: FixedHyperparameters = FixedHyperparameters()
    free: FreeHyperparameters = FreeHyperparameters()
    parallel: Parallel = Parallel()
    execution: Execution = Execution()
    data: Data = Data()
    logging: Logging = Logging()
    checkpoints: Checkpointing = Checkpointing()

    @property
    def accumulation_steps(self) -> int:
        """Micro batches per rank in one optimizer step."""
        return self.free.global_batch_size // (self.execution.micro_batch_size * self.parallel.data)

    @property
    def eval_interval_steps(self) -> int:
        """Optimizer steps between evaluations: CEIL(eval_interval_samples / global batch size), by the rules."""
        return math.ceil(self.fixed.eval_interval_samples / self.free.global_batch_size)

    @property
    def end_learning_rate(self) -> float:
        """Learning rate at the end of the cosine decay."""
        return self.fixed.end_learning_rate_ratio * self.free.learning_rate

    @property
    def decay_steps(self) -> int:
        """Steps of the cosine decay, without the warm-up: opt_learning_rate_decay_steps of the log."""
        return self.fixed.max_steps - self.free.warmup_steps

    def derived(self) -> dict[str, int | float]:
        """Return the derived values by name, for the printed and the saved configuration."""
        return {
            "world_size": self.parallel.world_size,
            "data_parallel": self.parallel.data,
            "accumulation_steps": self.accumulation_steps,
            "eval_interval_steps": self.eval_interval_steps,
            "eval_interval_samples": self.eval_interval_steps * self.free.global_batch_size,
            "end_learning_rate": self.end_learning_rate,
            "decay_steps": self.decay_steps,
        }
