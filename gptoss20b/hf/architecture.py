"""Translate between the `config.json` of GptOssForCausalLM and the `model` section of this project's configuration.

The Hugging Face side is defined by the released gpt-oss-20b's config.json and by transformers' GptOssConfig. Features
that GptOssConfig cannot express, or that this project does not train, become problems: one message each, with the name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..config.presets import PRESETS
from ..config.tree import ModelConfig
from .json_object import read_object

# GptOssConfig field -> ModelConfig field.
_FIELD_NAMES = {
    "vocab_size": "vocab_size",
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "head_dim",
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "router_topk",
    "intermediate_size": "moe_ffn_hidden_size",
    "rms_norm_eps": "norm_epsilon",
}
# GptOssConfig fields that this project's `openai` variant does not vary. Each value is that class's default.
_FIXED_HF_FIELDS: dict[str, Any] = {
    "hidden_act": "silu",
    "swiglu_alpha": 1.702,  # experts.SWIGLU_ALPHA; not imported, to keep Megatron out of conversion
    "swiglu_limit": 7.0,  # experts.SWIGLU_LIMIT
    "attention_bias": True,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}
# ModelConfig fields with the value that every GptOssForCausalLM has.
_GPT_OSS_FEATURES: dict[str, Any] = {
    "activation": "clamped_swiglu",
    "biases": True,
    "qk_norm": False,
    "attention_sinks": True,
    "router_softmax_before_topk": False,
}
# YaRN's parameters, which have the same names on both sides, with transformers' defaults; None: required.
_YARN_DEFAULTS: dict[str, Any] = {
    "factor": None,
    "original_max_position_embeddings": None,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
}
# ModelConfig field -> GptOssConfig's name, for messages about a GptOssConfig.
_HF_FIELD_NAMES = (
    {ours: theirs for theirs, ours in _FIELD_NAMES.items()}
    | {f"yarn.{name}": f"rope_parameters.{name}" for name in _YARN_DEFAULTS}
    | {"window_left": "sliding_window - 1", "rotary_base": "rope_theta"}
)


def read_model(folder: Path) -> tuple[ModelConfig | None, list[str]]:
    """Return the model of a folder of weights, of this project or of a GptOssForCausalLM, and what is wrong with it."""
    problems: list[str] = []
    hint = ". Name a folder that `convert` or transformers has written"
    config = read_object(folder / "config.json", problems, hint)
    if problems:
        return None, problems
    if is_hf_config(config):
        return from_hf_config(config, problems), problems
    return parse_model_section(config.get("model"), problems), problems


def is_hf_config(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is one of transformers."""
    return "model_type" in config


def from_hf_config(hf_config: Mapping[str, Any], problems: list[str]) -> ModelConfig | None:
    """Return the model section for a GptOssConfig, given as its config.json; None if a problem was appended."""
    before = len(problems)
    if hf_config.get("model_type") != "gpt_oss":
        problems.append(f"config.json: model_type: got {hf_config.get('model_type')!r}, expected 'gpt_oss'")
        return None
    problems += [
        f"config.json: {name}: got {hf_config[name]!r}, expected {value!r}, the only value this project trains"
        for name, value in _FIXED_HF_FIELDS.items()
        if name in hf_config and hf_config[name] != value
    ]
    fields = _GPT_OSS_FEATURES | {
        ours: _required_field(hf_config, theirs, problems) for theirs, ours in _FIELD_NAMES.items()
    }
    window = _required_field(hf_config, "sliding_window", problems)
    if isinstance(window, int):
        # transformers' window counts the query's own key; Megatron's left window does not.
        fields["window_left"] = window - 1
    elif window is not None:
        problems.append(f"config.json: sliding_window: got {window!r}, expected a whole number")
    fields |= _rope_fields(hf_config, problems)
    model = _validated_model(fields, problems, _HF_FIELD_NAMES) if len(problems) == before else None
    if model is not None and hf_config.get("layer_types", _layer_types(model)) != _layer_types(model):
        problems.append(
            f"config.json: layer_types: got {hf_config['layer_types']!r}, expected sliding_attention and "
            "full_attention alternating, sliding_attention first"
        )
    return model if len(problems) == before else None


