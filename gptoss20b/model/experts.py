"""The experts of one rank as grouped GEMMs with one pointwise kernel between them, on plain torch operators.

Megatron-Core's local spec would run the experts one after another (`SequentialMLP`); its grouped GEMM needs an
extension. `torch.nn.functional.grouped_mm` multiplies each expert's rows with its own matrix in one call, on CUDA, ROCm
and the CPU, forward and backward, empty experts included. Group ends stay on the device, no row is padding, and every
gradient is a grouped GEMM of the tensors as they lie: sums over the rows of an expert are never atomic additions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from .fused import fused

# The released gpt-oss: gate * sigmoid(1.702 gate) * (up + 1), gate clamped above, up clamped on both sides.
SIGMOID_SLOPE = 1.702
CLAMP = 7.0
# Rows of a grouped GEMM's operands start at multiples of 16 bytes: 8 numbers of bf16, and of fp32.
_ALIGNED_COLUMNS = 8


def _gate_and_up(gate_up: Tensor, bias: Tensor | None, expert_of_row: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both halves in fp32, each [rows, ffn], with the bias [experts, 2 x ffn] of each row's expert added."""
    gate_up = gate_up.float()
    if bias is not None:
        gate_up = gate_up + bias[expert_of_row]
    gate, up = gate_up.chunk(2, dim=-1)
    return gate, up


