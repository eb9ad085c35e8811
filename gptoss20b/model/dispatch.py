"""Rows sorted by expert on the device, sent to the ranks of their experts, and summed back into tokens.

Takes the place of Megatron-Core's all-to-all dispatcher under the same interface. That one reads the rows of each
expert back to the host, in version 0.16 selects rows by boolean masks as well, and adds rows back by index,
atomically. Here every index is counted on the device, rows are copied by one gather in each direction, and sums are
gathers too, so that results are the same from run to run. With one rank per expert group the host waits for
nothing; with more, once per layer and forward pass, for the sizes of the messages. Where the layer is computed again
(RECOMPUTE moe or layers), it waits once more, in the backward pass.

Rows are ordered by expert, then by token; received rows by expert, then by sending rank, then by token.
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
class Order:
    """Where each row comes from and where each token's rows are. A choice is a token's j-th expert, by number.

    Attributes:
        expert_of_choice: [tokens, top_k].
        row_of_choice: [tokens, top_k].
        choice_of_row: [rows] numbers of choices, token x top_k + j.
        token_of_row: [rows].
        rows_per_expert: [experts].
    """

    expert_of_choice: Tensor
    row_of_choice: Tensor
    choice_of_row: Tensor
    token_of_row: Tensor
    rows_per_expert: Tensor


def sort_by_expert(routing_map: Tensor, top_k: int) -> Order:
    """The order of the rows of all (token, expert) pairs, on the device and without waiting for it.

    Args:
        routing_map: [tokens, experts] booleans, exactly ``top_k`` of them true for each token.
    """
    tokens, experts = routing_map.shape
    device = routing_map.device
    # Rows up to and including each pair, expert after expert and within an expert token after token.
    rows_so_far = routing_map.T.reshape(-1).cumsum(0).view(experts, tokens)
    # The j-th expert of a token is the first at which more than j have been counted.
    choices = torch.arange(top_k, device=device).repeat(tokens, 1)
    expert_of_choice = torch.searchsorted(routing_map.cumsum(1), choices, right=True)
    row_of_choice = (rows_so_far.T - 1).gather(1, expert_of_choice)
    choice_of_row = _inverse(row_of_choice.flatten())
    return Order(
        expert_of_choice=expert_of_choice,
        row_of_choice=row_of_choice,
        choice_of_row=choice_of_row,
        token_of_row=choice_of_row // top_k,
        rows_per_expert=rows_so_far[:, -1].diff(prepend=rows_so_far.new_zeros(1)),
    )


def _inverse(permutation: Tensor) -> Tensor:
    """[n] of [n]: where each number stands."""
    numbers = torch.arange(permutation.shape[0], device=permutation.device)
    return torch.empty_like(permutation).scatter_(0, permutation, numbers)


@fused()
def _sum_rows(x: Tensor, index: Tensor) -> Tensor:
    """[n, columns]: for each row of index [n, k] the sum of those k rows of x, in fp32, rounded once."""
    return x[index].sum(1, dtype=torch.float32).to(x.dtype)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    return x[index] if index.dim() == 1 else _sum_rows(x, index)


class _GatherRows(torch.autograd.Function):
    """See `gather_rows`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        # Detached: in the backward pass the same kernel takes what requires no gradients.
        return _gather(x.detach(), index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _gather(grads[0], inverse), None, None


def gather_rows(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Rows of x by index [n], or sums of k rows by index [n, k]; the gradient is the same by ``inverse``.

    Args:
        x: [m] or [m, columns].
        index: what each row of the result takes.
        inverse: for each row of x, which rows of the result took it: [m] if one, [m, k] if k did.
    """
    out: Tensor = _GatherRows.apply(x, index, inverse)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class Exchange:
    """What an expert-parallel rank knows of the rows that all send each other, once the counts are exchanged.

    Attributes:
        rows_per_source: [ranks, local experts] rows that arrive, on the device.
        splits: [2, ranks] rows sent to and received from each rank, on the host once ``ready`` has come.
        ready: an event of the device; None where the host has nothing to wait for.
    """

    rows_per_source: Tensor
    splits: Tensor
    ready: torch.cuda.Event | None

    @classmethod
    def begin(cls, rows_per_expert: Tensor, group: Any) -> Exchange:
        """Tell every rank of ``group`` how many rows its experts get from here; collective."""
        sent = rows_per_expert.view(group.size(), -1)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        # From a GPU a copy that does not block goes to pinned memory.
        splits = torch.stack([sent.sum(1), received.sum(1)]).to("cpu", non_blocking=True)
        ready = None
        if sent.is_cuda:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        return cls(received, splits, ready)

    def sizes(self) -> tuple[list[int], list[int]]:
        """Rows to send to and to receive from each rank. Waits for the copy, not for what was started after it."""
        if self.ready is not None:
            self.ready.synchronize()
        sent, received = self.splits.tolist()
        return sent, received

    def order(self, rows: int) -> tuple[Tensor, Tensor]:
        """The arrived row that each of ``rows`` sorted rows is, and the sorted row that each arrived one is."""
        # Rows arrive by source, then by expert; each such chunk moves as a whole.
        arriving = self.rows_per_source.flatten()
        starts = (arriving.cumsum(0) - arriving).view_as(self.rows_per_source).T.flatten()
        sizes = self.rows_per_source.T.flatten()
        ends = sizes.cumsum(0)
        numbers = torch.arange(rows, device=ends.device)
        chunk = torch.searchsorted(ends, numbers, right=True)
        order = numbers + (starts - ends + sizes)[chunk]
        return order, _inverse(order)


class SortingDispatcher(MoETokenDispatcher):
    """Megatron-Core's token dispatcher by sorting, for experts on one rank or spread over an all-to-all.

    Reads from the TransformerConfig: num_moe_experts, moe_router_topk. Every token goes to exactly that many experts:
    rows are neither dropped nor padded. Like Megatron-Core's dispatchers it remembers the order of the rows from
    dispatch_preprocess to combine_postprocess of one forward pass.
    """

    _order: Order
    _exchange: Exchange | None
    _arrival: tuple[Tensor, Tensor]
    _shape: torch.Size

    def __init__(self, config: Any, groups: Any = None) -> None:
        """``groups`` is Megatron-Core's collection of process groups, of its parallel state if None."""
        super().__init__(config=config, pg_collection=groups or get_default_pg_collection())
        if self.tp_size > 1:
            raise ValueError(f"got experts split over {self.tp_size} tensor parallel ranks, expected whole ones")
        self.local_experts = config.num_moe_experts // self.ep_size

    def dispatch_preprocess(self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Sort this rank's rows by expert.

        Args:
            hidden_states: [sequence, batch, hidden].
            routing_map: [tokens, experts] booleans.
            probs: [tokens, experts] fp32.

        Returns:
            Rows [tokens x top_k, hidden] and their probabilities [tokens x top_k].
        """
        self._shape = hidden_states.shape
        order = self._order = sort_by_expert(routing_map, self.config.moe_router_topk)
        # Begun before the rows are copied, so that the sizes are on the host by the time they are needed.
        self._exchange = Exchange.begin(order.rows_per_expert, self.ep_group) if self.ep_size > 1 else None
        rows = gather_rows(hidden_states.reshape(-1, self._shape[-1]), order.token_of_row, order.row_of_choice)
        # The gradient adds each choice to an element of its own, so that its atomic additions have one order.
        chosen = probs.gather(1, order.expert_of_choice).flatten()
        return rows, gather_rows(chosen, order.choice_of_row, order.row_of_choice.flatten())

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Send rows and probabilities to the ranks of their experts; as they are if that is this rank."""
        if self._exchange is None:
            return hidden_states, probs
        sent, received = self._exchange.sizes()
        # Two messages: the probabilities are fp32, and less than a thousandth of the bytes.
        return (
            all_to_all(self.ep_group, hidden_states, received, sent),
            all_to_all(self.ep_group, probs, received, sent),
        )

    def dispatch_postprocess(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows sorted by local expert, rows of each of these [local experts] on the device, and probabilities."""
        if self._exchange is None:
            return hidden_states, self._order.rows_per_expert, probs
        if self.local_experts > 1:
            order, inverse = self._arrival = self._exchange.order(hidden_states.shape[0])
            hidden_states, probs = gather_rows(hidden_states, order, inverse), gather_rows(probs, order, inverse)
        return hidden_states, self._exchange.rows_per_source.sum(0), probs

    def combine_preprocess(self, hidden_states: Tensor) -> Tensor:
        """The experts' output in the order in which the rows arrived."""
        if self._exchange is None or self.local_experts == 1:
            return hidden_states
        order, inverse = self._arrival
        return gather_rows(hidden_states, inverse, order)

    def token_combine(self, hidden_states: Tensor) -> Tensor:
        """Send the rows back to the ranks of their tokens."""
        if self._exchange is None:
            return hidden_states
        sent, received = self._exchange.sizes()
        out: Tensor = all_to_all(self.ep_group, hidden_states, sent, received)
        return out

    def combine_postprocess(self, hidden_states: Tensor) -> Tensor:
        """Each token's sum over its experts, in their order: [sequence, batch, hidden]."""
        return gather_rows(hidden_states, self._order.row_of_choice, self._order.token_of_row).view(self._shape)
