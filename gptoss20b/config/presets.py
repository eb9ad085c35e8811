"""Model variants as plain data, each with the other settings that it needs.

`reference` is the closed division's model. `openai` is the released gpt-oss-20b, `openai_120b` its larger sibling.
`tiny` has the architecture of `reference` at a size that two CPU cores train to its target in about a minute, and
`openai_tiny` that of `openai`.
Sources: the public reference configuration, and the config.json of the released models. Where they differ, one field of
`tree.ModelConfig` names the choice.
"""

from __future__ import annotations

from typing import Any

_REFERENCE: dict[str, Any] = {
    "vocab_size": 128_256,  # Llama 3 tokenizer
    "num_layers": 24,
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_query_groups": 8,
    "head_dim": 64,
    "num_experts": 32,
    "router_topk": 4,
    "moe_ffn_hidden_size": 2880,
    "window_left": 128,  # Megatron's window_size (128, 0): 128 earlier keys and the query's own
}

_OPENAI: dict[str, Any] = {
    **_REFERENCE,
    "vocab_size": 201_088,  # o200k_harmony; 128,256 when trained on the benchmark's data
    "activation": "clamped_swiglu",
    "biases": True,
    "qk_norm": False,
    "attention_sinks": True,
    "window_left": 127,  # Hugging Face's sliding_window 128 includes the query's own key
    "yarn": {},
}

_TINY: dict[str, Any] = {
    **_REFERENCE,
    "vocab_size": 256,  # bytes
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "head_dim": 16,
    "num_experts": 8,
    "moe_ffn_hidden_size": 64,
}

# For CPUs: every feature of the released model at the size of `tiny`.
_OPENAI_TINY: dict[str, Any] = {
    **_TINY,
    **{name: _OPENAI[name] for name in ("activation", "biases", "qk_norm", "attention_sinks", "window_left", "yarn")},
}

_TINY_RUN: dict[str, Any] = {
    "fixed": {
        "max_steps": 400,
        "init_method_std": 0.04,
        "eval_samples": 16,
        "eval_interval_samples": 30,
        "target_loss": 3.05,
    },
    "free": {"global_batch_size": 4, "learning_rate": 6e-3, "warmup_steps": 8},
    "parallel": {"gpus_per_node": 2, "expert": 2},
    "execution": {"micro_batch_size": 1, "precision": "fp32", "backend": "torch"},
    "logging": {"interval": 1},
}

# Each preset is a partial `Config` tree. Environment and command line override it.
PRESETS: dict[str, dict[str, Any]] = {
    "reference": {"model": _REFERENCE},
    "openai": {"model": _OPENAI},
    "openai_120b": {"model": {**_OPENAI, "num_layers": 36, "num_experts": 128}},
    "tiny": {"model": _TINY, **_TINY_RUN},
    "openai_tiny": {"model": _OPENAI_TINY, **_TINY_RUN},
}
