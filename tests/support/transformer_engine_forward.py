"""Plain torch behind the signatures of Transformer Engine's modules and functions, whose kernels need a GPU.

Each call is bound to the real signature first. What Megatron-Core hands over, and where, is then compared with our back
end by its numbers: the order of gate and up, windows, sinks, scales, the rotation, biases, the order of rows.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from gptoss20b.selftest import reference


def _norm(a: Any) -> Tensor:
    return F.rms_norm(a.input, a.self.weight.shape, a.self.weight, a.self.eps)


def _linear(a: Any) -> Any:
    module, inputs = a.self, a.inp
    if hasattr(module, "layer_norm_weight"):
        weight = module.layer_norm_weight
        inputs = F.rms_norm(inputs, weight.shape, weight, module.eps)
    out = F.linear(inputs, module.weight, module.bias if module.apply_bias else None)
    return (out, module.bias) if module.return_bias else out


def _grouped_linear(a: Any) -> Any:
    module, out = a.self, []
    splits = [int(count) for count in a.m_splits]
    for expert, rows in enumerate(a.inp.split(splits)):
        bias = getattr(module, f"bias{expert}") if module.use_bias else None
        out.append(F.linear(rows, getattr(module, f"weight{expert}"), bias if module.apply_bias else None))
    result = torch.cat(out)
    if not module.return_bias:
        return result
    return result, [getattr(module, f"bias{expert}") for expert in range(module.num_gemms)]


def _attention(a: Any) -> Tensor:
    module = a.self
    assert a.attn_mask_type == "causal" and a.qkv_format in (None, "sbhd") and a.window_size is None
    left, right = module.window_size
    assert right == 0 or (left, right) == (-1, -1)
    query, key, value = (x.permute(1, 2, 0, 3) for x in (a.query_layer, a.key_layer, a.value_layer))
    query = query * (module.softmax_scale * query.shape[-1] ** 0.5)  # the reference has the usual scale
    sinks = None if module.softmax_offset is None else module.softmax_offset.flatten()
    out = reference.attention(query, key, value, None if left < 0 else left, sinks)
    return out.permute(2, 0, 1, 3).flatten(2)


def _gemm(a: Any) -> list[Tensor | None]:
    """Multiply as cuBLAS does, which reads the matrices by columns: TN is B times A transposed."""
    assert a.alpha == 1 and a.beta is None and not a.accumulate and a.out is None
    left, right = a.A.to(a.out_dtype), a.B.to(a.out_dtype)
    out = {"TN": lambda: right @ left.T, "NN": lambda: right @ left, "NT": lambda: right.T @ left}[a.layout]()
    return [out if a.bias is None else out + a.bias, None, None, None]


_MODULES: dict[str, Callable[[Any], Any]] = {
    "RMSNorm": _norm,
    "LayerNormLinear": _linear,
    "Linear": _linear,
    "GroupedLinear": _grouped_linear,
    "DotProductAttention": _attention,
}


def _functions() -> dict[str, Callable[[Any], Any]]:
    """Return Megatron-Core's own operators in place of the fused ones of its module moe_utils."""
    from megatron.core.transformer.moe import moe_utils

    def sort_chunks(a: Any) -> Any:
        return moe_utils.sort_chunks_by_idxs(a.inp, a.split_sizes, a.sorted_index, probs=a.probs)

    def sort_rows(a: Any) -> Any:
        return moe_utils.sort_chunks_by_idxs(a.inp, a.split_sizes, a.sorted_index)[0]

    def topk(a: Any) -> Any:
        return moe_utils.topk_routing_with_score_function(
            a.logits, a.topk, use_pre_softmax=a.use_pre_softmax, score_function=a.score_function, fused=False
        )

    def permute(a: Any) -> Any:
        # Megatron-Core 0.19 returns two values more.
        rows = moe_utils.permute(a.inp, a.routing_map, probs=a.probs, num_out_tokens=a.num_out_tokens, fused=False)
        return rows[:3]

    def unpermute(a: Any) -> Any:
        assert a.merging_probs is None
        return moe_utils.unpermute(a.inp, a.row_id_map, a.restore_shape, fused=False)

    return {
        "fused_permute_with_probs": permute,
        "fused_unpermute": unpermute,
        "fused_sort_chunks_by_index": sort_rows,
        "fused_sort_chunks_by_index_with_probs": sort_chunks,
        "fused_topk_with_score_function": topk,
    }


@contextmanager
def plain_torch() -> Iterator[set[str]]:
    """Replace forward passes in this block. Yield the names of those that were called."""
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.transformer.moe import moe_utils

    engine, rope = (importlib.import_module(f"transformer_engine.pytorch{name}") for name in ("", ".attention.rope"))
    called: set[str] = set()

    def behind(name: str, original: Any, function: Callable[[Any], Any]) -> Any:
        signature = inspect.signature(original)

        def call(*arguments: Any, **options: Any) -> Any:
            called.add(name)
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            return function(SimpleNamespace(**bound.arguments))

        return call

    def rotate(a: Any) -> Tensor:
        assert a.tensor_format == "sbhd"
        out: Tensor = rope_utils._apply_rotary_pos_emb_bshd(a.t, a.freqs, rotary_interleaved=a.interleaved)
        return out

    with ExitStack() as stack:
        for name, function in _MODULES.items():
            module = getattr(engine, name)
            stack.enter_context(patch.object(module, "forward", behind(name, module.forward, function)))
        for name, function in _functions().items():
            original = getattr(moe_utils, name)
            stack.enter_context(patch.object(moe_utils, name, behind(name, original, function)))
        extension = importlib.import_module("megatron.core.extensions.transformer_engine")
        for name, original, function in (
            ("apply_rotary_pos_emb", rope.apply_rotary_pos_emb, rotate),
            ("general_gemm", importlib.import_module("transformer_engine.pytorch.cpp_extensions").general_gemm, _gemm),
        ):
            if hasattr(extension, name):  # Megatron-Core 0.16 finds no GEMM in Transformer Engine 2.20
                stack.enter_context(patch.object(extension, name, behind(name, original, function)))
        yield called
