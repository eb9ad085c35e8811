"""Causal and sliding-window attention on torch operators, for any vendor's GPU and for the CPU.

Megatron-Core's own `DotProductAttention` materializes the S x S scores, and computes the whole square on windowed
layers too. Here no tensor has S x S elements, a windowed layer's work is proportional to the window, and keys are not
copied for the query heads that share them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask

from .flex import flex_sink_attention, window_block_mask
from .kernels import attention_kernels
from .rotary import split_qkv_rope

# Fused attention kernels require head dimensions in multiples of 8.
_HEAD_DIM_MULTIPLE = 8
# Smallest block of queries of a windowed layer. Smaller matrix products do not use the hardware well.
_MIN_BLOCK = 64
_SDPA_BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window_left: int | None = None,
    sink: Tensor | None = None,
    kernels: Sequence[str] = ("cudnn", "flash"),
    mask: BlockMask | None = None,
) -> Tensor:
    """Compute causal attention of every query to its own key and the ``window_left`` keys before it.

    On a GPU, a full causal layer without sinks uses one of torch's fused kernels, which are faster but support neither
    sinks nor windows. Of cudnn and flash, torch takes cuDNN's on Hopper and Blackwell with cuDNN newer than 9.15, else
    FlashAttention 2. Other layers use `flex_sink_attention`. On a CPU: `sdpa_causal` and `sdpa_sliding_window`.

    Args:
        query: [batch, heads, sequence, head_dim].
        key: [batch, groups, sequence, head_dim]; heads is a multiple of groups.
        value: like key.
        scale: factor of the scores, usually 1 / sqrt(head_dim).
        window_left: Megatron's left window size; None for all earlier keys.
        sink: [heads] a logit per head that enters the softmax's denominator and carries no value, or None.
        kernels: on a GPU those of full causal layers without sinks, from `attention_kernels`.
        mask: for `flex_sink_attention`.

    Returns:
        [batch, heads, sequence, head_dim].
    """
    if window_left is not None and window_left >= query.shape[2] - 1:
        window_left = None
    if not query.is_cuda:
        if window_left is None:
            return sdpa_causal(query, key, value, scale, sink)
        return sdpa_sliding_window(query, key, value, scale, window_left, sink)
    fused = [_SDPA_BACKENDS[kernel] for kernel in kernels if kernel in _SDPA_BACKENDS]
    if fused and window_left is None and sink is None and query.dtype in (torch.bfloat16, torch.float16):
        # Restricted, so that torch cannot fall back to the operators that make the S x S scores. torch chooses between
        # the two by device and cuDNN version; their order here does not matter.
        with sdpa_kernel(fused):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return flex_sink_attention(query, key, value, scale, window_left, sink, mask)


def sdpa_causal(query: Tensor, key: Tensor, value: Tensor, scale: float, sink: Tensor | None = None) -> Tensor:
    """Compute `dot_product_attention` on a CPU without a window."""
    head_dim = query.shape[-1]
    if sink is not None:
        # The sink becomes a key before the first. A padding query before the first keeps the causal mask aligned.
        query, key, value = _prepend_sink_key(query, key, value, sink, scale)
        query = F.pad(query, (0, 0, 1, 0))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return out if sink is None else out[:, :, 1:, :head_dim]


def sdpa_sliding_window(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window_left: int, sink: Tensor | None = None
) -> Tensor:
    """Compute `dot_product_attention` on a CPU with a window.

    Queries are cut into blocks no shorter than the window, so a block needs only its own and the previous block's keys.
    Scores take S x 2 x block elements per head, never S x S.
    """
    batch, heads, length, head_dim = query.shape
    block = max(window_left, _MIN_BLOCK)
    blocks = math.ceil(length / block)

    def split_blocks(x: Tensor) -> Tensor:
        """Return [blocks, batch x heads, block, dim]: SDPA then sees each block as a sequence."""
        x = F.pad(x.permute(2, 0, 1, 3), (0, 0, 0, 0, 0, 0, 0, blocks * block - length))
        return x.reshape(blocks, block, -1, head_dim).transpose(1, 2)

    def with_previous_block(x: Tensor) -> Tensor:
        x = split_blocks(x)
        return torch.cat([F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], x], dim=2)

    query, key, value = split_blocks(query), with_previous_block(key), with_previous_block(value)
    mask = _block_window_mask(blocks, block, window_left, query.device)
    if sink is not None:
        query, key, value = _prepend_sink_key(query, key, value, sink.repeat(batch), scale)
        mask = F.pad(mask, (1, 0), value=True)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    out = out[..., :head_dim].transpose(1, 2).reshape(blocks * block, batch, heads, head_dim)
    return out[:length].permute(1, 2, 0, 3)


def _block_window_mask(blocks: int, block: int, window_left: int, device: torch.device) -> Tensor:
    """Return [blocks, 1, block, 2 x block] booleans: the keys of the previous and own block that each query sees."""
    query = torch.arange(block, device=device)[:, None]
    key = torch.arange(-block, block, device=device)[None, :]
    band = (key <= query) & (query - key <= window_left)
    mask = band.expand(blocks, 1, -1, -1).clone()
    mask[0, :, :, :block] = False  # before the first block there is only padding
    return mask


def _prepend_sink_key(
    query: Tensor, key: Tensor, value: Tensor, sink: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Prepend a key whose score is the sink for every query and whose value is zero.

    SDPA has no sinks, but a score is a dot product. One more column holds sink / scale in each query, 1 in the new key
    and 0 in all others. It adds exactly the sink to the new key's score, and the sink's gradient flows through it.
    """
    # One column carries the sink; the others keep the head dimension a multiple of 8.
    extra = _HEAD_DIM_MULTIPLE - query.shape[-1] % _HEAD_DIM_MULTIPLE
    column = (sink / scale).to(query.dtype)[:, None, None].expand(*query.shape[:-1], 1)
    query = F.pad(torch.cat([query, column], dim=-1), (0, extra - 1))
    sink_key = torch.zeros(*key.shape[:2], 1, key.shape[-1] + extra, dtype=key.dtype, device=key.device)
    sink_key[..., -extra] = 1.0
    key, value = (F.pad(x, (0, extra)) for x in (key, value))
    return query, torch.cat([sink_key, key], dim=2), F.pad(value, (0, 0, 1, 0))


