"""The experts of one rank as grouped GEMMs, with one pointwise kernel between them, on plain torch operators.

Megatron-Core's local spec would run the experts one after another (`SequentialMLP`); its grouped GEMM needs an
extension. Here one call multiplies each expert's rows with that expert's matrix (`grouped_gemm`), forward and backward,
also for experts without rows. No row is padding. Every gradient is a grouped GEMM of tensors in their given memory
layout, so sums over the rows of an expert are never atomic additions.

Rows are (token, expert) pairs sorted by local expert, as the token dispatcher leaves them.
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
from .grouped_gemm import allow_rocm_kernel, project, sum_by_expert, weight_gradient

# Clamped SwiGLU of the released gpt-oss (arXiv 2508.10925; transformers, GptOssExperts):
# gate * sigmoid(1.702 gate) * (up + 1) with gate clamped from above at 7 and up clamped to [-7, 7].
SWIGLU_ALPHA = 1.702
SWIGLU_LIMIT = 7.0


def _gate_and_up(gate_up: Tensor, bias: Tensor | None, expert_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return gate and up in fp32, each [rows, ffn], with the bias [experts, 2 x ffn] of each row's expert added."""
    gate_up = gate_up.float()
    if bias is not None:
        gate_up = gate_up + bias[expert_ids]
    gate, up = gate_up.chunk(2, dim=-1)
    return gate, up


