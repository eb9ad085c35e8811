"""The experts of one rank as two grouped GEMMs, on plain torch operators.

Megatron-Core's local spec would run the experts one after another (`SequentialMLP`); its grouped GEMM needs an
extension. `torch.nn.functional.grouped_mm` multiplies each expert's rows with its own matrix in one call, on CUDA, ROCm
and the CPU, forward and backward, empty experts included.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

# The released gpt-oss: gate * sigmoid(1.702 gate) * (up + 1), gate clamped above, up clamped on both sides.
SIGMOID_SLOPE = 1.702
CLAMP = 7.0


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, with ``gate_up`` [rows, 2 x ffn] holding the gate first. Returns [rows, ffn]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def clamped_swiglu(gate_up: Tensor) -> Tensor:
    """The released gpt-oss's activation; ``gate_up`` [rows, 2 x ffn] holds the gate first. Returns [rows, ffn]."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=CLAMP), up.clamp(min=-CLAMP, max=CLAMP)
    return gate * torch.sigmoid(SIGMOID_SLOPE * gate) * (up + 1)


class GroupedLinear(nn.Module):
    """One matrix (and bias) per local expert: weight [experts, out, in], bias [experts, out] or None.

    The bias is left to the caller to add, as Megatron's linear layers can be told to: on the way out of the experts it
    must be weighted by the routing probability.
    """

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool, device: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(experts, outputs, device=device, dtype=dtype)) if bias else None
        for parameter in self.parameters():
            # Tells Megatron's DDP to reduce these over the ranks that hold the same experts only.
            setattr(parameter, "allreduce", False)  # noqa: B010 - an attribute torch does not declare

    def forward(self, rows: Tensor, group_ends: Tensor) -> Tensor:
        """Rows [rows, in] sorted by expert -> [rows, out]; ``group_ends`` int32 [experts] ends of the groups."""
        return F.grouped_mm(rows, self.weight.transpose(-2, -1), offs=group_ends)


class GroupedExperts(MegatronModule):
    """Megatron-Core's experts slot: gated feed-forward experts, weighted by their routing probability.

    Reads from the TransformerConfig: hidden_size, moe_ffn_hidden_size, activation_func_clamp_value (set for the
    released gpt-oss's activation, None for SwiGLU), add_bias_linear, params_dtype.
    """

    def __init__(self, num_local_experts: int, config: Any, **_unused: Any) -> None:
        super().__init__(config=config)
        # None leaves the choice to the caller's torch.device context: the meta device when only counting.
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        hidden, ffn = config.hidden_size, config.moe_ffn_hidden_size
        kind = {"bias": config.add_bias_linear, "device": device, "dtype": config.params_dtype}
        self.num_local_experts = num_local_experts
        self.activation = clamped_swiglu if config.activation_func_clamp_value else swiglu
        self.linear_fc1 = GroupedLinear(num_local_experts, hidden, 2 * ffn, **kind)
        self.linear_fc2 = GroupedLinear(num_local_experts, ffn, hidden, **kind)

    def forward(self, rows: Tensor, rows_per_expert: Tensor, probabilities: Tensor) -> tuple[Tensor, None]:
        """Rows [rows, hidden] sorted by local expert, counts [experts], weights [rows] -> ([rows, hidden], None)."""
        counts = rows_per_expert.to(rows.device, non_blocking=True)
        group_ends = counts.cumsum(0).to(torch.int32)
        weights = probabilities[:, None]
        gate_up = self.linear_fc1(rows, group_ends)
        if self.linear_fc1.bias is None or self.linear_fc2.bias is None:
            # The router's probabilities are fp32; the product is rounded to the layers' precision once.
            return self.linear_fc2((self.activation(gate_up) * weights).to(rows.dtype), group_ends), None
        expert_of_row = torch.repeat_interleave(counts, output_size=rows.shape[0])
        hidden = self.activation(gate_up + self.linear_fc1.bias[expert_of_row])
        out = self.linear_fc2((hidden * weights).to(rows.dtype), group_ends)
        return out + (self.linear_fc2.bias[expert_of_row] * weights).to(rows.dtype), None

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, ShardedTensor]:
        """What a checkpoint holds of these experts: each tensor as a slice, along its first axis, of all experts'.

        ``sharded_offsets`` are Megatron-Core's: (axis, position, size) of the axes put in front, the layers'.
        """
        axis = len(sharded_offsets)
        ranks, rank = (
            parallel_state.get_expert_model_parallel_world_size(),
            parallel_state.get_expert_model_parallel_rank(),
        )
        return {
            prefix + name: ShardedTensor.from_rank_offsets(
                prefix + name,
                tensor,
                *sharded_offsets,
                (axis, rank, ranks),
                replica_id=(0, 0, parallel_state.get_expert_data_parallel_rank()),
                prepend_axis_num=axis,
            )
            for name, tensor in self.state_dict(keep_vars=True).items()
        }
