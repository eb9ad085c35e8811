"""The configuration tree: defaults, derived values, presets, immutability."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from gptoss20b.config import Config, fixed_hyperparameter_overrides, resolve, settings
from gptoss20b.config.presets import PRESETS
from tests.support.config_cases import EVERY_TEXT, ONE_RANK, OPEN

pytestmark = pytest.mark.usefixtures("no_settings")


def test_the_defaults_are_the_reference_run() -> None:
    config = resolve()
    assert config.fixed.model_dump() == {
        "sequence_length": 8192,
        "max_steps": 1_200_000,
        "end_learning_rate_ratio": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-5,
        "weight_decay": 0.1,
        "gradient_clip": 1.0,
        "init_method_std": 0.008,
        "eval_samples": 1024,
        "eval_interval_samples": 12_288,
        "target_loss": 3.34,
        "aux_loss_coefficient": 0.0,
        "expert_bias_rate": 0.0,
    }
    assert config.free.model_dump() == {"global_batch_size": 16, "learning_rate": 4e-4, "warmup_steps": 128}
    sizes = {"expert": 8, "tensor": 1, "pipeline": 1, "context": 1}
    assert config.parallel.model_dump() == {"nodes": 1, "gpus_per_node": 8, **sizes}
    assert (config.execution.micro_batch_size, config.execution.precision) == (2, "bf16")
    assert (config.submission.division, config.model.variant) == ("closed", "reference")
    assert fixed_hyperparameter_overrides(config) == []


@given(gbs=st.integers(1, 20_000))
@example(gbs=16)
@example(gbs=50)
def test_the_evaluation_interval_is_the_shortest_of_whole_steps_that_reaches_12288_samples(gbs: int) -> None:
    config = resolve({"GLOBAL_BATCH_SIZE": str(gbs), **ONE_RANK})
    samples = config.derived()["eval_interval_samples"]
    assert samples == config.eval_interval_steps * gbs
    assert samples - gbs < 12_288 <= samples


@pytest.mark.parametrize(
    ("rate", "warmup", "end", "decay"),
    [
        ("4e-4", "128", 4e-5, 1_199_872),
        ("1e-3", "192", 1e-4, 1_199_808),
        ("5.2e-4", "32", 5.2e-5, 1_199_968),
        ("4e-4", "0", 4e-5, 1_200_000),
    ],
)
def test_end_rate_and_decay_steps(rate: str, warmup: str, end: float, decay: int) -> None:
    config = resolve({"LEARNING_RATE": rate, "WARMUP_STEPS": warmup})
    assert config.end_learning_rate == pytest.approx(end, rel=1e-12)
    assert config.decay_steps == decay


@pytest.mark.parametrize(
    ("options", "data", "accumulation"),
    [
        ({}, 8, 1),
        ({"GLOBAL_BATCH_SIZE": "64"}, 8, 4),
        ({"CONTEXT_PARALLEL": "2"}, 4, 2),
        ({"PIPELINE_PARALLEL": "4", "EXPERT_PARALLEL": "2"}, 2, 4),
        (ONE_RANK, 1, 16),
    ],
)
def test_data_parallel_size_and_accumulation(options: dict[str, str], data: int, accumulation: int) -> None:
    config = resolve(options)
    assert (config.parallel.data, config.accumulation_steps) == (data, accumulation)


def test_derived_values_cannot_be_set() -> None:
    # eval_interval_samples is both: the rules' 12,288, and its multiple of whole steps.
    settable = {setting.path[-1] for setting in settings().values()} | {name.lower() for name in settings()}
    assert set(resolve().derived()) & settable <= {"eval_interval_samples"}


@pytest.mark.parametrize(
    ("text", "samples", "minutes"), [("0", 0, None), ("12288", 12_288, None), ("1min", 0, 1), ("90min", 0, 90)]
)
def test_checkpoint_intervals_count_samples_or_minutes(text: str, samples: int, minutes: int | None) -> None:
    found = resolve({"SAVE_INTERVAL": text}).checkpoints
    assert (found.samples, found.minutes) == (samples, minutes)


def branches(node: Any) -> Iterator[Any]:
    yield node
    for name in type(node).model_fields:
        if isinstance(value := getattr(node, name), BaseModel):
            yield from branches(value)


def test_the_tree_is_frozen_and_takes_no_unknown_key() -> None:
    config = resolve({"MODEL_VARIANT": "openai", **OPEN})
    nodes = list(branches(config))
    assert len(nodes) == 11  # Config, its nine branches, YaRN
    for node in nodes:
        for name in type(node).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(node, name, getattr(node, name))
        with pytest.raises(ValidationError, match="Extra inputs"):
            type(node).model_validate({**node.model_dump(), "typo": 1})


def test_presets_are_plain_data_and_resolving_does_not_change_them() -> None:
    before = copy.deepcopy(PRESETS)
    assert json.loads(json.dumps(PRESETS)) == PRESETS
    for variant in PRESETS:
        resolve({"MODEL_VARIANT": variant, "SEED": "1", "GIT_COMMIT": "x", **OPEN})
    assert before == PRESETS


def test_the_models_have_the_published_sizes() -> None:
    common: dict[str, Any] = {
        "num_layers": 24,
        "hidden_size": 2880,
        "num_attention_heads": 64,
        "num_query_groups": 8,
        "head_dim": 64,
        "num_experts": 32,
        "router_topk": 4,
        "moe_ffn_hidden_size": 2880,
        "rotary_base": 150_000,
        "norm_epsilon": 1e-5,
        "router_softmax_before_topk": False,
    }
    reference = common | {
        "vocab_size": 128_256,
        "activation": "swiglu",
        "biases": False,
        "qk_norm": True,
        "attention_sinks": False,
        "window_left": 128,
        "yarn": None,
    }
    yarn = {"factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0}
    openai = common | {
        "vocab_size": 201_088,
        "activation": "clamped_swiglu",
        "biases": True,
        "qk_norm": False,
        "attention_sinks": True,
        "window_left": 127,
        "yarn": yarn | {"truncate": False},
    }
    large = openai | {"num_layers": 36, "num_experts": 128}
    for variant, expected in {"reference": reference, "openai": openai, "openai_120b": large}.items():
        model = resolve({"MODEL_VARIANT": variant, **OPEN}).model
        assert model.model_dump() == {"variant": variant, **expected}


def test_odd_layers_have_a_sliding_window() -> None:
    model = resolve().model
    assert [model.has_sliding_window(number) for number in (1, 2, 3, 23, 24)] == [True, False, True, True, False]


@pytest.mark.parametrize("options", [{}, EVERY_TEXT])
def test_a_configuration_survives_json(options: dict[str, str]) -> None:
    config = resolve(options)
    assert Config.model_validate(json.loads(config.model_dump_json())) == config
