"""The configuration of one run: a frozen, typed tree.

Every leaf that a user may set carries the name of its environment variable; `resolve` derives the environment reader
and the command-line options from these names, so a new setting is added here and nowhere else. What can be computed
from other values is a property, never a field.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class FrozenModel(BaseModel):
    """A frozen branch of the tree that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def setting(env: str, description: str, default: Any = ..., **bounds: Any) -> Any:
    """Declare a leaf that a user sets through the environment variable ``env`` or the option of the same name."""
    return Field(default, description=description, json_schema_extra={"env": env}, **bounds)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class FixedHyperparameters(FrozenModel):
    """What the closed division fixes (MLPerf Training rules for gpt_oss_20b, rounds v6.0 and v6.1).

    The defaults are the rules' values. The open division may change them; the closed division refuses to.
    """

    sequence_length: int = setting("SEQUENCE_LENGTH", "tokens per sequence", 8192, ge=2)
    max_steps: int = setting("MAX_STEPS", "steps after which a run that has not converged is aborted", 1_200_000, ge=1)
    end_learning_rate_ratio: float = setting("END_LR_RATIO", "end learning rate / base learning rate", 0.1, ge=0, le=1)
    adam_beta1: float = setting("ADAM_BETA1", "AdamW beta 1", 0.9, ge=0, lt=1)
    adam_beta2: float = setting("ADAM_BETA2", "AdamW beta 2", 0.95, ge=0, lt=1)
    adam_epsilon: float = setting("ADAM_EPSILON", "AdamW epsilon", 1e-5, gt=0)
    weight_decay: float = setting("WEIGHT_DECAY", "AdamW decoupled weight decay", 0.1, ge=0)
    gradient_clip: float = setting("GRADIENT_CLIP", "largest global gradient norm", 1.0, gt=0)
    init_method_std: float = setting("INIT_METHOD_STD", "standard deviation of initial weights", 0.008, gt=0)
    eval_samples: int = setting("EVAL_SAMPLES", "validation sequences of every evaluation, in file order", 1024, ge=1)
    eval_interval_samples: int = setting(
        "EVAL_INTERVAL_SAMPLES", "training sequences between evaluations, rounded up to whole steps", 12_288, ge=1
    )
    target_loss: float = setting("TARGET_LOSS", "evaluation loss, in nats per token, that ends the run", 3.34, gt=0)
    aux_loss_coefficient: float = setting("AUX_LOSS_COEFF", "weight of the load-balancing loss; 0 is off", 0.0, ge=0)
    expert_bias_rate: float = setting(
        "EXPERT_BIAS_RATE",
        "step of the expert biases toward balance, which makes the router's scores sigmoids; 0 is off",
        0.0,
        ge=0,
    )


class FreeHyperparameters(FrozenModel):
    """The hyperparameters that the closed division leaves free."""

    global_batch_size: int = setting("GLOBAL_BATCH_SIZE", "sequences per optimizer step", 16, ge=1)
    learning_rate: float = setting("LEARNING_RATE", "base (highest) learning rate", 4e-4, gt=0)
    warmup_steps: int = setting("WARMUP_STEPS", "steps of linear learning-rate warm-up", 128, ge=0)


class Yarn(FrozenModel):
    """YaRN position scaling (Peng et al. 2023), as the released gpt-oss uses it."""

    factor: float = 32.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False


class ModelConfig(FrozenModel):
    """The architecture. `presets` holds the variants; only the vocabulary can be set from outside."""

    variant: str = setting("MODEL_VARIANT", "model preset: reference, openai, openai_120b or tiny", "reference")
    vocab_size: int = setting("VOCAB_SIZE", "rows of the embedding and of the LM head", ge=2)
    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_query_groups: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    num_experts: int = Field(ge=1)
    router_topk: int = Field(ge=1)
    moe_ffn_hidden_size: int = Field(ge=1)
    activation: Literal["swiglu", "clamped_swiglu"] = Field("swiglu", description="expert activation")
    biases: bool = Field(False, description="biases on attention projections, router and experts")
    qk_norm: bool = Field(True, description="RMSNorm on queries and keys over the head dimension, before RoPE")
    attention_sinks: bool = Field(False, description="one learned sink logit per head in the attention softmax")
    window_left: int = Field(128, ge=1, description="keys before the query's own that a windowed layer sees")
    router_softmax_before_topk: bool = Field(
        False, description="normalise over all experts before choosing (no renormalisation) instead of over the chosen"
    )
    rotary_base: int = 150_000
    yarn: Yarn | None = None
    norm_epsilon: float = Field(1e-5, gt=0)

    def has_sliding_window(self, layer_number: int) -> bool:
        """Whether the layer with this 1-based number has sliding-window attention: 1, 3, 5, ... do."""
        return layer_number % 2 == 1


