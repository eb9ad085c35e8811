"""Causal and sliding-window attention on plain torch operators, for any vendor's GPU and for the CPU.

Megatron-Core's own `DotProductAttention` materialises the S x S scores and computes the whole square on windowed
layers too. Here the full causal layer uses torch's fused attention, and a windowed layer touches only the keys that its
window reaches: its work is proportional to the window.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor

# Fused attention kernels want head dimensions in multiples of 8.
_HEAD_DIM_MULTIPLE = 8
# Smallest block of queries of a windowed layer: below it, the blocks are too small to use the hardware.
_SMALLEST_BLOCK = 64


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, sink: Tensor | None = None) -> Tensor:
    """Attention of every query to its own and all earlier keys.

    Args:
        query: [batch, heads, sequence, head_dim].
        key, value: [batch, groups, sequence, head_dim]; heads is a multiple of groups.
        scale: multiplies the scores, usually 1 / sqrt(head_dim).
        sink: [heads] one logit per head that takes part in the softmax and carries no value, or None.

    Returns:
        [batch, heads, sequence, head_dim].
    """
    if sink is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    # The sink is a key before the first, seen by every query under the causal mask of a sequence that starts with it.
    head_dim = query.shape[-1]
    query, key, value = _with_sink(query, key, value, sink, scale)
    query = F.pad(query, (0, 0, 1, 0))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    return out[:, :, 1:, :head_dim]


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, past: int, sink: Tensor | None = None
) -> Tensor:
    """Attention of every query to its own key and the ``past`` keys before it.

    Queries are cut into blocks no shorter than the window, so that a block needs its own keys and the previous block's
    only: scores take S x 2 x block elements, never S x S.

    Args, returns: as `causal_attention`; ``past`` is Megatron's left window size.
    """
    batch, heads, length, head_dim = query.shape
    repeats = heads // key.shape[1]
    block = max(past, _SMALLEST_BLOCK)
    blocks = math.ceil(length / block)
    padding = blocks * block - length

    def split(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, padding)) if padding else x
        return x.reshape(batch, x.shape[1], blocks, block, x.shape[-1])

    def with_previous(x: Tensor) -> Tensor:
        x = split(x)
        x = torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], dim=3)
        return x.repeat_interleave(repeats, dim=1).reshape(batch * heads, blocks, 2 * block, -1)

    query = split(query).reshape(batch * heads, blocks, block, head_dim)
    key, value = with_previous(key), with_previous(value)
    visible = _window_mask(blocks, block, past, query.device)
    if sink is not None:
        query, key, value = _with_sink(query, key, value, sink.repeat(batch)[:, None].expand(-1, blocks), scale)
        visible = F.pad(visible, (1, 0), value=True)
    # Blocks stand where fused kernels expect heads: [batch x heads, blocks, block, ...].
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    return out[..., :head_dim].reshape(batch, heads, blocks * block, head_dim)[:, :, :length]


def _window_mask(blocks: int, block: int, past: int, device: torch.device) -> Tensor:
    """[blocks, block, 2 x block] booleans: which of the previous and own block's keys each query sees."""
    query = torch.arange(block, device=device)[:, None]
    key = torch.arange(-block, block, device=device)[None, :]
    band = (key <= query) & (query - key <= past)
    mask = band.expand(blocks, -1, -1).clone()
    mask[0, :, :block] = False  # before the first block there is only padding
    return mask


def _with_sink(query: Tensor, key: Tensor, value: Tensor, sink: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Prepend a key whose score is the sink for every query and whose value is zero.

    Kernels know no sinks, but a score is a dot product: one more column, 1 in each query, sink / scale in the new key
    and 0 in all others, adds exactly the sink to that key's score, and gradients reach it as to any other key.

    Args:
        query, key, value: [outer, inner, ...]; keys are repeated to as many rows as the queries have if fewer.
        sink: [inner] or [outer, inner].
    """
    rows = query.shape[1]
    if key.shape[1] != rows:
        key, value = (x.repeat_interleave(rows // x.shape[1], dim=1) for x in (key, value))
    # One column carries the sink; the others keep the head dimension a multiple of what fused kernels take.
    extra = _HEAD_DIM_MULTIPLE - query.shape[-1] % _HEAD_DIM_MULTIPLE
    query = F.pad(F.pad(query, (0, 1), value=1.0), (0, extra - 1))
    key, value = (F.pad(x, (0, extra)) for x in (key, value))
    sink_key = F.pad((sink / scale).to(key.dtype)[..., None, None], (key.shape[-1] - extra, extra - 1))
    sink_key = sink_key.expand(key.shape[0], rows, 1, -1)
    return query, torch.cat([sink_key, key], dim=2), F.pad(value, (0, 0, 1, 0))


class TorchCoreAttention(MegatronModule):
    """Megatron-Core's core attention slot, filled with the functions above.

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
        if self.past is None:
            out = causal_attention(q, k, v, self.scale, self.softmax_offset)
        else:
            out = window_attention(q, k, v, self.scale, self.past, self.softmax_offset)
        return out.permute(2, 0, 1, 3).flatten(2)
