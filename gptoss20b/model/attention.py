"""Causal and sliding-window attention on torch operators, for any vendor's GPU and for the CPU.

Megatron-Core's own `DotProductAttention` materialises the S x S scores and computes the whole square on windowed
layers too. Here no tensor has S x S elements, a windowed layer's work is proportional to the window, and keys are not
copied for the query heads that share them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import (
    _yarn_get_concentration_factor_from_config as concentration,
)
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .flex import flex
from .rotary import rotation, split_rotate

# Fused attention kernels want head dimensions in multiples of 8.
_HEAD_DIM_MULTIPLE = 8
# Smallest block of queries of a windowed layer: below it, the blocks are too small to use the hardware.
_SMALLEST_BLOCK = 64


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, past: int | None = None, sink: Tensor | None = None
) -> Tensor:
    """Attention of every query to its own key and the ``past`` keys before it, by the way that suits its device.

    On a GPU: a full causal layer without sinks takes a kernel of torch's, the faster ones, which know neither sinks nor
    windows: cuDNN's on Hopper and Blackwell where its version is newer than 9.15, else FlashAttention 2. All else takes
    `flex`. On a CPU: `causal_attention` and `window_attention`.

    Args:
        query: [batch, heads, sequence, head_dim].
        key, value: [batch, groups, sequence, head_dim]; heads is a multiple of groups.
        scale: multiplies the scores, usually 1 / sqrt(head_dim).
        past: Megatron's left window size; None for all earlier keys.
        sink: [heads] one logit per head that takes part in the softmax and carries no value, or None.

    Returns:
        [batch, heads, sequence, head_dim].
    """
    if past is not None and past >= query.shape[2] - 1:
        past = None
    if not query.is_cuda:
        if past is None:
            return causal_attention(query, key, value, scale, sink)
        return window_attention(query, key, value, scale, past, sink)
    if past is None and sink is None and query.dtype in (torch.bfloat16, torch.float16):
        # Named, so that torch cannot fall back to the operators that make the S x S scores. Which of the two comes
        # first is torch's choice, by device and cuDNN's version, whatever their order here.
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return flex(query, key, value, scale, past, sink)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, sink: Tensor | None = None) -> Tensor:
    """`attend` on a CPU without a window."""
    head_dim = query.shape[-1]
    if sink is not None:
        # The sink is a key before the first, seen by every query under the causal mask of a sequence that begins there.
        query, key, value = _with_sink(query, key, value, sink, scale)
        query = F.pad(query, (0, 0, 1, 0))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return out if sink is None else out[:, :, 1:, :head_dim]


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, past: int, sink: Tensor | None = None
) -> Tensor:
    """`attend` on a CPU with a window.

    Queries are cut into blocks no shorter than the window, so that a block needs its own keys and the previous block's
    only: scores take S x 2 x block elements a head, never S x S.
    """
    batch, heads, length, head_dim = query.shape
    block = max(past, _SMALLEST_BLOCK)
    blocks = math.ceil(length / block)

    def split(x: Tensor) -> Tensor:
        """Blocks where SDPA expects sequences, and the heads of all sequences as heads: [blocks, heads, block, dim]."""
        x = F.pad(x.permute(2, 0, 1, 3), (0, 0, 0, 0, 0, 0, 0, blocks * block - length))
        return x.reshape(blocks, block, -1, head_dim).transpose(1, 2)

    def with_previous(x: Tensor) -> Tensor:
        x = split(x)
        return torch.cat([F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], x], dim=2)

    query, key, value = split(query), with_previous(key), with_previous(value)
    visible = _window_mask(blocks, block, past, query.device)
    if sink is not None:
        query, key, value = _with_sink(query, key, value, sink.repeat(batch), scale)
        visible = F.pad(visible, (1, 0), value=True)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale, enable_gqa=True)
    out = out[..., :head_dim].transpose(1, 2).reshape(blocks * block, batch, heads, head_dim)
    return out[:length].permute(1, 2, 0, 3)


def _window_mask(blocks: int, block: int, past: int, device: torch.device) -> Tensor:
    """[blocks, 1, block, 2 x block] booleans: which of the previous and own block's keys each query sees."""
    query = torch.arange(block, device=device)[:, None]
    key = torch.arange(-block, block, device=device)[None, :]
    band = (key <= query) & (query - key <= past)
    mask = band.expand(blocks, 1, -1, -1).clone()
    mask[0, :, :, :block] = False  # before the first block there is only padding
    return mask


