"""Grouped GEMMs: the products of every expert's rows with that expert's matrix, and their gradients.

`torch.nn.functional.grouped_mm` computes one product per expert in one call. It works on CUDA, ROCm and the CPU. The
ends of the groups stay on the device. torch has two implementations on GPUs. One kernel computes all products, and the
host waits for nothing. Or a loop copies the ends of the groups to the host, which waits once per call. CUDA has the
kernel from compute capability 9.0 on. ROCm has both (`loops_on_host`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused import fused

# grouped_mm requires operand rows that start at multiples of 16 bytes: 8 numbers in bf16, 4 in fp32.
_ALIGNED_COLUMNS = 8


@fused()
def zero_unused(gradients: Tensor, unused: Tensor) -> None:
    """Set the gradients [experts, out, in] of the experts that ``unused`` [experts] marks to zero, in place."""
    gradients.masked_fill_(unused[:, None, None], 0)


def weight_gradient(grad: Tensor, rows: Tensor, offsets: Tensor, unused: Tensor) -> Tensor:
    """Return each expert's grad.T @ rows, [experts, grad columns, row columns]; zeros for an expert without rows.

    Args:
        grad: [rows, grad columns], sorted by expert.
        rows: [rows, row columns].
        offsets: int32 [experts], the ends of the groups.
        unused: [experts] booleans, True for an expert without rows.
    """
    # A product over no rows is zero, but grouped_mm has left there what was in memory before: on compute capability
    # 10.0 (pytorch issue 172439) and on ROCm (pytorch pull request 174314). Times 0 would keep NaN, so fill. This reads
    # and writes each gradient once more, 4 bytes a weight: 9.6 GB in a micro batch of the 20B model with 4 experts a
    # rank, and 76 GB with 32. Forward pass, gradient and its sum in fp32 move 16 bytes a weight already.
    gradients = F.grouped_mm(grad.T, rows, offs=offsets)
    zero_unused(gradients, unused)
    return gradients


def sum_by_expert(rows: Tensor, factors: Tensor, offsets: Tensor, unused: Tensor) -> Tensor:
    """Return each expert's sum [experts, columns] of rows [rows, columns] times factors [rows].

    Sums are fp32 and rounded once. This is a grouped GEMM whose other operand holds the factors in its first column:
    index_add would be atomic, hence not deterministic, or would sort its indices first.
    """
    column = F.pad(factors.to(rows.dtype)[:, None], (0, _ALIGNED_COLUMNS - 1))
    return weight_gradient(column, rows, offsets, unused)[:, 0]


class _Project(torch.autograd.Function):
    """Autograd function of `project`. grouped_mm's own gradient does not fill those of experts without rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, offsets: Tensor, unused: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, offsets, unused)
        return F.grouped_mm(rows, weight.transpose(-2, -1), offs=offsets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weight, offsets, unused = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_rows = F.grouped_mm(grad, weight, offs=offsets)
        return grad_rows, weight_gradient(grad, rows, offsets, unused), None, None


def project(rows: Tensor, weight: Tensor, offsets: Tensor, unused: Tensor) -> Tensor:
    """Return rows [rows, in] sorted by expert times their expert's weight [experts, out, in]: [rows, out]."""
    out: Tensor = _Project.apply(rows, weight, offsets, unused)  # type: ignore[no-untyped-call]
    return out