class Parallel(FrozenModel):
    """How the processes share the model and the batch."""

    nodes: int = setting("DGXNNODES", "nodes of the run", 1, ge=1)
    gpus_per_node: int = setting("DGXNGPU", "processes (one per GPU) on each node", 8, ge=1)
    expert: int = setting("EXPERT_PARALLEL", "expert parallel size", 8, ge=1)
    tensor: int = setting("TENSOR_PARALLEL", "tensor parallel size", 1, ge=1)
    pipeline: int = setting("PIPELINE_PARALLEL", "pipeline parallel size", 1, ge=1)
    context: int = setting("CONTEXT_PARALLEL", "context parallel size", 1, ge=1)

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.nodes * self.gpus_per_node

    @property
    def data(self) -> int:
        """Data parallel size: model replicas that each see different sequences."""
        return self.world_size // (self.tensor * self.pipeline * self.context)

    @property
    def expert_data(self) -> int:
        """Processes that hold a copy of the same experts."""
        return self.world_size // (self.pipeline * self.expert)


class Execution(FrozenModel):
    """How fast, not what: none of these changes the mathematics of the run.

    But for the open division's load-balancing loss, which is one of each micro batch.
    """

    micro_batch_size: int = setting("MICRO_BATCH_SIZE", "sequences per forward pass on one rank", 2, ge=1)
    precision: Annotated[Literal["bf16", "fp32", "fp8", "mxfp8"], BeforeValidator(_lower)] = setting(
        "PRECISION",
        "arithmetic of the layers: bf16 or fp32; fp8 or mxfp8 of the layers' matrix products, the rest bf16. "
        "Master weights and gradients are fp32",
        "bf16",
    )
    backend: Annotated[Literal["auto", "torch", "transformer_engine"], BeforeValidator(_lower)] = setting(
        "BACKEND", "layer implementation; auto takes Transformer Engine where it is installed", "auto"
    )
    recompute: Annotated[Literal["none", "moe_act", "moe", "layers"], BeforeValidator(_lower)] = setting(
        "RECOMPUTE",
        "activations computed again instead of kept: none, moe_act (the experts' activation), moe (all of the experts) "
        "or layers (all but each layer's input)",
        "none",
    )
    compile_mode: Annotated[Literal["kernels", "layers"], BeforeValidator(_lower)] = setting(
        "COMPILE",
        "what torch.compile makes on GPUs: kernels (of this project's own arithmetic) or layers (each layer's norms "
        "and attention too)",
        "kernels",
    )
    warmup_passes: int = setting("WARMUP_PASSES", "synthetic steps before the clock starts", 2, ge=0)
    timeout_seconds: int = setting(
        "COLLECTIVE_TIMEOUT", "seconds after which a stuck collective ends the run", 45, ge=5
    )
    deterministic: bool = setting(
        "DETERMINISTIC", "give the same bits twice on the same machine, at a cost on GPUs (docs/endurance.md)", False
    )
    cpu_threads: int = setting("CPU_THREADS", "threads of one rank on a machine without a GPU", 1, ge=1)

    @property
    def bf16_weights(self) -> bool:
        """Whether weights and activations are bf16 beside fp32 master weights; 8-bit precisions round them further."""
        return self.precision != "fp32"


class Data(FrozenModel):
    """Where the tokens are."""

    directory: Path = setting("DATADIR", "folder with the two .bin/.idx pairs", Path("/data"))
    eod_token: int | None = setting("EOD_TOKEN", "end-of-document token id, masked from the loss", None, ge=0)


