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
from megatron.core.tensor_parallel import all_to_all
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from torch import Tensor

from .rows import Permutation, build_permutation, gather_rows, invert_permutation, pack_rows, unpack_rows


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
        return order, invert_permutation(order)


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
