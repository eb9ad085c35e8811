"""Norms of a step's gradients by kind of tensor, for comparison between baselines.

At initial weights the loss and the whole gradient norm hardly depend on queries and keys, and so neither on windows,
sinks or rotary embeddings. The norms of their own gradients do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor
from torch.nn import Parameter

from ...config import Config
from ...hf.weight_mapping import weight_shards
from ...model.initialize import local_parameters

# Suffix of each kind's parameter names in transformers' GptOssForCausalLM, which splits queries, keys and values.
KINDS = {
    "embedding": ".embed_tokens.weight",
    "query": ".q_proj.weight",
    "key": ".k_proj.weight",
    "value": ".v_proj.weight",
    "sinks": ".self_attn.sinks",
    "attention output": ".o_proj.weight",
    "router": ".router.weight",
    "expert up": ".experts.gate_up_proj",
    "expert down": ".experts.down_proj",
    "head": "lm_head.weight",
}


def norms_by_kind(gradients: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """Return the norm over all layers of each of KINDS among the gradients, which have transformers' names."""
    norms: dict[str, list[Tensor]] = {}
    for name, gradient in gradients:
        for kind, suffix in KINDS.items():
            if name.endswith(suffix):
                norms.setdefault(kind, []).append(torch.linalg.vector_norm(gradient, dtype=torch.float32))
    return {kind: float(torch.linalg.vector_norm(torch.stack(each))) for kind, each in norms.items()}


def to_hf_names(
    gpt: GPTModel, config: Config, gradient_of: Callable[[Parameter], Tensor | None]
) -> Iterator[tuple[str, Tensor]]:
    """Yield a Megatron-Core model's gradients under transformers' names.

    Memory layouts stay Megatron-Core's where one tensor maps to one: norms do not depend on them.
    """
    mappings = {weight.name: weight for shard in weight_shards(config.model) for weight in shard}
    for name, _, parameter in local_parameters(gpt, config):
        gradient = gradient_of(parameter)
        if name in mappings and gradient is not None:
            hf_names = list(mappings[name].hf_shapes)
            parts = mappings[name].to_hf(gradient) if len(hf_names) > 1 else [gradient]
            yield from zip(hf_names, parts, strict=True)