class Logging(FrozenModel):
    """What is written, and where."""

    directory: Path | None = setting("LOGDIR", "folder of the result; a new one under results/ if not given", None)
    interval: int = setting("LOG_INTERVAL", "steps between train_loss records and progress lines", 10, ge=1)


class Checkpointing(FrozenModel):
    """When and where checkpoints are written, and whether a run goes on from one. None are in a timed run."""

    interval: str = setting(
        "SAVE_INTERVAL",
        "training sequences between checkpoints, or minutes (30min); 0 writes none",
        "0",
        pattern=r"^(0|[1-9]\d{0,11}|[1-9]\d{0,5}min)$",
    )
    keep: int = setting("SAVE_KEEP", "newest checkpoints kept", 2, ge=1)
    directory: Path | None = setting("SAVE_DIR", "folder of checkpoints; checkpoints in LOGDIR if not given", None)
    asynchronous: bool = setting("SAVE_ASYNC", "write checkpoints while training goes on, from a copy in memory", True)
    resume: bool = setting("RESUME", "go on from the newest checkpoint, or begin where there is no log yet", False)

    @property
    def minutes(self) -> int | None:
        """Minutes between checkpoints, None if they are counted in samples."""
        return int(self.interval.removesuffix("min")) if self.interval.endswith("min") else None

    @property
    def samples(self) -> int:
        """Training sequences between checkpoints, 0 if there are none or time decides."""
        return int(self.interval) if self.minutes is None else 0


class Submission(FrozenModel):
    """What the log says about its submitter. MLPERF_ and MLLOG_ prefixes to SUBMISSION_* are accepted too."""

    system: str = setting("DGXSYSTEM", "name of the system, from the configuration file's name", "unnamed")
    org: str = setting("SUBMISSION_ORG", "submitting organisation", "reference", min_length=1)
    platform: str = setting(
        "SUBMISSION_PLATFORM", "platform; the system's name if not given", "", validate_default=True
    )
    division: Annotated[Literal["closed", "open"], BeforeValidator(_lower)] = setting(
        "SUBMISSION_DIVISION", "division whose rules apply", "closed"
    )
    status: Annotated[Literal["onprem", "cloud", "preview", "research"], BeforeValidator(_lower)] = setting(
        "SUBMISSION_STATUS", "availability of the system", "onprem"
    )
    config_filename: str = setting("CONFIG_FILENAME", "configuration file that was sourced", "", validate_default=True)
    git_commit: str | None = setting("GIT_COMMIT", "commit of the code, where there is no .git to ask", None)
    cache_cleared: bool = setting("CACHE_CLEARED", "whether the caches really were cleared before this run", False)


class Config(FrozenModel):
    """Everything that decides one run. Frozen; equal trees mean equal runs up to the seed's own randomness."""

    seed: int | None = setting(
        "SEED", "seed of weights and order; system randomness if not given", None, ge=0, lt=2**63
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
        """Micro batches per rank and optimizer step."""
        return self.free.global_batch_size // (self.execution.micro_batch_size * self.parallel.data)

    @property
    def eval_interval_steps(self) -> int:
        """Steps between evaluations: CEIL(eval_interval_samples / GBS), never the floor."""
        return math.ceil(self.fixed.eval_interval_samples / self.free.global_batch_size)

    @property
    def end_learning_rate(self) -> float:
        """Learning rate at the end of the cosine."""
        return self.fixed.end_learning_rate_ratio * self.free.learning_rate

    @property
    def decay_steps(self) -> int:
        """Steps of the cosine after the warm-up, as the log's opt_learning_rate_decay_steps counts them."""
        return self.fixed.max_steps - self.free.warmup_steps

    def derived(self) -> dict[str, int | float]:
        """The computed values, by name."""
        return {
            "world_size": self.parallel.world_size,
            "data_parallel": self.parallel.data,
            "accumulation_steps": self.accumulation_steps,
            "eval_interval_steps": self.eval_interval_steps,
            "eval_interval_samples": self.eval_interval_steps * self.free.global_batch_size,
            "end_learning_rate": self.end_learning_rate,
            "decay_steps": self.decay_steps,
        }
