"""The fused loss beside the plain one in fp64, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from gptoss20b.model.loss import linear_cross_entropy
from gptoss20b.selftest import reference
from tests.support.tensor_checks import relative_error


def make_inputs(
    device: torch.device, dtype: torch.dtype, tokens: int, width: int, vocabulary: int, masked: float, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, weight, labels and mask; ``masked`` is the fraction of tokens that do not count."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=random).to(device, dtype).requires_grad_()
    # Logits of order one: bf16 rounds large ones by more than the tolerance of what is computed from them.
    weight = (torch.randn(vocabulary, width, generator=random) / width**0.5).to(device, dtype).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,), generator=random).to(device)
    mask = (torch.rand(tokens, generator=random) >= masked).float().to(device)
    return hidden, weight, labels, mask


def check_loss(
    device: torch.device,
    dtype: torch.dtype,
    tolerance: float,
    tokens: int,
    width: int,
    vocabulary: int,
    chunk: int | None,
    masked: float,
    seed: int,
) -> None:
    """Check loss and gradients, for an upstream gradient that is not one."""
    hidden, weight, labels, mask = make_inputs(device, dtype, tokens, width, vocabulary, masked, seed)
    total = linear_cross_entropy(hidden, weight, labels, mask, chunk)
    (3.7 * total).backward()
    wide_hidden, wide_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    expected = reference.cross_entropy(wide_hidden, wide_weight, labels, mask)
    (3.7 * expected).backward()
    assert total.dtype == torch.float64 and total.shape == ()
    assert relative_error(total, expected, floor=1.0) < tolerance
    for leaf, wide in ((hidden, wide_hidden), (weight, wide_weight)):
        assert leaf.grad is not None and leaf.grad.dtype == dtype
        assert relative_error(leaf.grad, wide.grad, floor=1.0) < tolerance
