"""Scenarios of `bench`: model shapes that fit on one GPU.

S1, S2 and S3 have the whole model's width. `tiny` tests `bench` itself, on a CPU too; its speed means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...config import Config, ModelConfig, resolve
from ...config.presets import PRESETS
from ...config.tree import Yarn

ScenarioName = Literal["S1", "S2", "S3", "tiny"]
Variant = Literal["reference", "openai"]

# So small that weights and routing stay constant: every timed step does the same work as the first. The cost of Adam
# does not depend on the rate.
_LEARNING_RATE = 1e-12
# Above a run's 0.008, so that scores, gates and routing weights differ, and missing windows, rotary embeddings or sinks
# show in the gradient norms. At 0.04 softmax is sharp enough for bf16 rounding to show as well.
_INIT_METHOD_STD = "0.02"
# The benchmark's vocabulary, for the openai variant too.
_VOCABULARY = {"vocab_size": PRESETS["reference"]["model"]["vocab_size"]}


@dataclass(frozen=True)
class Scenario:
    """The model and batch of one measurement.

    Attributes:
        sizes: fields of the model that differ from the variant's.
        has_optimizer: whether there is room for fp32 gradient buffers and the optimizer's state.
        settings: further settings by environment name.
    """

    sizes: dict[str, int]
    sequence_length: int = 8192
    micro_batch_size: int = 2
    has_optimizer: bool = True
    settings: dict[str, str] = field(default_factory=dict)


SCENARIOS: dict[ScenarioName, Scenario] = {
    # The compute of an EP-8 rank under balanced routing. No all-to-all, no imbalance.
    "S1": Scenario(_VOCABULARY | {"num_experts": 4}),
    # The whole model. 20.5 billion weights and gradients are 82 GB in bf16; fp32 gradients alone would be 82 GB more.
    "S2": Scenario(_VOCABULARY, micro_batch_size=1, has_optimizer=False),
    "S3": Scenario(_VOCABULARY | {"num_layers": 4}),
    # Sequences are longer than the window, which stays the variant's.
    "tiny": Scenario(
        {name: size for name, size in PRESETS["tiny"]["model"].items() if name != "window_left"},
        sequence_length=192,
        settings={"INIT_METHOD_STD": "0.04"},
    ),
}


def configure(
    name: ScenarioName,
    variant: Variant,
    backend: str,
    on_gpu: bool,
    micro_batch_size: int | None = None,
    sequences: int = 0,
) -> Config:
    """Return the configuration of a scenario. The environment's settings apply where the scenario sets none.

    `megatron_local`, which runs cannot choose, is configured like `torch`. On a CPU `tiny` computes in fp32. A step of
    0 sequences is one micro batch.

    Raises:
        ConfigError: micro batches that do not divide the sequences, or unsuitable settings of the environment.
    """
    scenario = SCENARIOS[name]
    micro_batch = micro_batch_size or scenario.micro_batch_size
    options = {
        "MODEL_VARIANT": variant,
        "SUBMISSION_DIVISION": "open",
        "SEQUENCE_LENGTH": str(scenario.sequence_length),
        "MICRO_BATCH_SIZE": str(micro_batch),
        "GLOBAL_BATCH_SIZE": str(sequences or micro_batch),
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
        # Shorter than the sequences, so that YaRN's scaling takes effect.
        model = model.model_copy(update={"yarn": Yarn(original_max_position_embeddings=64)})
    return config.model_copy(update={"model": model})
