"""Grouped GEMMs: the products of every expert's rows with that expert's matrix, and their gradients.

`torch.nn.functional.grouped_mm` computes one product per expert in one call. It works on CUDA, ROCm and the CPU, and
takes the ends of the groups on the device. torch has two implementations on GPUs. Either one kernel computes all
products, and the host waits for nothing. Or a loop computes one after another, for which the host waits once per call
to read the ends. CUDA has the kernel for bf16 from compute capability 9.0 on. On ROCm the loop is torch's default
(pytorch pull requests 170159 and 171140), and `allow_rocm_kernel` asks for the kernel.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused import fused

# grouped_mm requires operand rows that start at multiples of 16 bytes: 8 numbers in bf16, 4 in fp32.
_ALIGNED_COLUMNS = 8
# torch reads it at each call, and ignores it where it is built without the kernel (Composable Kernel) or where the GPU
# is none of gfx90a, gfx942 and gfx950.
_ROCM_KERNEL = "ROCM_ALLOW_GROUP_GEMM_CK"


def allow_rocm_kernel() -> None:
    """Let torch multiply groups in one kernel on ROCm, unless the user has set ROCM_ALLOW_GROUP_GEMM_CK."""
    # Safe, because `weight_gradient` fills what this kernel leaves undefined.
    if torch.version.hip is not None:
        os.environ.setdefault(_ROCM_KERNEL, "1")


def loops_on_host(device: torch.device) -> bool:
    """Return True if grouped_mm of bf16 tensors makes the host wait for the GPU ``device``. Waits for it itself."""
    allow_rocm_kernel()
    rows, weights = (torch.ones(*shape, dtype=torch.bfloat16, device=device) for shape in ((16, 16), (2, 16, 16)))
    offsets = torch.tensor([8, 16], dtype=torch.int32, device=device)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        F.grouped_mm(rows, weights, offs=offsets)
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return False


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