def _swiglu_factors(gate: Tensor, up: Tensor, clamped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the argument of silu, the linear factor and the gated factor, each [rows, ffn].

    The activation is linear factor x gated factor, and the gated factor is silu of the argument (over alpha).
    """
    if not clamped:
        return gate, up, F.silu(gate)
    # g * sigmoid(alpha * g) = silu(alpha * g) / alpha
    gate = SWIGLU_ALPHA * gate.clamp(max=SWIGLU_LIMIT)
    return gate, up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT) + 1, F.silu(gate) / SWIGLU_ALPHA


@fused()
def weighted_swiglu(
    gate_up: Tensor, probs: Tensor, bias: Tensor | None, expert_ids: Tensor | None, clamped: bool
) -> Tensor:
    """Return SwiGLU, or the released gpt-oss's clamped variant, times each row's routing probability.

    Args:
        gate_up: [rows, 2 x ffn], the gate first.
        probs: [rows] fp32.
        bias: [experts, 2 x ffn] to add to ``gate_up``, or None.
        expert_ids: [rows] the local expert of each row, for ``bias``, or None.
        clamped: compute the released gpt-oss's activation.

    Returns:
        [rows, ffn] of gate_up's dtype, computed in fp32 and rounded once.
    """
    _, up, gated = _swiglu_factors(*_gate_and_up(gate_up, bias, expert_ids), clamped)
    hidden = gated * up
    hidden *= probs[:, None]
    return hidden.to(gate_up.dtype)


@fused()
def weighted_swiglu_backward(
    grad: Tensor, gate_up: Tensor, probs: Tensor, bias: Tensor | None, expert_ids: Tensor | None, clamped: bool
) -> tuple[Tensor, Tensor]:
    """Return `weighted_swiglu`'s gradients of ``gate_up`` and ``probs`` (fp32), given its result's gradient."""
    gate, up = _gate_and_up(gate_up, bias, expert_ids)
    # clamp has derivative 0 outside its limits.
    unclamped = (gate <= SWIGLU_LIMIT, up.abs() <= SWIGLU_LIMIT) if clamped else None
    gate, up, gated = _swiglu_factors(gate, up, clamped)
    grad = grad.float()
    grad_up = grad * gated
    grad_probs = (grad_up * up).sum(-1)
    # In place: on a CPU nothing is fused, and new memory costs more than the arithmetic.
    grad_up *= probs[:, None]
    grad_gate = grad * up
    grad_gate *= probs[:, None]
    # d/dg silu(alpha g) / alpha = silu'(alpha g): the factors of alpha cancel.
    grad_gate = torch.ops.aten.silu_backward(grad_gate, gate)
    if unclamped is not None:
        grad_gate, grad_up = grad_gate * unclamped[0], grad_up * unclamped[1]
    return torch.cat([grad_gate, grad_up], dim=-1).to(gate_up.dtype), grad_probs


@fused()
def _add_weighted_bias(rows: Tensor, probs: Tensor, bias: Tensor, expert_ids: Tensor) -> Tensor:
    """Add to rows [rows, hidden] the bias [experts, hidden] of each row's expert times the row's probability."""
    return (rows.float() + bias[expert_ids] * probs[:, None]).to(rows.dtype)


@fused()
def _bias_probs_grad(grad: Tensor, bias: Tensor, expert_ids: Tensor) -> Tensor:
    """Return the gradient [rows] fp32 of the probabilities through the bias: each grad row dot its expert's bias."""
    return (grad.float() * bias[expert_ids]).sum(-1)


class _ActivateAndProject(torch.autograd.Function):
    """Activation, routing probability and down projection: from the up projection's result to the experts' output.

    One function, because autograd would keep every intermediate. Of tensors with as many rows as the input it keeps
    gate_up and, unless that is recomputed, the activation, which the down projection's weight gradient needs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gate_up: Tensor,
        probs: Tensor,
        up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
        offsets: Tensor,
        unused: Tensor,
        expert_ids: Tensor | None,
        clamped: bool,
        recompute: bool,
    ) -> Tensor:
        # Detached: torch.compile would specialize kernels for arguments that require gradients, which those of
        # recomputed layers do not.
        gate_up, probs, down = gate_up.detach(), probs.detach(), down.detach()
        up_bias, down_bias = (bias if bias is None else bias.detach() for bias in (up_bias, down_bias))
        hidden = weighted_swiglu(gate_up, probs, up_bias, expert_ids, clamped)
        out = F.grouped_mm(hidden, down.transpose(-2, -1), offs=offsets)
        if down_bias is not None and expert_ids is not None:
            out = _add_weighted_bias(out, probs, down_bias, expert_ids)
        ctx.clamped = clamped
        saved_hidden = None if recompute else hidden
        ctx.save_for_backward(gate_up, probs, up_bias, down, down_bias, offsets, unused, expert_ids, saved_hidden)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, probs, up_bias, down, down_bias, offsets, unused, expert_ids, hidden = ctx.saved_tensors
        grad = grads[0].contiguous()
        if hidden is None:
            # The forward pass's own kernel, so that the result is bit-identical.
            hidden = weighted_swiglu(gate_up, probs, up_bias, expert_ids, ctx.clamped)
        grad_down = weight_gradient(grad, hidden, offsets, unused)
        del hidden  # frees its memory before the next tensor of this size
        grad_hidden = F.grouped_mm(grad, down, offs=offsets)
        grad_gate_up, grad_probs = weighted_swiglu_backward(
            grad_hidden, gate_up, probs, up_bias, expert_ids, ctx.clamped
        )
        grad_up_bias = grad_down_bias = None
        if up_bias is not None:
            grad_up_bias = sum_by_expert(grad_gate_up, torch.ones_like(probs), offsets, unused)
        if down_bias is not None:
            grad_down_bias = sum_by_expert(grad, probs, offsets, unused)
            grad_probs = grad_probs + _bias_probs_grad(grad, down_bias, expert_ids)
        return grad_gate_up, grad_probs, grad_up_bias, grad_down, grad_down_bias, None, None, None, None, None


class GroupedLinear(nn.Module):
    """One matrix (and bias) per local expert: weight [experts, out, in], bias [experts, out] or None.

    The caller adds the bias, as with Megatron's ``skip_bias_add``: the activation's kernel adds that of the up
    projection.
    """

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool, device: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(experts, outputs, device=device, dtype=dtype)) if bias else None
        for parameter in self.parameters():
            # Megatron's DDP then reduces these only over the ranks that hold the same experts.
            setattr(parameter, "allreduce", False)  # noqa: B010 - an attribute torch does not declare

    def forward(self, rows: Tensor, offsets: Tensor, unused: Tensor) -> Tensor:
        """Project rows [rows, in] sorted by expert to [rows, out].

        ``offsets`` int32 [experts] end the groups, and ``unused`` [experts] marks experts without rows.
        """
        return project(rows, self.weight, offsets, unused)


class WeightedDownProjection(GroupedLinear):
    """The down projection with the activation before it and the routing probability on both."""

    def __init__(self, *shape: Any, clamped: bool, recompute: bool, **options: Any) -> None:
        super().__init__(*shape, **options)
        self.clamped, self.recompute = clamped, recompute

    def forward(  # type: ignore[override]
        self,
        gate_up: Tensor,
        offsets: Tensor,
        unused: Tensor,
        probs: Tensor,
        up_bias: Tensor | None,
        expert_ids: Tensor | None,
    ) -> Tensor:
        """Return the weighted output [rows, out] of ``gate_up`` [rows, 2 x in], to which ``up_bias`` is added."""
        out: Tensor = _ActivateAndProject.apply(  # type: ignore[no-untyped-call]
            gate_up, probs, up_bias, self.weight, self.bias, offsets, unused, expert_ids, self.clamped, self.recompute
        )
        return out


class GroupedExperts(MegatronModule):
    """Gated feed-forward experts for Megatron-Core's experts slot, weighted by their routing probability.

    Reads from the TransformerConfig: hidden_size, moe_ffn_hidden_size, add_bias_linear, params_dtype,
    activation_func_clamp_value (set for the released gpt-oss's activation, None for SwiGLU), and recompute_modules:
    "moe_act" recomputes the activation in the backward pass.
    """

    def __init__(self, num_local_experts: int, config: Any, **_unused: Any) -> None:
        super().__init__(config=config)
        allow_rocm_kernel()
        # None leaves the choice to the caller's torch.device context: the meta device when only counting.
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        hidden, ffn = config.hidden_size, config.moe_ffn_hidden_size
        options = {"bias": config.add_bias_linear, "device": device, "dtype": config.params_dtype}
        self.num_local_experts = num_local_experts
        self.linear_fc1 = GroupedLinear(num_local_experts, hidden, 2 * ffn, **options)
        self.linear_fc2 = WeightedDownProjection(
            num_local_experts,
            ffn,
            hidden,
            clamped=config.activation_func_clamp_value is not None,
            recompute=config.recompute_granularity == "selective" and "moe_act" in config.recompute_modules,
            **options,
        )

    def forward(self, rows: Tensor, tokens_per_expert: Tensor, probs: Tensor) -> tuple[Tensor, None]:
        """Return the weighted output [rows, hidden] and None for the bias.

        Args:
            rows: [rows, hidden] sorted by local expert.
            tokens_per_expert: [local experts] on the rows' device. Nothing here reads it on the host.
            probs: [rows] fp32 routing probabilities.
        """
        offsets, unused = tokens_per_expert.cumsum(0, dtype=torch.int32), tokens_per_expert == 0
        expert_ids = None
        if self.linear_fc1.bias is not None:
            row_numbers = torch.arange(rows.shape[0], device=rows.device, dtype=torch.int32)
            # A row belongs to the first expert whose rows end after it.
            expert_ids = torch.searchsorted(offsets, row_numbers, right=True)
        gate_up = self.linear_fc1(rows, offsets, unused)
        return self.linear_fc2(gate_up, offsets, unused, probs, self.linear_fc1.bias, expert_ids), None

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, ShardedTensor]:
        """Return this rank's tensors for a checkpoint, each as a slice of all experts' tensor along its first axis.

        ``sharded_offsets`` are Megatron-Core's (axis, position, size) of the prepended axes: the layers'.
        """
        axis = len(sharded_offsets)
        ranks = parallel_state.get_expert_model_parallel_world_size()
        rank = parallel_state.get_expert_model_parallel_rank()
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
