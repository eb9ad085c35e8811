"""What is timed: shapes of one GPU's work that fit on one GPU.

S1, S2 and S3 are the whole model's width; `tiny` is a CPU's test of the machinery and says nothing about speed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...config import Config, ModelConfig, resolve
from ...config.presets import PRESETS
from ...config.tree import Yarn

Name = Literal["S1", "S2", "S3", "tiny"]
Variant = Literal["reference", "openai"]

# The weights stay what they were, and the routing with them: every timed step does the work of the first. Adam's
# arithmetic does not depend on the rate.
_LEARNING_RATE = 1e-12
# More than a run's 0.008, so that scores, gates and routing weights are far from all equal and a baseline without
# windows, rotation or sinks shows (`norms`). At 0.04 softmax is so sharp that rounding to bf16 shows as well.
_INIT_METHOD_STD = "0.02"
_SIZES = (
    "vocab_size",
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "head_dim",
    "num_experts",
    "router_topk",
    "moe_ffn_hidden_size",
)
# The benchmark's vocabulary, for the released architecture too.
_WIDTH = {"vocab_size": PRESETS["reference"]["model"]["vocab_size"]}


@dataclass(frozen=True)
class Scenario:
    """One shape of work.

    Attributes:
        purpose: what it stands for, and what it leaves out.
        sizes: of the model, where they are not the variant's.
        sequence_length: tokens per sequence.
        micro_batch_size: sequences per forward pass unless told otherwise.
        has_optimizer: whether gradient buffers in fp32 and the optimizer's state fit, and are there.
        settings: further settings by environment name.
    """

    purpose: str
    sizes: dict[str, int]
    sequence_length: int = 8192
    micro_batch_size: int = 2
    has_optimizer: bool = True
    settings: dict[str, str] = field(default_factory=dict)


SCENARIOS: dict[Name, Scenario] = {
    "S1": Scenario(
        "what a rank of expert parallel 8 computes when routing is balanced: 24 layers, 4 experts, top-4; no "
        "all-to-all and no imbalance",
        _WIDTH | {"num_experts": 4},
    ),
    "S2": Scenario(
        "the whole model, forward and backward only: no gradient buffers in fp32 and no optimizer, gradients in the "
        "weights' type (20.5 billion weights and gradients are 82 GB in bf16; fp32 gradients alone would be as much)",
        _WIDTH,
        micro_batch_size=1,
        has_optimizer=False,
    ),
    "S3": Scenario("4 of the 24 layers with all 32 experts, optimizer included", _WIDTH | {"num_layers": 4}),
    "tiny": Scenario(
        "a test of this command",
        {name: PRESETS["tiny"]["model"][name] for name in _SIZES},
        sequence_length=192,  # longer than the window
        settings={"INIT_METHOD_STD": "0.04"},
    ),
}


def configure(
    name: Name, variant: Variant, backend: str, on_gpu: bool, micro_batch_size: int | None = None, sequences: int = 0
) -> Config:
    """The configuration of a scenario. Settings that the environment gives hold where the scenario does not decide.

    Args:
        name, variant: the scenario, and the architecture whose sizes it changes.
        backend: layer back end; `megatron_local`, which runs cannot choose, is configured as `torch` is.
        on_gpu: whether it will run on one. Without one, `tiny` computes in fp32.
        micro_batch_size: sequences per forward pass, the scenario's if None.
        sequences: sequences per step, one micro batch if 0.

    Raises:
        ConfigError: micro batches do not make up the sequences, or the environment's settings do not fit.
    """
    scenario = SCENARIOS[name]
    micro = micro_batch_size or scenario.micro_batch_size
    options = {
        "MODEL_VARIANT": variant,
        "SUBMISSION_DIVISION": "open",
        "SEQUENCE_LENGTH": str(scenario.sequence_length),
        "MICRO_BATCH_SIZE": str(micro),
        "GLOBAL_BATCH_SIZE": str(sequences or micro),
        "LEARNING_RATE": str(_LEARNING_RATE),
        "INIT_METHOD_STD": _INIT_METHOD_STD,
        "BACKEND": "transformer_engine" if backend == "transformer_engine" else "torch",
        **dict.fromkeys(("DGXNNODES", "DGXNGPU", "EXPERT_PARALLEL", "TENSOR_PARALLEL"), "1"),
        **dict.fromkeys(("PIPELINE_PARALLEL", "CONTEXT_PARALLEL"), "1"),
        **scenario.settings,
    }
    if name == "tiny" and not on_gpu:
        options["PRECISION"] = "fp32"
    config = resolve(options)
    model = ModelConfig(**{**PRESETS[variant]["model"], **scenario.sizes, "variant": variant})
    if name == "tiny" and model.yarn:
        # Shorter than the sequences, so that the scaling shows.
        model = model.model_copy(update={"yarn": Yarn(original_max_position_embeddings=64)})
    return config.model_copy(update={"model": model})
