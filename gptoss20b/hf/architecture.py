"""The architecture in `config.json`: GptOssForCausalLM's spelling of it, ours, and the way from one to the other.

Ours is the `model` section of `gptoss20b.config`. Facts of the other side: the released gpt-oss-20b's config.json and
transformers' GptOssConfig. What that class cannot express, or this project does not do, is a problem with a name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..config.presets import PRESETS
from ..config.tree import ModelConfig

# GptOssConfig's names of our fields.
_NAMES = {
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
# What GptOssConfig can vary and this project's `openai` variant does not; each is that class's default.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "swiglu_alpha": 1.702,  # experts.SIGMOID_SLOPE
    "swiglu_limit": 7.0,  # experts.CLAMP
    "attention_bias": True,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}
# What makes a model a GptOssForCausalLM.
_FEATURES: dict[str, Any] = {
    "activation": "clamped_swiglu",
    "biases": True,
    "qk_norm": False,
    "attention_sinks": True,
    "router_softmax_before_topk": False,
}
# GptOssConfig's names of YaRN's parameters, and what it takes where one is missing; None: it must be there.
_YARN: dict[str, tuple[str, Any]] = {
    "factor": ("factor", None),
    "original_max_position_embeddings": ("original_max_position_embeddings", None),
    "beta_fast": ("beta_fast", 32.0),
    "beta_slow": ("beta_slow", 1.0),
    "truncate": ("truncate", True),
}
# GptOssConfig's names of all our fields that it decides, for messages.
_SPELLED = (
    {ours: theirs for theirs, ours in _NAMES.items()}
    | {f"yarn.{ours}": f"rope_parameters.{theirs}" for theirs, (ours, _) in _YARN.items()}
    | {"window_left": "sliding_window - 1", "rotary_base": "rope_theta"}
)


def model_from(settings: Mapping[str, Any], found: list[str]) -> ModelConfig | None:
    """Our model section for a GptOssConfig, as its config.json has it; problems are added to ``found``.

    Returns:
        The model; None if ``found`` got a problem.
    """
    before = len(found)
    if settings.get("model_type") != "gpt_oss":
        found.append(f"config.json: model_type: got {settings.get('model_type')!r}, expected 'gpt_oss'")
        return None
    found += [
        f"config.json: {name}: got {settings[name]!r}, expected {value!r}, which is all that this project trains"
        for name, value in _FIXED.items()
        if name in settings and settings[name] != value
    ]
    fields = _FEATURES | {ours: _required(settings, theirs, found) for theirs, ours in _NAMES.items()}
    window = _required(settings, "sliding_window", found)
    if isinstance(window, int):
        fields["window_left"] = window - 1  # Megatron's window does not count the query's own key
    elif window is not None:
        found.append(f"config.json: sliding_window: got {window!r}, expected a whole number")
    fields |= _rope_from(settings, found)
    model = _validated(fields, found, _SPELLED) if len(found) == before else None
    if model is not None and settings.get("layer_types", _layer_types(model)) != _layer_types(model):
        found.append(
            f"config.json: layer_types: got {settings['layer_types']!r}, expected sliding_attention and "
            "full_attention in turns, sliding_attention first"
        )
    return model if len(found) == before else None


def settings_of(model: ModelConfig, dtype: str, found: list[str]) -> dict[str, Any]:
    """The config.json of a GptOssForCausalLM (as transformers 5 writes and reads it) for our model section.

    Args:
        model: our model section.
        dtype: "bfloat16" or "float32".
        found: gets a problem for each feature that GptOssForCausalLM does not have.
    """
    found += [
        f"config.json: model.{name}: got {getattr(model, name)!r}, expected {value!r} as GptOssForCausalLM has it"
        for name, value in _FEATURES.items()
        if getattr(model, name) != value
    ]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(model.rotary_base)}
    length = {}
    if model.yarn:
        rope |= {"rope_type": "yarn"} | {theirs: getattr(model.yarn, ours) for theirs, (ours, _) in _YARN.items()}
        length = {"max_position_embeddings": round(model.yarn.factor * model.yarn.original_max_position_embeddings)}
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "dtype": dtype,
        **_FIXED,
        **{theirs: getattr(model, ours) for theirs, ours in _NAMES.items()},
        "sliding_window": model.window_left + 1,
        "layer_types": _layer_types(model),
        "rope_parameters": rope,
        **length,
    }


def model_in(section: Any, found: list[str]) -> ModelConfig | None:
    """Our own model section, checked; problems are added to ``found`` and make it None."""
    if not isinstance(section, dict):
        found.append("config.json: model: missing; expected the model section of gptoss20b's configuration")
        return None
    return _validated(section, found, {})


def _validated(fields: Mapping[str, Any], found: list[str], spelled: Mapping[str, str]) -> ModelConfig | None:
    """The model of these fields; ``spelled`` gives the names of fields in the file where they are not ours."""
    try:
        model = ModelConfig.model_validate(fields)
    except ValidationError as error:
        for detail in error.errors():
            name = ".".join(map(str, detail["loc"]))
            found.append(f"config.json: {spelled.get(name, f'model.{name}')}: got {detail['input']!r}: {detail['msg']}")
        return None
    if model.num_attention_heads % model.num_query_groups:
        heads, groups = (spelled.get(name, f"model.{name}") for name in ("num_attention_heads", "num_query_groups"))
        found.append(
            f"config.json: {heads}: got {model.num_attention_heads}, expected a multiple of {groups} {model.num_query_groups}"
        )
        return None
    named = model.variant if "variant" in fields else _variant(model)
    return model.model_copy(update={"variant": named})


def _variant(model: ModelConfig) -> str:
    """The preset that this is; `openai`, from which it then differs, if it is none."""
    for name, preset in PRESETS.items():
        if ModelConfig(variant=name, **preset["model"]) == model.model_copy(update={"variant": name}):
            return name
    return "openai"


def _layer_types(model: ModelConfig) -> list[str]:
    numbers = range(1, model.num_layers + 1)
    return ["sliding_attention" if model.has_sliding_window(number) else "full_attention" for number in numbers]


def _required(settings: Mapping[str, Any], name: str, found: list[str]) -> Any:
    if settings.get(name) is None:
        found.append(f"config.json: {name}: missing")
    return settings.get(name)


def _rope_from(settings: Mapping[str, Any], found: list[str]) -> dict[str, Any]:
    """Our rope_base and yarn; transformers 5 calls its parameters rope_parameters, the released file rope_scaling."""
    key = next((name for name in ("rope_parameters", "rope_scaling") if settings.get(name)), None)
    if key is None:
        found.append("config.json: rope_parameters: missing (rope_scaling in files of transformers 4)")
        return {}
    if not isinstance(settings[key], dict):
        found.append(f"config.json: {key}: got {settings[key]!r}, expected an object")
        return {}
    rope = dict(settings[key])
    base = _required({"rope_theta": rope.pop("rope_theta", settings.get("rope_theta"))}, "rope_theta", found)
    kind = rope.pop("rope_type", None)
    if kind not in ("default", "yarn"):
        found.append(f"config.json: {key}.rope_type: got {kind!r}, expected 'default' or 'yarn'")
        return {}
    yarn = None
    if kind == "yarn":
        given = {theirs: rope.pop(theirs, default) for theirs, (_, default) in _YARN.items()}
        found += [f"config.json: {key}.{name}: missing" for name, value in given.items() if value is None]
        yarn = {_YARN[theirs][0]: value for theirs, value in given.items()}
        if _is_the_papers(rope.get("attention_factor"), given["factor"]):
            del rope["attention_factor"]
    found += [
        f"config.json: {key}.{name}: got {value!r}, expected nothing: this project's {kind} has no such parameter"
        for name, value in rope.items()
        if value is not None and (name, value) != ("partial_rotary_factor", 1.0)
    ]
    return {"rotary_base": base, "yarn": yarn}


def _is_the_papers(attention_factor: Any, factor: Any) -> bool:
    """Whether a given attention factor is 0.1 ln(factor) + 1 (Peng et al. 2023), which Megatron-Core uses."""
    numbers = isinstance(attention_factor, int | float) and isinstance(factor, int | float) and factor > 1
    return numbers and math.isclose(attention_factor, 0.1 * math.log(factor) + 1, rel_tol=1e-6)
