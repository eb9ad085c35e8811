"""The tensors of a model, their names on both sides, and how one memory layout becomes the other.

This project uses Megatron-Core's names and layouts, whole over all ranks (`model.initialize.canonical_name`). The other
side is transformers' GptOssForCausalLM. Differences: linear_qkv is one matrix, interleaved by query group; rows of gate
and up follow one another instead of being interleaved; an expert's matrices are [out, in] instead of [in, out].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.tree import ModelConfig
from .folder import Shape


@dataclass(frozen=True)
class WeightMapping:
    """One tensor of this project and the GptOssForCausalLM tensors that hold the same numbers.

    Attributes:
        name, shape: in this project.
        hf_shapes: names and shapes in GptOssForCausalLM, in order.
        by_expert: convert one expert at a time: [experts, ...] on both sides, the largest tensors.
        from_hf: convert GptOssForCausalLM's tensors (of one expert, if `by_expert`). Views where possible, bit-exact.
        to_hf: convert back.
    """

    name: str
    shape: Shape
    hf_shapes: dict[str, Shape]
    by_expert: bool
    from_hf: Callable[[list[Tensor]], Tensor]
    to_hf: Callable[[Tensor], list[Tensor]]


def weight_shards(model: ModelConfig) -> Iterator[list[WeightMapping]]:
    """Yield the model's weights in the portions in which they are converted: embedding, each layer, head."""
    embedding, hidden = (model.vocab_size, model.hidden_size), (model.hidden_size,)
    yield [_unchanged("embedding.word_embeddings.weight", "model.embed_tokens.weight", embedding)]
    for layer in range(model.num_layers):
        weights = *_attention_weights(model, layer), *_mlp_weights(model, layer)
        yield [weight for weight in weights if _exists(model, weight.name)]
    yield [
        _unchanged("decoder.final_layernorm.weight", "model.norm.weight", hidden),
        _unchanged("output_layer.weight", "lm_head.weight", embedding),
    ]


def _exists(model: ModelConfig, name: str) -> bool:
    """Return whether a model has a weight that the released gpt-oss has."""
    if name.endswith(".bias"):
        return model.biases
    return model.attention_sinks if name.endswith("softmax_offset") else True


def _attention_weights(model: ModelConfig, layer: int) -> Iterator[WeightMapping]:
    hidden = model.hidden_size
    q_size, kv_size = model.num_attention_heads * model.head_dim, model.num_query_groups * model.head_dim
    ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
    yield _unchanged(f"{ours}.input_layernorm.weight", f"{theirs}.input_layernorm.weight", (hidden,))
    for part, columns in (("weight", (hidden,)), ("bias", ())):
        # Megatron-Core orders rows by query group, so that tensor parallelism can cut them into equal parts.
        yield WeightMapping(
            f"{ours}.self_attention.linear_qkv.{part}",
            (q_size + 2 * kv_size, *columns),
            {
                f"{theirs}.self_attn.q_proj.{part}": (q_size, *columns),
                f"{theirs}.self_attn.k_proj.{part}": (kv_size, *columns),
                f"{theirs}.self_attn.v_proj.{part}": (kv_size, *columns),
            },
            False,
            lambda parts: merge_qkv(parts, model.num_query_groups),
            lambda merged: split_qkv(merged, model.num_query_groups, model.head_dim),
        )
    for part, shape in (("weight", (hidden, q_size)), ("bias", (hidden,))):
        yield _unchanged(f"{ours}.self_attention.linear_proj.{part}", f"{theirs}.self_attn.o_proj.{part}", shape)
    if model.qk_norm:  # only in this project's folders: `to_hf_config` refuses such a model
        for part in ("q", "k"):
            name = f"self_attn.{part}_norm.weight"
            ours_name = f"{ours}.self_attention.{part}_layernorm.weight"
            yield _unchanged(ours_name, f"{theirs}.{name}", (model.head_dim,))
    sinks = (model.num_attention_heads,)
    yield _unchanged(f"{ours}.self_attention.core_attention.softmax_offset", f"{theirs}.self_attn.sinks", sinks)


def _mlp_weights(model: ModelConfig, layer: int) -> Iterator[WeightMapping]:
    experts, hidden, ffn = model.num_experts, model.hidden_size, model.moe_ffn_hidden_size
    ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
    yield _unchanged(f"{ours}.pre_mlp_layernorm.weight", f"{theirs}.post_attention_layernorm.weight", (hidden,))
    for part, shape in (("weight", (experts, hidden)), ("bias", (experts,))):
        yield _unchanged(f"{ours}.mlp.router.{part}", f"{theirs}.mlp.router.{part}", shape)
    # gate_up_proj is [in, out] with gate and up in alternating columns; linear_fc1 is [out, in], all gate rows first.
    yield WeightMapping(
        f"{ours}.mlp.experts.linear_fc1.weight",
        (experts, 2 * ffn, hidden),
        {f"{theirs}.mlp.experts.gate_up_proj": (experts, hidden, 2 * ffn)},
        True,
        lambda parts: deinterleave(parts[0].mT, -2),
        lambda whole: [interleave(whole, -2).mT],
    )
    yield WeightMapping(
        f"{ours}.mlp.experts.linear_fc1.bias",
        (experts, 2 * ffn),
        {f"{theirs}.mlp.experts.gate_up_proj_bias": (experts, 2 * ffn)},
        False,
        lambda parts: deinterleave(parts[0], -1),
        lambda whole: [interleave(whole, -1)],
    )
    yield WeightMapping(
        f"{ours}.mlp.experts.linear_fc2.weight",
        (experts, hidden, ffn),
        {f"{theirs}.mlp.experts.down_proj": (experts, ffn, hidden)},
        True,
        lambda parts: parts[0].mT,
        lambda whole: [whole.mT],
    )
    yield _unchanged(f"{ours}.mlp.experts.linear_fc2.bias", f"{theirs}.mlp.experts.down_proj_bias", (experts, hidden))


def _unchanged(name: str, hf_name: str, shape: Shape) -> WeightMapping:
    return WeightMapping(name, shape, {hf_name: shape}, False, lambda parts: parts[0], lambda whole: [whole])


def merge_qkv(parts: list[Tensor], num_query_groups: int) -> Tensor:
    """Merge query, key and value rows [rows, ...] into one tensor: each group's queries, its key, its value."""
    return torch.cat([torch.unflatten(part, 0, (num_query_groups, -1)) for part in parts], dim=1).flatten(0, 1)


def split_qkv(merged: Tensor, num_query_groups: int, head_dim: int) -> list[Tensor]:
    """Split the result of `merge_qkv` into its three tensors."""
    by_group = torch.unflatten(merged, 0, (num_query_groups, -1))
    query_rows = by_group.shape[1] - 2 * head_dim
    return [part.flatten(0, 1) for part in torch.split(by_group, [query_rows, head_dim, head_dim], dim=1)]


def deinterleave(x: Tensor, dim: int) -> Tensor:
    """Reorder gate and up, interleaved along a negative ``dim`` with the gate first, to all of gate, then all of up."""
    return torch.unflatten(x, dim, (-1, 2)).transpose(dim - 1, dim).flatten(dim - 1, dim)


def interleave(x: Tensor, dim: int) -> Tensor:
    """Undo `deinterleave`."""
    return torch.unflatten(x, dim, (2, -1)).transpose(dim - 1, dim).flatten(dim - 1, dim)
