"""Folders of weights as transformers writes them, with random bits, made with neither transformers nor our names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LAYERS, HIDDEN, HEADS, GROUPS, HEAD_DIM, EXPERTS, FFN, VOCABULARY = 3, 64, 6, 2, 8, 4, 32, 40

# The released model's config.json, in the spelling of transformers 4, without fields that this project does not read.
RELEASED: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "quantization_config": {"quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
# A small one, in the spelling of transformers 5.
SMALL: dict[str, Any] = {
    "model_type": "gpt_oss",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD_DIM,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "intermediate_size": FFN,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def random_bits(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return any bits at all: infinities, signed zeros, subnormal numbers and the many kinds of NaN too."""
    return torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8).view(dtype).squeeze(-1)


def hf_tensors(
    dtype: torch.dtype = torch.bfloat16, packed: bool = False, layers: int = LAYERS, ffn: int = FFN
) -> dict[str, Tensor]:
    """Return all tensors of the small model, norms in fp32, as transformers stores them."""
    query, group = HEADS * HEAD_DIM, GROUPS * HEAD_DIM
    tensors = {
        "model.embed_tokens.weight": random_bits((VOCABULARY, HIDDEN), dtype),
        "model.norm.weight": random_bits((HIDDEN,), torch.float32),
        "lm_head.weight": random_bits((VOCABULARY, HIDDEN), dtype),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (query, HIDDEN),
        "self_attn.q_proj.bias": (query,),
        "self_attn.k_proj.weight": (group, HIDDEN),
        "self_attn.k_proj.bias": (group,),
        "self_attn.v_proj.weight": (group, HIDDEN),
        "self_attn.v_proj.bias": (group,),
        "self_attn.o_proj.weight": (HIDDEN, query),
        "self_attn.o_proj.bias": (HIDDEN,),
        "self_attn.sinks": (HEADS,),
        "mlp.router.weight": (EXPERTS, HIDDEN),
        "mlp.router.bias": (EXPERTS,),
        "mlp.experts.gate_up_proj_bias": (EXPERTS, 2 * ffn),
        "mlp.experts.down_proj_bias": (EXPERTS, HIDDEN),
    }
    for layer in range(layers):
        weights = {name: random_bits(shape, dtype) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{name}.weight"] = random_bits((HIDDEN,), torch.float32)
        for name, outputs, inputs in (("gate_up_proj", 2 * ffn, HIDDEN), ("down_proj", HIDDEN, ffn)):
            if packed:
                weights[f"mlp.experts.{name}_blocks"] = random_bits((EXPERTS, outputs, inputs // 32, 16), torch.uint8)
                weights[f"mlp.experts.{name}_scales"] = random_bits((EXPERTS, outputs, inputs // 32), torch.uint8)
            else:
                weights[f"mlp.experts.{name}"] = random_bits((EXPERTS, inputs, outputs), dtype)
        tensors |= {f"model.layers.{layer}.{name}": x for name, x in weights.items()}
    return tensors


def write_folder(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] = SMALL, files: int = 1
) -> dict[str, Tensor]:
    """Write the folder and return the tensors. Several files take turns, so that each layer is in all of them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return tensors
    names = {name: f"model-{number % files:05d}.safetensors" for number, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: x for name, x in tensors.items() if names[name] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of all files."""
    return {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}


def equal_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return whether two sets of tensors have the same names, shapes, dtypes and bits."""
    return a.keys() == b.keys() and all(
        x.dtype == b[name].dtype and x.shape == b[name].shape and to_bytes(x) == to_bytes(b[name])
        for name, x in a.items()
    )


def to_bytes(x: Tensor) -> bytes:
    return x.contiguous().flatten().view(torch.uint8).numpy().tobytes()
