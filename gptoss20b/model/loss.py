"""Fused linear cross entropy: the sum of all tokens' losses without the logits of all tokens.

The logits of a micro batch are by far the largest tensor of a step: 4.2 GB in bf16 for two sequences of 8,192 tokens
and a vocabulary of 128,256, and as much again for their gradient. Here one chunk of tokens at a time is multiplied,
reduced to its losses and turned into gradients at once. The backward pass multiplies no matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fused import fused

# Limit of a chunk's logits in fp32. On a GPU they exist in bf16 only, once as logits and once as gradients. With a
# vocabulary of 128,256 a chunk is 2,048 tokens: large enough matrix products for any GPU. Each chunk reads and writes
# the weight's gradient (1.5 GB in fp32) once.
MAX_LOGITS_BYTES = 2**30


def chunk_size(tokens: int, vocab_size: int) -> int:
    """Return the tokens per chunk: nearly equal chunks with at most `MAX_LOGITS_BYTES` of logits, or one token's."""
    max_chunk = max(1, MAX_LOGITS_BYTES // (4 * vocab_size))
    return math.ceil(tokens / math.ceil(tokens / max_chunk))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, chunk: int | None = None
) -> Tensor:
    """Return the sum over tokens of mask x cross entropy of hidden @ weight.T, in nats.

    Logits are rounded to the dtype of ``hidden``; all arithmetic on them is fp32.

    Args:
        hidden: [tokens, width].
        weight: [vocabulary, width], of the same dtype: bf16 or fp32.
        labels: int64 [tokens], each below the vocabulary size, also where masked.
        mask: [tokens], 1 for a counted token and 0 for a masked one; any weight is allowed.
        chunk: tokens whose logits exist at a time; `chunk_size` by default.

    Returns:
        fp64 scalar.
    """
    chunk = chunk or chunk_size(hidden.shape[0], weight.shape[0])
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, labels, mask.float(), chunk)  # type: ignore[no-any-return, no-untyped-call]
    total = hidden.new_zeros((), dtype=torch.float64)
    for h, label, m in _split_chunks(chunk, hidden, labels, mask.float()):
        total += _chunk_losses(h @ weight.T, label, m).sum(dtype=torch.float64)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy` with gradients, which forward computes and backward scales."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, chunk: int) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float64)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for h, label, m, grad_h in _split_chunks(chunk, hidden, labels, mask, grad_hidden):
            losses, grad_logits = _chunk_losses_and_grad(h @ weight.T, label, m)
            total += losses.sum(dtype=torch.float64)
            torch.mm(grad_logits, weight, out=grad_h)
            accumulate_product(grad_weight, grad_logits.T, h)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # Scale and round to the weight's dtype in one pass.
        rounded = torch.empty_like(grad_weight, dtype=grad_hidden.dtype)
        return grad_hidden * grad_total, torch.mul(grad_weight, grad_total, out=rounded), None, None, None


def _split_chunks(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield each chunk of ``rows`` rows as views of all tensors."""
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def _masked_losses(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses x mask [rows] and the log-sum-exp [rows] of fp32 logits [rows, vocabulary]."""
    log_sum_exp = logits.logsumexp(dim=-1)
    return (log_sum_exp - logits.gather(-1, labels[:, None]).squeeze(-1)) * mask, log_sum_exp


@fused()
def _chunk_losses(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return _masked_losses(logits.float(), labels, mask)[0]


@fused()
def _chunk_losses_and_grad(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses x mask, fp32 [rows], and the gradient of their sum, of the logits' shape and dtype."""
    wide = logits.float()
    losses, log_sum_exp = _masked_losses(wide, labels, mask)
    # d loss / d logit = softmax - one_hot(label), and softmax = exp(logit - log-sum-exp).
    is_label = torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]
    grad = ((wide - log_sum_exp[:, None]).exp() - is_label.float()) * mask[:, None]
    return losses, grad.to(logits.dtype)


def accumulate_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to the fp32 ``total``, inside the matrix product where torch supports it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda and torch.version.hip is None:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        # addmm's out_dtype exists for CUDA only. Elsewhere each chunk's product is rounded before it is added.
        total += left @ right


class LossOutputLayer(ColumnParallelLinear):
    """Megatron-Core's output layer, which returns the loss instead of logits when it gets labels.

    Args:
        output_layer: the layer to replace. Its weight is taken over, under the same name.
    """

    def __init__(self, output_layer: Any) -> None:
        super().__init__(
            output_layer.input_size,
            output_layer.output_size,
            config=output_layer.config,
            init_method=output_layer.config.init_method,
            bias=False,
            gather_output=output_layer.gather_output,
            skip_weight_param_allocation=True,
            tp_group=output_layer.tp_group,
        )
        self.weight = output_layer.weight

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
    ) -> Any:
        """Return (logits [S, b, V], None) of hidden states [S, b, H], as in Megatron-Core.

        With ``labels`` and ``loss_mask`` [b, S], return the masked sum of the losses, an fp64 scalar.
        """
        if labels is None or loss_mask is None:
            return super().forward(input_, weight=weight, runtime_gather_output=runtime_gather_output)
        return linear_cross_entropy(input_.flatten(0, 1), self.weight, labels.T.flatten(), loss_mask.T.flatten())


class FusedLossGPTModel(GPTModel):
    """Megatron-Core's GPTModel whose last stage returns the masked sum of the losses when it gets a loss mask.

    As in Megatron-Core, labels without a mask return losses [b, S] and no labels return logits [b, S, V]. Tensor
    parallelism keeps Megatron's own loss, which splits the vocabulary over the ranks.
    """

    output_layer: Any

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.sums_losses = self.post_process and self.config.tensor_model_parallel_size == 1
        if self.sums_losses:
            self.output_layer = LossOutputLayer(self.output_layer)

    def _postprocess(
        self, hidden_states: Tensor, *, labels: Tensor | None, loss_mask: Tensor | None = None, **rest: Any
    ) -> Tensor:
        if self.sums_losses and labels is not None and loss_mask is not None:
            # The layer is called as a module, so that DDP's forward hook waits for its weight.
            total: Tensor = self.output_layer(hidden_states, labels=labels, loss_mask=loss_mask)
            return total
        out: Tensor = super()._postprocess(hidden_states, labels=labels, loss_mask=loss_mask, **rest)
        return out
