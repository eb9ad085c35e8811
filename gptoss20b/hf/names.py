"""Which tensors a model has, what they are called on either side, and how one arrangement becomes the other.

Ours are Megatron-Core's names and arrangements, whole over all ranks (`model.initialise.canonical`); the other side is
transformers' GptOssForCausalLM. The differences: queries, keys and values are one matrix, in turns by key-value group;
the rows of gate and up are not interleaved but one after the other; an expert's matrices are [out, in], not [in, out].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.tree import ModelConfig
from .folder import Shape


@dataclass(frozen=True)
class Weight:
    """One tensor of ours, and the tensor or tensors of GptOssForCausalLM that hold the same numbers.

    Attributes:
        ours, shape: its name and shape here.
        theirs: names and shapes there, in order.
        by_expert: [experts, ...] on both sides, and arranged one expert at a time: the largest tensors.
        to_ours: from theirs (of one expert, if `by_expert`) to ours. Views where possible; never changes a bit.
        to_theirs: the way back.
    """

    ours: str
    shape: Shape
    theirs: dict[str, Shape]
    by_expert: bool
    to_ours: Callable[[list[Tensor]], Tensor]
    to_theirs: Callable[[Tensor], list[Tensor]]


def shards(model: ModelConfig) -> Iterator[list[Weight]]:
    """The model's weights in the order and the portions in which they are converted: embedding, each layer, head."""
    embedding, hidden = (model.vocab_size, model.hidden_size), (model.hidden_size,)
    yield [_same("embedding.word_embeddings.weight", "model.embed_tokens.weight", embedding)]
    for layer in range(model.num_layers):
        yield [*_attention(model, layer), *_experts(model, layer)]
    yield [
        _same("decoder.final_layernorm.weight", "model.norm.weight", hidden),
        _same("output_layer.weight", "lm_head.weight", embedding),
    ]


def _attention(model: ModelConfig, layer: int) -> Iterator[Weight]:
    hidden, query, group = (
        model.hidden_size,
        model.num_attention_heads * model.head_dim,
        model.num_query_groups * model.head_dim,
    )
    ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
    yield _same(f"{ours}.input_layernorm.weight", f"{theirs}.input_layernorm.weight", (hidden,))
    for part, columns in (("weight", (hidden,)), ("bias", ())):
        yield Weight(
            f"{ours}.self_attention.linear_qkv.{part}",
            (query + 2 * group, *columns),
            {
                f"{theirs}.self_attn.q_proj.{part}": (query, *columns),
                f"{theirs}.self_attn.k_proj.{part}": (group, *columns),
                f"{theirs}.self_attn.v_proj.{part}": (group, *columns),
            },
            False,
            lambda parts: join_groups(parts, model.num_query_groups),
            lambda joined: split_groups(joined, model.num_query_groups, model.head_dim),
        )
    for part, shape in (("weight", (hidden, query)), ("bias", (hidden,))):
        yield _same(f"{ours}.self_attention.linear_proj.{part}", f"{theirs}.self_attn.o_proj.{part}", shape)
    sinks = (model.num_attention_heads,)
    yield _same(f"{ours}.self_attention.core_attention.softmax_offset", f"{theirs}.self_attn.sinks", sinks)


def _experts(model: ModelConfig, layer: int) -> Iterator[Weight]:
    experts, hidden, ffn = model.num_experts, model.hidden_size, model.moe_ffn_hidden_size
    ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
    yield _same(f"{ours}.pre_mlp_layernorm.weight", f"{theirs}.post_attention_layernorm.weight", (hidden,))
    for part, shape in (("weight", (experts, hidden)), ("bias", (experts,))):
        yield _same(f"{ours}.mlp.router.{part}", f"{theirs}.mlp.router.{part}", shape)
    yield Weight(
        f"{ours}.mlp.experts.linear_fc1.weight",
        (experts, 2 * ffn, hidden),
        {f"{theirs}.mlp.experts.gate_up_proj": (experts, hidden, 2 * ffn)},
        True,
        lambda parts: separate(parts[0].mT, -2),
        lambda whole: [interleave(whole, -2).mT],
    )
    yield Weight(
        f"{ours}.mlp.experts.linear_fc1.bias",
        (experts, 2 * ffn),
        {f"{theirs}.mlp.experts.gate_up_proj_bias": (experts, 2 * ffn)},
        False,
        lambda parts: separate(parts[0], -1),
        lambda whole: [interleave(whole, -1)],
    )
    yield Weight(
        f"{ours}.mlp.experts.linear_fc2.weight",
        (experts, hidden, ffn),
        {f"{theirs}.mlp.experts.down_proj": (experts, ffn, hidden)},
        True,
        lambda parts: parts[0].mT,
        lambda whole: [whole.mT],
    )
    yield _same(f"{ours}.mlp.experts.linear_fc2.bias", f"{theirs}.mlp.experts.down_proj_bias", (experts, hidden))


def _same(ours: str, theirs: str, shape: Shape) -> Weight:
    return Weight(ours, shape, {theirs: shape}, False, lambda parts: parts[0], lambda whole: [whole])


def join_groups(parts: list[Tensor], groups: int) -> Tensor:
    """Query, key and value rows [rows, ...] to one tensor: for each group its queries, its key, its value."""
    return torch.cat([torch.unflatten(part, 0, (groups, -1)) for part in parts], dim=1).flatten(0, 1)


def split_groups(joined: Tensor, groups: int, head_dim: int) -> list[Tensor]:
    """The three tensors that `join_groups` joined."""
    by_group = torch.unflatten(joined, 0, (groups, -1))
    queries = by_group.shape[1] - 2 * head_dim
    return [part.flatten(0, 1) for part in torch.split(by_group, [queries, head_dim, head_dim], dim=1)]


def separate(x: Tensor, dim: int) -> Tensor:
    """Gate and up in turns along a negative ``dim`` (gate first) to all of the gate, then all of up."""
    return torch.unflatten(x, dim, (-1, 2)).transpose(dim - 1, dim).flatten(dim - 1, dim)


def interleave(x: Tensor, dim: int) -> Tensor:
    """Undoes `separate`."""
    return torch.unflatten(x, dim, (2, -1)).transpose(dim - 1, dim).flatten(dim - 1, dim)