class TorchCoreAttention(MegatronModule):
    """`dot_product_attention` in Megatron-Core's core attention slot.

    Reads from the TransformerConfig: kv_channels, num_query_groups, window_size, window_attn_skip_freq, softmax_type,
    and this project's attention_kernel. With ``softmax_type="learnable"`` it owns the sinks, ``softmax_offset``
    [heads on this rank], under Megatron-Core's name.
    """

    def __init__(self, config: Any, layer_number: int, softmax_scale: float | None = None, **_unused: Any) -> None:
        super().__init__(config=config)
        if config.context_parallel_size > 1:
            raise ValueError("the torch back end keeps each sequence on one rank: set CONTEXT_PARALLEL=1")
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window_left: int | None = config.window_size[0] if windowed else None
        groups = config.num_query_groups // config.tensor_model_parallel_size
        on_gpu = not config.use_cpu_initialization
        self.kernels = attention_kernels(config.attention_kernel, groups) if on_gpu else ()
        self.block_mask: BlockMask | None = None
        self.softmax_offset: torch.nn.Parameter | None = None
        if config.softmax_type == "learnable":
            # None leaves the choice to the caller's torch.device context: the meta device when only counting.
            device = torch.cuda.current_device() if on_gpu else None
            heads = config.num_attention_heads // config.tensor_model_parallel_size
            self.softmax_offset = torch.nn.Parameter(torch.empty(heads, device=device, dtype=config.params_dtype))

    def prepare(self, length: int, device: torch.device) -> None:
        """Keep the mask for flex of sequences of this length, so that a compiled layer need not make it."""
        self.block_mask = window_block_mask(length, self.window_left, device)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_unused: Any
    ) -> Tensor:
        """Return the attention output [sequence, batch, heads * head_dim].

        Inputs are [sequence, batch, heads or groups, head_dim]. The mask is ignored: the configuration defines it.
        """
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = dot_product_attention(
            q, k, v, self.scale, self.window_left, self.softmax_offset, self.kernels, self.block_mask
        )
        return out.permute(2, 0, 1, 3).flatten(2)


class OutputProjection(RowParallelLinear):
    """Megatron-Core's output projection without its warning, at which the compiler would split each layer."""

    def _forward_impl(self, *args: Any, **kwargs: Any) -> Tensor:
        # Bug of megatron-core up to 0.19.2: it hands on None, and then warns on rank 0 that the group is missing.
        out: Tensor = super()._forward_impl(*args, **kwargs | {"tp_group": self.tp_group})
        return out


class TorchSelfAttention(SelfAttention):
    """Megatron-Core's self attention with the operators between its two projections fused.

    Modules, parameters and names are the same. With QK norms, their slots hold `rotary.NormWeight`.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, *, rotary_pos_emb: Tensor, **_unused: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output [sequence, batch, hidden] and the bias that the caller adds.

        Training only: caches, packed sequences and additive masks, which this project never passes, are ignored.
        ``rotary_pos_emb`` is the table that `rotary.give_rotation_tables` makes of Megatron-Core's angles.
        """
        qkv, _ = self.linear_qkv(hidden_states)
        norm_weights = (self.q_layernorm(), self.k_layernorm()) if self.config.qk_layernorm else (None, None)
        query, key, value = split_qkv_rope(
            qkv, self.num_query_groups_per_partition, norm_weights, rotary_pos_emb, self.config.layernorm_epsilon
        )
        return self.linear_proj(self.core_attention(query, key, value))  # type: ignore[no-any-return]
