"""config.json of GptOssForCausalLM and our model section: each from the other, and the rejected ones."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss20b.config import ModelConfig
from gptoss20b.config.presets import PRESETS
from gptoss20b.config.tree import Yarn
from gptoss20b.hf.architecture import _FIXED_HF_FIELDS, from_hf_config, parse_model_section, to_hf_config
from gptoss20b.hf.weight_mapping import weight_shards
from tests.support.hf_folders import RELEASED, SMALL


def preset(name: str) -> ModelConfig:
    return ModelConfig(variant=name, **PRESETS[name]["model"])


def parse(hf_config: dict[str, Any]) -> ModelConfig:
    problems: list[str] = []
    model = from_hf_config(hf_config, problems)
    assert model is not None, problems
    assert problems == []
    return model


def parse_problems(hf_config: dict[str, Any]) -> list[str]:
    problems: list[str] = []
    assert from_hf_config(hf_config, problems) is None
    return problems


def test_the_released_models_are_our_presets() -> None:
    assert parse(RELEASED) == preset("openai")
    larger = RELEASED | {
        "num_hidden_layers": 36,
        "num_local_experts": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
    }
    assert parse(larger) == preset("openai_120b")


def test_the_fixed_activation_is_the_experts_own() -> None:
    from gptoss20b.model.experts import SWIGLU_ALPHA, SWIGLU_LIMIT

    assert (_FIXED_HF_FIELDS["swiglu_alpha"], _FIXED_HF_FIELDS["swiglu_limit"]) == (SWIGLU_ALPHA, SWIGLU_LIMIT)


@pytest.mark.parametrize(("name", "total"), [("openai", 20_914_757_184), ("openai_120b", 116_829_156_672)])
def test_the_weights_add_up_to_the_released_models(name: str, total: int) -> None:
    weights = [weight for shard in weight_shards(preset(name)) for weight in shard]
    assert sum(math.prod(weight.shape) for weight in weights) == total
    assert sum(math.prod(shape) for weight in weights for shape in weight.hf_shapes.values()) == total


def test_the_spelling_of_transformers_5_and_of_no_scaling() -> None:
    small = parse(SMALL)
    assert (small.rotary_base, small.yarn, small.variant) == (10_000, None, "openai")
    assert small.window_left == 8  # Megatron's window does not count the query's own key
    moved = {name: value for name, value in RELEASED.items() if not name.startswith("rope_")}
    moved["rope_parameters"] = RELEASED["rope_scaling"] | {"rope_theta": 150000.0}
    assert parse(moved) == preset("openai")


def test_missing_yarn_parameters_are_transformers_defaults() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    assert parse(SMALL | {"rope_parameters": rope}).yarn == Yarn(
        factor=4.0, original_max_position_embeddings=64, beta_fast=32.0, beta_slow=1.0, truncate=True
    )


def test_an_attention_factor_may_equal_the_papers() -> None:
    rope = RELEASED["rope_scaling"]
    assert parse(RELEASED | {"rope_scaling": rope | {"attention_factor": 1.3465735902799727}}).yarn
    (problem,) = parse_problems(RELEASED | {"rope_scaling": rope | {"attention_factor": 1.0}})
    assert "rope_scaling.attention_factor: got 1.0" in problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model_type": "llama"}, "model_type: got 'llama', expected 'gpt_oss'"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', expected 'silu'"),
        ({"swiglu_alpha": 1.0}, "swiglu_alpha: got 1.0, expected 1.702"),
        ({"swiglu_limit": 5.0}, "swiglu_limit: got 5.0, expected 7.0"),
        ({"attention_bias": False}, "attention_bias: got False, expected True"),
        ({"attention_dropout": 0.1}, "attention_dropout: got 0.1, expected 0.0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: got True, expected False"),
        ({"num_local_experts": None}, "num_local_experts: missing"),
        ({"sliding_window": None}, "sliding_window: missing"),
        ({"sliding_window": "all"}, "sliding_window: got 'all', expected a whole number"),
        ({"sliding_window": 1}, "sliding_window - 1: got 0"),
        ({"hidden_size": "wide"}, "hidden_size: got 'wide'"),
        ({"num_attention_heads": 7}, "num_attention_heads is 7, expected a multiple of num_key_value_heads, 2"),
        ({"num_experts_per_tok": 1}, "num_experts_per_tok is 1 of 4 experts, expected 2 to 4"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5 of 4 experts, expected 2 to 4"),
        ({"head_dim": 7}, "head_dim is 7, expected an even number"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types: got ['full_attention'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: got 0"),
        ({"rope_parameters": None}, "rope_parameters: missing"),
        ({"rope_parameters": [1]}, "rope_parameters: got [1], expected an object"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_theta: missing"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1.5}}, "rope_theta: got 1.5"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_type: got 'linear'"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rope_parameters.original_max_position_embeddings: missing",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor: got 0.5",
        ),
    ],
)
def test_rejected(change: dict[str, Any], problem: str) -> None:
    problems = parse_problems(SMALL | change)
    assert len(problems) == 1, problems
    assert problems[0].startswith("config.json: ")
    assert problem in problems[0]


def test_all_problems_are_named_at_once() -> None:
    problems = parse_problems(
        SMALL | {"swiglu_limit": 5.0, "hidden_act": "gelu", "head_dim": None, "rope_parameters": None}
    )
    assert [text.split(": ")[1] for text in problems] == ["hidden_act", "swiglu_limit", "head_dim", "rope_parameters"]


models = st.builds(
    ModelConfig,
    variant=st.just("openai"),
    vocab_size=st.integers(2, 300_000),
    num_layers=st.integers(1, 7),
    hidden_size=st.integers(1, 4096),
    num_attention_heads=st.sampled_from([4, 8, 12]),
    num_query_groups=st.sampled_from([1, 2, 4]),
    head_dim=st.integers(1, 64).map(lambda half: 2 * half),
    num_experts=st.integers(8, 128),
    router_topk=st.integers(2, 8),
    moe_ffn_hidden_size=st.integers(1, 4096),
    activation=st.just("clamped_swiglu"),
    biases=st.just(True),
    qk_norm=st.just(False),
    attention_sinks=st.just(True),
    window_left=st.integers(1, 4096),
    rotary_base=st.integers(1, 10**7),
    yarn=st.none()
    | st.builds(
        Yarn,
        factor=st.floats(1.0, 64.0),
        original_max_position_embeddings=st.integers(1, 10**5),
        beta_fast=st.floats(2.0, 64.0),
        beta_slow=st.floats(0.5, 2.0),
        truncate=st.booleans(),
    ),
    norm_epsilon=st.floats(1e-8, 1e-2),
)


@given(models)
def test_there_and_back_is_the_same_model(model: ModelConfig) -> None:
    problems: list[str] = []
    hf_config = json.loads(json.dumps(to_hf_config(model, "bfloat16", problems)))
    assert parse(hf_config) == model
    # transformers 4.57 reads these instead, and takes the released model's RoPE where they are missing.
    older = hf_config | {"rope_parameters": hf_config["rope_scaling"] or {"rope_type": "default"}}
    assert "rope_theta" not in older["rope_parameters"] and parse(older) == model
    assert parse_model_section(json.loads(model.model_dump_json()), problems) == model
    assert problems == []


def test_a_model_without_gpt_oss_features_has_a_problem_for_each() -> None:
    problems: list[str] = []
    to_hf_config(preset("reference"), "float32", problems)
    fields = [text.split(": ")[1] for text in problems]
    assert fields == ["model.activation", "model.biases", "model.qk_norm", "model.attention_sinks"]
