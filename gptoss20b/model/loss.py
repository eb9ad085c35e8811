"""The sum of the losses of all tokens without the logits of all tokens.

The logits of a micro batch are the largest tensor of a step by far: 4.2 GB in bf16 for two sequences of 8,192 tokens
and 128,256 rows of vocabulary, and as much again for their gradient. Here a chunk of rows at a time is multiplied,
reduced to its losses and at once turned into gradients, so that backward multiplies nothing again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fused import fused

# Of a chunk's logits in fp32; what exists of them on a GPU is bf16, once as logits and once as gradients. For 128,256
# rows of vocabulary that makes chunks of 2,048 tokens, whose matrix products are large enough for any GPU, while the
# gradient of the weight (1.5 GB in fp32) is read and written once a chunk.
LOGITS_BYTES = 2**30


def chunk_rows(tokens: int, vocabulary: int) -> int:
    """Rows of one chunk: as equal as can be, with fp32 logits of at most `LOGITS_BYTES` (or one row's)."""
    most = max(1, LOGITS_BYTES // (4 * vocabulary))
    return math.ceil(tokens / math.ceil(tokens / most))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, chunk: int | None = None
) -> Tensor:
    """The sum over tokens of mask x cross entropy of hidden @ weight.T, in nats.

    Args:
        hidden: [tokens, width].
        weight: [vocabulary, width], of the same type: bf16 or fp32.
        labels: int64 [tokens], each below ``vocabulary``, masked ones too.
        mask: [tokens], 1 for a token that counts and 0 for one that does not; any weight is allowed.
        chunk: rows whose logits exist at a time; `chunk_rows` if not given.

    Returns:
        fp64 scalar. Logits are rounded to the type of ``hidden``, all arithmetic on them is fp32.
    """
    chunk = chunk or chunk_rows(hidden.shape[0], weight.shape[0])
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, labels, mask.float(), chunk)  # type: ignore[no-any-return, no-untyped-call]
    total = hidden.new_zeros((), dtype=torch.float64)
    for h, label, kept in _chunks(chunk, hidden, labels, mask.float()):
        total += _losses(h @ weight.T, label, kept).sum(dtype=torch.float64)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy` with its gradients, which are computed in forward and scaled in backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, chunk: int) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float64)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for h, label, kept, grad_h in _chunks(chunk, hidden, labels, mask, grad_hidden):
            losses, grad_logits = _losses_and_gradient(h @ weight.T, label, kept)
            total += losses.sum(dtype=torch.float64)
            torch.mm(grad_logits, weight, out=grad_h)
            _add_product(grad_weight, grad_logits.T, h)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # Scaled and rounded to the weight's type in one pass.
        rounded = torch.empty_like(grad_weight, dtype=grad_hidden.dtype)
        return grad_hidden * upstream, torch.mul(grad_weight, upstream, out=rounded), None, None, None


def _chunks(rows: int, *tensors: Tensor) -> Any:
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def _masked_losses(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Fp32 logits [rows, vocabulary] -> (losses x mask [rows], log-sum-exp [rows])."""
    log_sum = logits.logsumexp(dim=-1)
    return (log_sum - logits.gather(-1, labels[:, None]).squeeze(-1)) * mask, log_sum


@fused()
def _losses(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return _masked_losses(logits.float(), labels, mask)[0]


@fused()
def _losses_and_gradient(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [rows, vocabulary] -> (losses x mask fp32 [rows], gradient of their sum, like the logits)."""
    wide = logits.float()
    losses, log_sum = _masked_losses(wide, labels, mask)
    is_label = torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]
    gradient = ((wide - log_sum[:, None]).exp() - is_label.float()) * mask[:, None]
    return losses, gradient.to(logits.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to the fp32 ``total``, in the matrix product itself where torch can."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda and torch.version.hip is None:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        # Only CUDA adds bf16 products to an fp32 matrix: elsewhere each chunk's product is rounded before.
        total += left @ right


class OutputLayer(ColumnParallelLinear):
    """Megatron-Core's output layer, which given labels computes their loss instead of logits.

    Args:
        plain: the layer in whose place it stands and whose weight it takes over, under the same name.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__(
            plain.input_size,
            plain.output_size,
            config=plain.config,
            init_method=plain.config.init_method,
            bias=False,
            gather_output=plain.gather_output,
            skip_weight_param_allocation=True,
            tp_group=plain.tp_group,
        )
        self.weight = plain.weight

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
    ) -> Any:
        """Hidden states [S, b, H] -> (logits [S, b, V], None), as Megatron-Core's.

        With ``labels`` and ``loss_mask`` [b, S]: the masked sum of the losses, fp64 scalar.
        """
        if labels is None or loss_mask is None:
            return super().forward(input_, weight=weight, runtime_gather_output=runtime_gather_output)
        return linear_cross_entropy(input_.flatten(0, 1), self.weight, labels.T.flatten(), loss_mask.T.flatten())


class LossModel(GPTModel):
    """Megatron-Core's GPTModel, whose last stage returns the masked sum of the losses where a loss mask is given.

    Labels without a mask make losses [b, S], no labels make logits [b, S, V], as ever. With tensor parallelism
    Megatron's own loss, which splits the vocabulary over the ranks, stays.
    """

    output_layer: Any

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.sums_losses = self.post_process and self.config.tensor_model_parallel_size == 1
        if self.sums_losses:
            self.output_layer = OutputLayer(self.output_layer)

    def _postprocess(
        self, hidden_states: Tensor, *, labels: Tensor | None, loss_mask: Tensor | None = None, **rest: Any
    ) -> Tensor:
        if self.sums_losses and labels is not None and loss_mask is not None:
            # Called as a module: before it, DDP waits for the weight.
            total: Tensor = self.output_layer(hidden_states, labels=labels, loss_mask=loss_mask)
            return total
        out: Tensor = super()._postprocess(hidden_states, labels=labels, loss_mask=loss_mask, **rest)
        return out