def to_hf_config(model: ModelConfig, dtype: str, problems: list[str]) -> dict[str, Any]:
    """Return the config.json of a GptOssForCausalLM for a model section, as transformers 4.57 and 5 read it.

    ``dtype`` is "bfloat16" or "float32". Each feature that GptOssForCausalLM does not have becomes a problem.
    """
    problems += [
        f"config.json: model.{name}: got {getattr(model, name)!r}, expected {value!r} as in GptOssForCausalLM"
        for name, value in _GPT_OSS_FEATURES.items()
        if getattr(model, name) != value
    ]
    theta: dict[str, Any] = {"rope_theta": float(model.rotary_base)}
    yarn, length = None, {}
    if model.yarn:
        yarn = {"rope_type": "yarn"} | model.yarn.model_dump()
        length = {"max_position_embeddings": round(model.yarn.factor * model.yarn.original_max_position_embeddings)}
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "dtype": dtype,
        **_FIXED_HF_FIELDS,
        **{theirs: getattr(model, ours) for theirs, ours in _FIELD_NAMES.items()},
        "sliding_window": model.window_left + 1,
        "layer_types": _layer_types(model),
        "rope_parameters": theta | (yarn or {"rope_type": "default"}),
        # transformers 4.57 reads these two. Without them it takes the released model's, without a word.
        **theta,
        "rope_scaling": yarn,
        **length,
    }


def parse_model_section(section: Any, problems: list[str]) -> ModelConfig | None:
    """Validate a model section of this project. Append problems and return None if there are any."""
    if not isinstance(section, dict):
        problems.append("config.json: model: missing; expected the model section of gptoss20b's configuration")
        return None
    return _validated_model(section, problems, {})


def _validated_model(
    fields: Mapping[str, Any], problems: list[str], file_names: Mapping[str, str]
) -> ModelConfig | None:
    """Return the model of these fields. ``file_names`` maps them to their names in the file, for messages."""
    try:
        model = ModelConfig.model_validate(fields)
    except ValidationError as error:
        for detail in error.errors():
            name = ".".join(map(str, detail["loc"]))
            if not name:  # dimensions that do not fit together
                text = re.sub(r"\w+", lambda word: file_names.get(word[0], word[0]), str(detail["ctx"]["error"]))
                problems.append(f"config.json: {text}")
                continue
            shown = file_names.get(name, f"model.{name}")
            problems.append(f"config.json: {shown}: got {detail['input']!r}: {detail['msg']}")
        return None
    variant = model.variant if "variant" in fields else _matching_preset(model)
    return model.model_copy(update={"variant": variant})


def _matching_preset(model: ModelConfig) -> str:
    """Return the name of the preset that equals the model, else `openai`, its nearest."""
    for name, preset in PRESETS.items():
        if ModelConfig(variant=name, **preset["model"]) == model.model_copy(update={"variant": name}):
            return name
    return "openai"


def _layer_types(model: ModelConfig) -> list[str]:
    numbers = range(1, model.num_layers + 1)
    return ["sliding_attention" if model.has_sliding_window(number) else "full_attention" for number in numbers]


def _required_field(hf_config: Mapping[str, Any], name: str, problems: list[str]) -> Any:
    if hf_config.get(name) is None:
        problems.append(f"config.json: {name}: missing")
    return hf_config.get(name)


def _rope_fields(hf_config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return rotary_base and yarn, from rope_parameters (transformers 5) or rope_scaling (the released file)."""
    key = next((name for name in ("rope_parameters", "rope_scaling") if hf_config.get(name)), None)
    if key is None:
        problems.append("config.json: rope_parameters: missing (rope_scaling in files of transformers 4)")
        return {}
    if not isinstance(hf_config[key], dict):
        problems.append(f"config.json: {key}: got {hf_config[key]!r}, expected an object")
        return {}
    rope = dict(hf_config[key])
    base = _required_field({"rope_theta": rope.pop("rope_theta", hf_config.get("rope_theta"))}, "rope_theta", problems)
    rope_type = rope.pop("rope_type", None)
    if rope_type not in ("default", "yarn"):
        problems.append(f"config.json: {key}.rope_type: got {rope_type!r}, expected 'default' or 'yarn'")
        return {}
    yarn = None
    if rope_type == "yarn":
        yarn = {name: rope.pop(name, default) for name, default in _YARN_DEFAULTS.items()}
        problems += [f"config.json: {key}.{name}: missing" for name, value in yarn.items() if value is None]
        if _is_paper_attention_factor(rope.get("attention_factor"), yarn["factor"]):
            del rope["attention_factor"]
    problems += [
        f"config.json: {key}.{name}: got {value!r}, expected nothing: this project's {rope_type} has no such parameter"
        for name, value in rope.items()
        if value is not None and (name, value) != ("partial_rotary_factor", 1.0)
    ]
    return {"rotary_base": base, "yarn": yarn}


def _is_paper_attention_factor(attention_factor: Any, factor: Any) -> bool:
    """Return whether an attention factor is 0.1 ln(factor) + 1 (Peng et al. 2023), which Megatron-Core uses."""
    numbers = isinstance(attention_factor, int | float) and isinstance(factor, int | float) and factor > 1
    return numbers and math.isclose(attention_factor, 0.1 * math.log(factor) + 1, rel_tol=1e-6)
