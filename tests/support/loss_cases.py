"""What a test of the loss does, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from gptoss20b.model.loss import linear_cross_entropy


def inputs(
    device: torch.device, dtype: torch.dtype, tokens: int, width: int, vocabulary: int, masked: float, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, labels and mask; ``masked`` is the share of tokens that do not count."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=random).to(device, dtype).requires_grad_()
    # Logits of order one: bf16 rounds large ones by more than the tolerance of what is computed from them.
    weight = (torch.randn(vocabulary, width, generator=random) / width**0.5).to(device, dtype).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,), generator=random).to(device)
    mask = (torch.rand(tokens, generator=random) >= masked).float().to(device)
    return hidden, weight, labels, mask


def difference(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected; over 1 where that is smaller."""
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1.0))


def check(
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
    """Loss and gradients, of an upstream gradient that is not one, against the plain loss in fp64."""
    hidden, weight, labels, mask = inputs(device, dtype, tokens, width, vocabulary, masked, seed)
    total = linear_cross_entropy(hidden, weight, labels, mask, chunk)
    (3.7 * total).backward()
    plain_hidden, plain_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    losses = torch.nn.functional.cross_entropy(plain_hidden @ plain_weight.T, labels, reduction="none")
    plain = (losses * mask).sum()
    (3.7 * plain).backward()
    assert total.dtype == torch.float64 and total.shape == ()
    assert hidden.grad is not None and hidden.grad.dtype == dtype
    assert weight.grad is not None and weight.grad.dtype == dtype
    assert plain_hidden.grad is not None and plain_weight.grad is not None
    assert difference(total.detach(), plain.detach()) < tolerance
    assert difference(hidden.grad, plain_hidden.grad) < tolerance
    assert difference(weight.grad, plain_weight.grad) < tolerance
