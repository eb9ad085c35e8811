"""Token dispatcher: sort rows by expert on the device, exchange them by all-to-all, sum them back into tokens.

Replaces Megatron-Core's MoEAlltoAllTokenDispatcher under the same interface. That dispatcher reads the tokens per
expert back to the host, selects rows by boolean masks (version 0.16) and adds rows back by atomic index_add. Here every
index is computed on the device, rows are copied by one gather in each direction, and sums are gathers too, so results
are deterministic. With one rank per expert group the dispatcher waits for nothing. With more, it waits once per layer
and forward pass, for the sizes of the messages. A recomputed layer (RECOMPUTE moe or layers) waits once more, in the
backward pass.

Messages per layer: sizes, rows and probabilities, the outputs on their way back, and the gradients of these last three.
A recomputed layer sends the first four again. Probabilities have messages of their own, of 4 bytes a row. Inside the
rows' message they would need a gather of rows of another length, or one more copy of all rows, which takes longer than
a small message. Multiplied on the token's own rank, they would round otherwise and keep the experts' outputs in memory.

A row is a (token, expert) pair. Permuted rows are ordered by expert, then by token. Received rows are ordered by local
expert, then by source rank, then by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import all_to_all
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from torch import Tensor

from .fused import fused


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
            Rows [tokens x topk, hidden] and their probabilities [tokens x topk].
        """
        self._hidden_shape = hidden_states.shape
        order = self._permutation = build_permutation(routing_map, self.config.moe_router_topk)
        # Exchanged before the rows are copied, so that the sizes are on the host by the time they are needed.
        self._plan = AllToAllPlan.exchange(order.tokens_per_expert, self.ep_group) if self.ep_size > 1 else None
        rows = gather_rows(hidden_states.reshape(-1, hidden_states.shape[-1]), order.row_tokens, order.topk_rows)
        # The gradient of gather adds each choice to a different element, so its atomic additions are deterministic.
        topk_probs = probs.gather(1, order.topk_experts).flatten()
        return rows, gather_rows(topk_probs, order.row_choices, order.topk_rows.flatten())

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Send rows and probabilities to the ranks of their experts; without expert parallelism, return them."""
        if self._plan is None:
            return hidden_states, probs
        self._splits = sent, received = self._plan.wait_for_splits()
        # Two messages: the probabilities are fp32, and less than a thousandth of the bytes.
        return (
            all_to_all(self.ep_group, hidden_states, received, sent),
            all_to_all(self.ep_group, probs, received, sent),
        )

    def dispatch_postprocess(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows sorted by local expert, tokens per local expert on the device, and probabilities."""
        if self._plan is None:
            return hidden_states, self._permutation.tokens_per_expert, probs
        if self.num_local_experts > 1:
            order, inverse = self._received_order = self._plan.expert_order(hidden_states.shape[0])
            hidden_states, probs = gather_rows(hidden_states, order, inverse), gather_rows(probs, order, inverse)
        return hidden_states, self._plan.rows_per_source.sum(0), probs

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
