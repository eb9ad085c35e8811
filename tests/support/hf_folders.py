"""Folders of weights as transformers leaves them, with random bits, written with neither transformers nor our names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LAYERS, HIDDEN, HEADS, GROUPS, HEAD_DIM, EXPERTS, FFN, VOCABULARY = 3, 64, 6, 2, 8, 4, 32, 40

# The released model's config.json, in the spelling of transformers 4, without what this project does not read.
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
    """Any bits at all: infinities, signed zeros, subnormal numbers and the many kinds of not-a-number too."""
    return torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8).view(dtype).squeeze(-1)


def their_tensors(
    dtype: torch.dtype = torch.bfloat16, packed: bool = False, layers: int = LAYERS, ffn: int = FFN
) -> dict[str, Tensor]:
    """All tensors of the small model, norms in fp32, as transformers keeps them."""
    query, group = HEADS * HEAD_DIM, GROUPS * HEAD_DIM
    tensors = {
        "model.embed_tokens.weight": random_bits((VOCABULARY, HIDDEN), dtype),
        "model.norm.weight": random_bits((HIDDEN,), torch.float32),
        "lm_head.weight": random_bits((VOCABULARY, HIDDEN), dtype),
    }
    for layer in range(layers):
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
        if not packed:
            shapes["mlp.experts.gate_up_proj"] = (EXPERTS, HIDDEN, 2 * ffn)
            shapes["mlp.experts.down_proj"] = (EXPERTS, ffn, HIDDEN)
        here = {name: random_bits(shape, dtype) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            here[f"{name}.weight"] = random_bits((HIDDEN,), torch.float32)
        if packed:
            for name, outputs, inputs in (("gate_up_proj", 2 * ffn, HIDDEN), ("down_proj", HIDDEN, ffn)):
                here[f"mlp.experts.{name}_blocks"] = random_bits((EXPERTS, outputs, inputs // 32, 16), torch.uint8)
                here[f"mlp.experts.{name}_scales"] = random_bits((EXPERTS, outputs, inputs // 32), torch.uint8)
        tensors |= {f"model.layers.{layer}.{name}": x for name, x in here.items()}
    return tensors


def write(
    folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any] | None = None, files: int = 1
) -> dict[str, Tensor]:
    """Make the folder; with several files, tensors go round them, so that a layer is in all. Returns the tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL if settings is None else settings))
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return tensors
    names = {name: f"model-{number % files:05d}.safetensors" for number, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: x for name, x in tensors.items() if names[name] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors of all files."""
    return {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names, shapes, types and bits."""
    return a.keys() == b.keys() and all(
        x.dtype == b[name].dtype and x.shape == b[name].shape and bits(x) == bits(b[name]) for name, x in a.items()
    )


def bits(x: Tensor) -> bytes:
    return x.contiguous().flatten().view(torch.uint8).numpy().tobytes()