def _with_sink(query: Tensor, key: Tensor, value: Tensor, sink: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Prepend a key whose score is the sink for every query and whose value is zero.

    SDPA knows no sinks, but a score is a dot product: one more column, sink / scale in each query, 1 in the new key and
    0 in all others, adds exactly the sink to that key's score, and gradients reach it as they do any other query.

    Args:
        query: [outer, heads, ...]; key, value: [outer, groups, ...].
        sink: [heads].
    """
    # One column carries the sink; the others keep the head dimension a multiple of what fused kernels take.
    extra = _HEAD_DIM_MULTIPLE - query.shape[-1] % _HEAD_DIM_MULTIPLE
    column = (sink / scale).to(query.dtype)[:, None, None].expand(*query.shape[:-1], 1)
    query = F.pad(torch.cat([query, column], dim=-1), (0, extra - 1))
    sink_key = torch.zeros(*key.shape[:2], 1, key.shape[-1] + extra, dtype=key.dtype, device=key.device)
    sink_key[..., -extra] = 1.0
    key, value = (F.pad(x, (0, extra)) for x in (key, value))
    return query, torch.cat([sink_key, key], dim=2), F.pad(value, (0, 0, 1, 0))


class TorchCoreAttention(MegatronModule):
    """Megatron-Core's core attention slot, filled with `attend`.

    Reads from the TransformerConfig: kv_channels, window_size, window_attn_skip_freq, softmax_type. With
    ``softmax_type="learnable"`` it owns ``softmax_offset`` [heads on this rank], named as Megatron-Core names it.
    """

    def __init__(self, config: Any, layer_number: int, softmax_scale: float | None = None, **_unused: Any) -> None:
        super().__init__(config=config)
        if config.context_parallel_size > 1:
            raise ValueError("the torch back end keeps each sequence on one rank: set CONTEXT_PARALLEL=1")
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.past: int | None = config.window_size[0] if windowed else None
        self.softmax_offset: torch.nn.Parameter | None = None
        if config.softmax_type == "learnable":
            # None leaves the choice to the caller's torch.device context: the meta device when only counting.
            device = None if config.use_cpu_initialization else torch.cuda.current_device()
            heads = config.num_attention_heads // config.tensor_model_parallel_size
            self.softmax_offset = torch.nn.Parameter(torch.empty(heads, device=device, dtype=config.params_dtype))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_unused: Any
    ) -> Tensor:
        """Query [sequence, batch, heads, head_dim], key and value likewise by groups -> [sequence, batch, heads * dim].

        The mask is ignored: the window and causality are known from the configuration.
        """
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = attend(q, k, v, self.scale, self.past, self.softmax_offset)
        return out.permute(2, 0, 1, 3).flatten(2)


class TorchSelfAttention(SelfAttention):
    """Megatron-Core's self attention, with the parts between its two projections joined.

    Same modules, parameters and names; where the configuration has QK norms, their slots hold `rotary.NormWeight`.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, *, rotary_pos_emb: Tensor, **_unused: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states [sequence, batch, hidden] -> the same, and the bias that is left to the caller to add.

        ``rotary_pos_emb`` are the angles of Megatron's rotary or YaRN module. Training options only: caches, packed
        sequences and additive masks, which this project never passes, are ignored.
        """
        projected, _ = self.linear_qkv(hidden_states)
        normed = self.config.qk_layernorm
        weights = (self.q_layernorm(), self.k_layernorm()) if normed else (None, None)
        cos, sin = rotation(rotary_pos_emb, concentration(self.config))
        query, key, value = split_rotate(
            projected, self.num_query_groups_per_partition, weights, cos, sin, self.config.layernorm_epsilon
        )
        return self.linear_proj(self.core_attention(query, key, value))  # type: ignore[no-any-return]
