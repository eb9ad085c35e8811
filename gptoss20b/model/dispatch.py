"""Token dispatcher: sort rows by expert on the device, exchange them by all-to-all, sum them back into tokens.

Replaces Megatron-Core's MoEAlltoAllTokenDispatcher under the same interface. That dispatcher reads the tokens per
expert back to the host, selects rows by boolean masks (version 0.16) and adds rows back by atomic index_add. Here every
index is computed on the device, rows are copied by one gather in each direction, and sums are gathers too, so results
are deterministic. With one rank per expert group the dispatcher waits for nothing. With more, it waits once per layer
and forward pass, for the sizes of the messages. A recomputed layer (RECOMPUTE moe or layers) waits once more, in the
backward pass.

Messages per layer: sizes, rows, the experts' outputs on their way back, and the gradients of these last two. A
recomputed layer sends the first three again. A row's probability travels in the row's last 16 bytes, and its gradient
in those of the row's gradient: both are copied with the row, by the gathers at both ends.

A row is a (token, expert) pair. Permuted rows are ordered by expert, then by token. Received rows are ordered by local
expert, then by source rank, then by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import all_to_all
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
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
    row_choices = _invert_permutation(topk_rows.flatten())
    return Permutation(
        topk_experts=topk_experts,
        topk_rows=topk_rows,
        row_choices=row_choices,
        row_tokens=row_choices // topk,
        tokens_per_expert=rows_so_far[:, -1].diff(prepend=rows_so_far.new_zeros(1)),
    )


def _invert_permutation(permutation: Tensor) -> Tensor:
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


@dataclass(frozen=True)
class AllToAllPlan:
    """Message sizes of one expert-parallel rank's all-to-all.

    Attributes:
        rows_per_source: [ranks, local experts] rows that arrive, on the device.
        splits: [2, ranks] rows sent to and received from each rank, on the host once ``ready`` has happened.
        ready: an event of the device; None where the host has nothing to wait for.
    """

    rows_per_source: Tensor
    splits: Tensor
    ready: torch.cuda.Event | None

    @classmethod
    def exchange(cls, tokens_per_expert: Tensor, group: Any) -> AllToAllPlan:
        """Send every rank of ``group`` the number of rows for each of its experts. Collective."""
        sent = tokens_per_expert.view(group.size(), -1)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        # A non-blocking copy from a GPU goes to pinned memory.
        splits = torch.stack([sent.sum(1), received.sum(1)]).to("cpu", non_blocking=True)
        ready = None
        if sent.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        return cls(received, splits, ready)

    def wait_for_splits(self) -> tuple[list[int], list[int]]:
        """Return the rows sent to and received from each rank. Wait for that copy only, not for later work."""
        if self.ready is not None:
            self.ready.synchronize()
        sent, received = self.splits.tolist()
        return sent, received

    def expert_order(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return the order that sorts the ``rows`` received rows by local expert, and its inverse."""
        # Rows arrive by source, then by expert. Each such chunk moves as a whole.
        arriving = self.rows_per_source.flatten()
        starts = (arriving.cumsum(0) - arriving).view_as(self.rows_per_source).T.flatten()
        sizes = self.rows_per_source.T.flatten()
        ends = sizes.cumsum(0)
        numbers = torch.arange(rows, device=ends.device)
        chunk = torch.searchsorted(ends, numbers, right=True)
        order = numbers + (starts - ends + sizes)[chunk]
        return order, _invert_permutation(order)


class SortingDispatcher(MoETokenDispatcher):
    """Megatron-Core's token dispatcher by sorting, for experts on one rank or spread over an all-to-all.

    Reads from the TransformerConfig: num_moe_experts, moe_router_topk. Every token goes to exactly moe_router_topk
    experts: rows are neither dropped nor padded. Like Megatron-Core's dispatchers it keeps the order of the rows from
    dispatch_preprocess to combine_postprocess of one forward pass.
    """

    _permutation: Permutation
    _plan: AllToAllPlan | None
    _splits: tuple[list[int], list[int]]
    _received_order: tuple[Tensor, Tensor]
    _hidden_shape: torch.Size

    def __init__(self, config: Any, groups: Any = None) -> None:
        """Create a dispatcher on Megatron-Core's process groups, by default those of its parallel state."""
        super().__init__(config=config, pg_collection=groups or get_default_pg_collection())
        if self.tp_size > 1:
            raise ValueError(f"got experts split over {self.tp_size} tensor parallel ranks, expected whole ones")
        self.num_local_experts = config.num_moe_experts // self.ep_size

    def dispatch_preprocess(self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Permute: sort this rank's rows by expert.

        Args:
            hidden_states: [sequence, batch, hidden].
            routing_map: [tokens, experts] booleans.
            probs: [tokens, experts] fp32.

        Returns:
            Rows [tokens x topk, hidden] and their probabilities [tokens x topk]; with expert parallelism packed rows,
            and the probabilities of choices, which nothing needs any more.
        """
        self._hidden_shape = hidden_states.shape
        order = self._permutation = build_permutation(routing_map, self.config.moe_router_topk)
        # Exchanged before the rows are copied, so that the sizes are on the host by the time they are needed.
        self._plan = AllToAllPlan.exchange(order.tokens_per_expert, self.ep_group) if self.ep_size > 1 else None
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        # The gradient of gather adds each choice to a different element, so its atomic additions are deterministic.
        topk_probs = probs.gather(1, order.topk_experts).flatten()
        if self._plan is not None:
            return pack_rows(tokens, topk_probs, order), topk_probs
        rows = gather_rows(tokens, order.row_tokens, order.topk_rows)
        return rows, gather_rows(topk_probs, order.row_choices, order.topk_rows.flatten())

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Send packed rows to the ranks of their experts; without expert parallelism, return the rows."""
        if self._plan is None:
            return hidden_states, probs
        self._splits = sent, received = self._plan.wait_for_splits()
        return all_to_all(self.ep_group, hidden_states, received, sent), probs

    def dispatch_postprocess(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows sorted by local expert, tokens per local expert on the device, and probabilities."""
        if self._plan is None:
            return hidden_states, self._permutation.tokens_per_expert, probs
        # With one local expert, the order is that of arrival: then the copy only separates rows and probabilities.
        order = self._received_order = self._plan.expert_order(hidden_states.shape[0])
        rows, row_probs = unpack_rows(hidden_states, *order)
        return rows, self._plan.rows_per_source.sum(0), row_probs

    def combine_preprocess(self, hidden_states: Tensor) -> Tensor:
        """Return the experts' output in the order in which the rows were received."""
        if self._plan is None or self.num_local_experts == 1:
            return hidden_states
        order, inverse = self._received_order
        return gather_rows(hidden_states, inverse, order)

    def token_combine(self, hidden_states: Tensor) -> Tensor:
        """Send the rows back to the ranks of their tokens."""
        if self._plan is None:
            return hidden_states
        sent, received = self._splits
        out: Tensor = all_to_all(self.ep_group, hidden_states, sent, received)
        return out

    def combine_postprocess(self, hidden_states: Tensor) -> Tensor:
        """Unpermute: return each token's sum over its experts, in their order: [sequence, batch, hidden]."""
        permutation = self._permutation
        return gather_rows(hidden_states, permutation.topk_rows, permutation.row_tokens).view(self._hidden_shape)
