"""Rows, one for each (token, expert) pair: their order by expert, copies of tokens' rows, and sums back into tokens.

Every index is computed on the device, rows are copied by one gather in each direction, and sums are gathers too, so
results are deterministic and the host waits for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused import fused

# The word that a GPU's copy kernels read at once.
_TAIL_BYTES = 16


@dataclass(frozen=True)
class Permutation:
    """The order of permuted rows. A choice is the j-th expert, by number, of a token: choice = token x topk + j.

    Attributes:
        topk_experts: [tokens, topk] the expert of each choice.
        topk_rows: [tokens, topk] the permuted row of each choice.
        row_choices: [rows] the choice of each permuted row.
        row_tokens: [rows] the token of each permuted row.
        tokens_per_expert: [experts].
    """

    topk_experts: Tensor
    topk_rows: Tensor
    row_choices: Tensor
    row_tokens: Tensor
    tokens_per_expert: Tensor


def build_permutation(routing_map: Tensor, topk: int) -> Permutation:
    """Return the permutation that sorts all rows by expert, computed on the device without waiting for it.

    Args:
        routing_map: [tokens, experts] booleans, exactly ``topk`` of them true for each token.
        topk: experts per token.
    """
    tokens, experts = routing_map.shape
    device = routing_map.device
    # Counting sort: rows up to and including each pair, expert after expert and within an expert token after token.
    rows_so_far = routing_map.T.reshape(-1).cumsum(0).view(experts, tokens)
    # The j-th expert of a token is the first at which more than j have been counted.
    choices = torch.arange(topk, device=device).repeat(tokens, 1)
    topk_experts = torch.searchsorted(routing_map.cumsum(1), choices, right=True)
    topk_rows = (rows_so_far.T - 1).gather(1, topk_experts)
    row_choices = invert_permutation(topk_rows.flatten())
    return Permutation(
        topk_experts=topk_experts,
        topk_rows=topk_rows,
        row_choices=row_choices,
        row_tokens=row_choices // topk,
        tokens_per_expert=rows_so_far[:, -1].diff(prepend=rows_so_far.new_zeros(1)),
    )


def invert_permutation(permutation: Tensor) -> Tensor:
    """Return the inverse [n] of a permutation [n]: the position of each number."""
    numbers = torch.arange(permutation.shape[0], device=permutation.device)
    return torch.empty_like(permutation).scatter_(0, permutation, numbers)


@fused()
def _sum_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return [n, columns]: for each row of ``index`` [n, k] the fp32 sum of those k rows of x, rounded once."""
    return x[index].sum(1, dtype=torch.float32).to(x.dtype)


def _gather_or_sum(x: Tensor, index: Tensor) -> Tensor:
    return x[index] if index.dim() == 1 else _sum_rows(x, index)


def _pack(x: Tensor, index: Tensor, probs: Tensor, probs_index: Tensor) -> Tensor:
    """Return rows of x [m, columns] by ``index``, each with one of the fp32 ``probs`` behind it: [n, columns + tail].

    The tail is as long as a word that a GPU copies at once, so that each row still starts at a multiple of it. Its bits
    mean nothing in x's dtype: packed rows are only copied.
    """
    tail = F.pad(probs[probs_index][:, None], (0, _TAIL_BYTES // probs.itemsize - 1)).view(x.dtype)
    columns = x.shape[1]
    packed = x.new_empty(index.shape[0], columns + tail.shape[1])
    torch.ops.aten.index.Tensor_out(x, [index], out=packed[:, :columns])
    packed[:, columns:] = tail
    return packed


def _unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return views of rows [n, columns] and of their fp32 probabilities [n]."""
    columns = packed.shape[1] - _TAIL_BYTES // packed.itemsize
    return packed[:, :columns], packed[:, columns:].view(torch.float32)[:, 0]


class _GatherRows(torch.autograd.Function):
    """Autograd function of `gather_rows`. The plain gradient of indexing is index_add: atomic, not deterministic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        # Detached: the backward pass calls the same kernel with tensors that require no gradients, so one compiled
        # version serves both.
        return _gather_or_sum(x.detach(), index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _gather_or_sum(grads[0], inverse), None, None


def gather_rows(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Return rows of x by ``index`` [n], or sums of k rows by ``index`` [n, k].

    The gradient is the same operation with ``inverse``.

    Args:
        x: [m] or [m, columns].
        index: the rows of x that each row of the result takes.
        inverse: the rows of the result that took each row of x: [m] if one did, [m, k] if k did.
    """
    out: Tensor = _GatherRows.apply(x, index, inverse)  # type: ignore[no-untyped-call]
    return out


class _PackRows(torch.autograd.Function):
    """Autograd function of `pack_rows`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probs: Tensor, order: Permutation) -> Tensor:
        ctx.save_for_backward(order.topk_rows)
        return _pack(x.detach(), order.row_tokens, probs, order.row_choices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (topk_rows,) = ctx.saved_tensors
        rows, probs = _unpack(grads[0])
        return _sum_rows(rows, topk_rows), probs[topk_rows.flatten()], None


class _UnpackRows(torch.autograd.Function):
    """Autograd function of `unpack_rows`."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, order: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(inverse)
        rows, probs = _unpack(packed.detach())
        return rows[order], probs[order]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _pack(grads[0], inverse, grads[1], inverse), None, None


def pack_rows(x: Tensor, probs: Tensor, order: Permutation) -> Tensor:
    """Return the permuted rows of x, each with its probability behind it.

    Args:
        x: [tokens, columns].
        probs: [tokens x topk] fp32, of each choice.
        order: the permutation.
    """
    packed: Tensor = _PackRows.apply(x, probs, order)  # type: ignore[no-untyped-call]
    return packed


def unpack_rows(packed: Tensor, order: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and their probabilities from rows of `pack_rows`, by ``order`` [n], whose inverse is ``inverse``."""
    rows, probs = _UnpackRows.apply(packed, order, inverse)  # type: ignore[no-untyped-call]
    return rows, probs