def _gated(gate: Tensor, up: Tensor, clamped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The argument of silu, the factor that multiplies it, and what the factor multiplies, each [rows, ffn]."""
    if not clamped:
        return gate, up, F.silu(gate)
    # g * sigmoid(slope * g) is silu(slope * g) / slope.
    gate = SIGMOID_SLOPE * gate.clamp(max=CLAMP)
    return gate, up.clamp(-CLAMP, CLAMP) + 1, F.silu(gate) / SIGMOID_SLOPE


@fused()
def weighted_activation(
    gate_up: Tensor, weights: Tensor, bias: Tensor | None, expert_of_row: Tensor | None, clamped: bool
) -> Tensor:
    """SwiGLU, or the released gpt-oss's clamped variant, times each row's routing probability.

    Args:
        gate_up: [rows, 2 x ffn], the gate first.
        weights: [rows] fp32.
        bias: [experts, 2 x ffn] to add to ``gate_up`` by ``expert_of_row`` [rows], or None twice.
        clamped: the released gpt-oss's activation.

    Returns:
        [rows, ffn] of gate_up's type: fp32 inside, rounded once.
    """
    _, up, gated = _gated(*_gate_and_up(gate_up, bias, expert_of_row), clamped)
    hidden = gated * up
    hidden *= weights[:, None]
    return hidden.to(gate_up.dtype)


@fused()
def weighted_activation_backward(
    grad: Tensor, gate_up: Tensor, weights: Tensor, bias: Tensor | None, expert_of_row: Tensor | None, clamped: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of `weighted_activation` from its result's [rows, ffn]: of gate_up, and of the weights (fp32)."""
    gate, up = _gate_and_up(gate_up, bias, expert_of_row)
    moves = (gate <= CLAMP, up.abs() <= CLAMP) if clamped else None
    gate, up, gated = _gated(gate, up, clamped)
    grad = grad.float()
    grad_up = grad * gated
    grad_weights = (grad_up * up).sum(-1)
    # In place, because on a CPU, where nothing is fused, new memory costs more than the arithmetic.
    grad_up *= weights[:, None]
    grad_gate = grad * up
    grad_gate *= weights[:, None]
    grad_gate = torch.ops.aten.silu_backward(grad_gate, gate)
    if moves is not None:
        grad_gate, grad_up = grad_gate * moves[0], grad_up * moves[1]
    return torch.cat([grad_gate, grad_up], dim=-1).to(gate_up.dtype), grad_weights


@fused()
def _add_weighted_bias(rows: Tensor, weights: Tensor, bias: Tensor, expert_of_row: Tensor) -> Tensor:
    """Rows [rows, hidden] plus bias [experts, hidden] of each row's expert times its weight [rows]."""
    return (rows.float() + bias[expert_of_row] * weights[:, None]).to(rows.dtype)


@fused()
def _bias_along(grad: Tensor, bias: Tensor, expert_of_row: Tensor) -> Tensor:
    """[rows] fp32: each row of grad [rows, hidden] times its expert's bias: the gradient of the bias's weight."""
    return (grad.float() * bias[expert_of_row]).sum(-1)


def _sum_by_expert(rows: Tensor, factors: Tensor, group_ends: Tensor) -> Tensor:
    """[experts, columns]: each expert's sum of rows [rows, columns] times factors [rows]; fp32 sums, rounded once.

    A grouped GEMM whose other operand holds the factors in its first column: indexed additions would be atomic, or
    sort their indices first.
    """
    column = F.pad(factors.to(rows.dtype)[:, None], (0, _ALIGNED_COLUMNS - 1))
    return F.grouped_mm(column.T, rows, offs=group_ends)[:, 0]


class _ActivateAndProject(torch.autograd.Function):
    """From the up projection's result to the experts' output: activation, routing weight, down projection.

    One function, because autograd would keep every step between: of tensors as long as the rows it keeps gate_up and,
    unless it is to be computed again, the activation, which the down projection's weight gradient needs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gate_up: Tensor,
        weights: Tensor,
        up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
        group_ends: Tensor,
        expert_of_row: Tensor | None,
        clamped: bool,
        recompute: bool,
    ) -> Tensor:
        # Kernels are compiled once more for arguments that require gradients, which recomputed layers' do not.
        gate_up, weights, down = gate_up.detach(), weights.detach(), down.detach()
        up_bias, down_bias = (bias if bias is None else bias.detach() for bias in (up_bias, down_bias))
        hidden = weighted_activation(gate_up, weights, up_bias, expert_of_row, clamped)
        out = F.grouped_mm(hidden, down.transpose(-2, -1), offs=group_ends)
        if down_bias is not None and expert_of_row is not None:
            out = _add_weighted_bias(out, weights, down_bias, expert_of_row)
        ctx.clamped = clamped
        kept = None if recompute else hidden
        ctx.save_for_backward(gate_up, weights, up_bias, down, down_bias, group_ends, expert_of_row, kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, weights, up_bias, down, down_bias, group_ends, expert_of_row, hidden = ctx.saved_tensors
        grad = grads[0].contiguous()
        if hidden is None:
            # The forward pass's own kernel, so that the result is the same to the bit.
            hidden = weighted_activation(gate_up, weights, up_bias, expert_of_row, ctx.clamped)
        grad_down = F.grouped_mm(grad.T, hidden, offs=group_ends)
        del hidden
        grad_hidden = F.grouped_mm(grad, down, offs=group_ends)
        grad_gate_up, grad_weights = weighted_activation_backward(
            grad_hidden, gate_up, weights, up_bias, expert_of_row, ctx.clamped
        )
        grad_up_bias = grad_down_bias = None
        if up_bias is not None:
            grad_up_bias = _sum_by_expert(grad_gate_up, torch.ones_like(weights), group_ends)
        if down_bias is not None:
            grad_down_bias = _sum_by_expert(grad, weights, group_ends)
            grad_weights = grad_weights + _bias_along(grad, down_bias, expert_of_row)
        return grad_gate_up, grad_weights, grad_up_bias, grad_down, grad_down_bias, None, None, None, None


class GroupedLinear(nn.Module):
    """One matrix (and bias) per local expert: weight [experts, out, in], bias [experts, out] or None.

    The bias is left to the caller to add, as Megatron's linear layers can be told to: on the way into the activation,
    with the activation, in one kernel.
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


class GatedGroupedLinear(GroupedLinear):
    """The down projection with the activation before it and the routing weight on both (`_ActivateAndProject`)."""

    def __init__(self, *shape: Any, clamped: bool, recompute: bool, **kind: Any) -> None:
        super().__init__(*shape, **kind)
        self.clamped, self.recompute = clamped, recompute

    def forward(  # type: ignore[override]
        self,
        gate_up: Tensor,
        group_ends: Tensor,
        weights: Tensor,
        up_bias: Tensor | None,
        expert_of_row: Tensor | None,
    ) -> Tensor:
        """[rows, 2 x in] without its bias [experts, 2 x in], ``weights`` [rows] fp32 -> weighted output [rows, out]."""
        out: Tensor = _ActivateAndProject.apply(  # type: ignore[no-untyped-call]
            gate_up,
            weights,
            up_bias,
            self.weight,
            self.bias,
            group_ends,
            expert_of_row,
            self.clamped,
            self.recompute,
        )
        return out


class GroupedExperts(MegatronModule):
    """Megatron-Core's experts slot: gated feed-forward experts, weighted by their routing probability.

    Reads from the TransformerConfig: hidden_size, moe_ffn_hidden_size, activation_func_clamp_value (set for the
    released gpt-oss's activation, None for SwiGLU), add_bias_linear, params_dtype, and whether the selectively
    recomputed modules include "moe_act": then the activation is computed again in the backward pass.
    """

    def __init__(self, num_local_experts: int, config: Any, **_unused: Any) -> None:
        super().__init__(config=config)
        # None leaves the choice to the caller's torch.device context: the meta device when only counting.
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        hidden, ffn = config.hidden_size, config.moe_ffn_hidden_size
        kind = {"bias": config.add_bias_linear, "device": device, "dtype": config.params_dtype}
        self.num_local_experts = num_local_experts
        self.linear_fc1 = GroupedLinear(num_local_experts, hidden, 2 * ffn, **kind)
        self.linear_fc2 = GatedGroupedLinear(
            num_local_experts,
            ffn,
            hidden,
            clamped=config.activation_func_clamp_value is not None,
            recompute=config.recompute_granularity == "selective" and "moe_act" in config.recompute_modules,
            **kind,
        )

    def forward(self, rows: Tensor, rows_per_expert: Tensor, probabilities: Tensor) -> tuple[Tensor, None]:
        """Rows [rows, hidden] sorted by local expert, weights [rows] fp32 -> (weighted output [rows, hidden], None).

        ``rows_per_expert`` [experts] lies on the rows' device: nothing here waits for the device.
        """
        group_ends = rows_per_expert.cumsum(0, dtype=torch.int32)
        expert_of_row = None
        if self.linear_fc1.bias is not None:
            numbers = torch.arange(rows.shape[0], device=rows.device, dtype=torch.int32)
            expert_of_row = torch.searchsorted(group_ends, numbers, right=True)
        gate_up = self.linear_fc1(rows, group_ends)
        return self.linear_fc2(gate_up, group_ends, probabilities, self.linear_fc1.bias, expert_of_row), None

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
