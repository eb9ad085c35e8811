"""Norms of a step's gradients by kind of tensor, under names that every baseline has.

A loss and one norm over everything say little at initial weights: queries and keys hardly show in them, and so neither
do windows, sinks or rotations. The norms of their own gradients do.
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

# How the names of each kind end in transformers' GptOssForCausalLM, which has queries, keys and values apart.
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
    """Norm over all layers of each of KINDS that is among the gradients, which have transformers' names."""
    squares: dict[str, list[Tensor]] = {}
    for name, gradient in gradients:
        for kind, end in KINDS.items():
            if name.endswith(end):
                squares.setdefault(kind, []).append(torch.linalg.vector_norm(gradient, dtype=torch.float32))
    return {kind: float(torch.linalg.vector_norm(torch.stack(norms))) for kind, norms in squares.items()}


def to_hf_names(
    gpt: GPTModel, config: Config, gradient_of: Callable[[Parameter], Tensor | None]
) -> Iterator[tuple[str, Tensor]]:
    """The gradients that a Megatron-Core model has, by transformers' names, a tensor's or one expert's; as they lie."""
    known = {weight.name: weight for shard in weight_shards(config.model) for weight in shard}
    for name, _, parameter in local_parameters(gpt, config):
        gradient = gradient_of(parameter)
        if name in known and gradient is not None:
            theirs = list(known[name].hf_shapes)
            parts = known[name].to_hf(gradient) if len(theirs) > 1 else [gradient]
            yield from zip(theirs, parts, strict=True)
