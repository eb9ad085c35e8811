"""Compare a function and its gradients with a reference in fp64, on the same inputs and the same device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]

# Largest relative error of a right kernel, by the dtype of its inputs. One rounding to bf16 is off by 0.1 % on average.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
# Free memory to fill with NaN: more than any tensor of a check, and small blocks, which come from another pool.
_POISON_BYTES = (2**30, *([2**20] * 64))


@dataclass(frozen=True)
class Comparison:
    """A result and what it should be.

    Attributes:
        name: such as "output 0" or "gradient of the rows".
        got: in the dtype of the kernel.
        expected: the same in fp64.
        floor: norm to divide by where ``expected`` is zero.
    """

    name: str
    got: Tensor
    expected: Tensor
    floor: float | Tensor = 1.0

    def relative_error(self) -> Tensor:
        """Return the norm of the difference over the norm of the expected tensor: an fp64 scalar on the device."""
        expected = self.expected.detach()
        size = torch.linalg.vector_norm(expected)
        # What is exactly zero, like the scores' gradient where a query sees one key, has no relative error.
        error: Tensor = torch.linalg.vector_norm(self.got.detach().double() - expected) / torch.where(
            size > 1e-9, size, self.floor
        )
        return error


def random(*shape: int, seed: int, device: torch.device, dtype: torch.dtype, limit: float = 1.0) -> Tensor:
    """Return numbers between -limit and limit that depend on shape and seed only. No other random state changes."""
    generator = torch.Generator().manual_seed(seed)
    return (limit * (2 * torch.rand(shape, generator=generator, device="cpu") - 1)).to(device, dtype)


def poison(device: torch.device) -> None:
    """Fill free memory of a GPU with NaN, which the next allocations get: what a kernel does not write stays NaN."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        blocks = [torch.full((size // 4,), math.nan, device=device) for size in _POISON_BYTES]
        del blocks


def compare(function: Function, reference: Function, inputs: Mapping[str, Tensor], seed: int = 0) -> list[Comparison]:
    """Compare outputs, and the gradients of those inputs that require them.

    Args:
        function: takes the inputs, returns tensors.
        reference: the same; gets the inputs in fp64.
        inputs: by name, in the dtype of the kernel.
        seed: of the gradients of the outputs.
    """
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs.values()]
    device = leaves[0].device
    names = [name for name, x in inputs.items() if x.requires_grad]
    poison(device)
    with torch.set_grad_enabled(bool(names)):
        got = function(*leaves)
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in leaves]
    expected = reference(*wide)
    outputs = [f"output {i}" for i in range(len(got))] if len(got) > 1 else ["output"]
    results = [Comparison(name, *pair) for name, *pair in zip(outputs, got, expected, strict=True)]
    if not names:
        return results
    cotangents = [_cotangent(x, y, seed + i) for i, (x, y) in enumerate(zip(got, expected, strict=True))]
    poison(device)
    torch.autograd.backward(got, cotangents)
    torch.autograd.backward(expected, [x.double() for x in cotangents])
    floor = torch.linalg.vector_norm(cotangents[0].double()).clamp(min=1.0)
    for name, leaf, exact in zip(inputs, leaves, wide, strict=True):
        if name in names:
            got_grad, exact_grad = (torch.zeros_like(x) if x.grad is None else x.grad for x in (leaf, exact))
            results.append(Comparison(f"gradient of the {name}", got_grad, exact_grad, floor))
    return results


def _cotangent(got: Tensor, expected: Tensor, seed: int) -> Tensor:
    """Return an output's gradient, of its dtype.

    It points toward the output itself, lest a sink's gradient be a sum that cancels to little more than what bf16
    rounds away.
    """
    noise = random(*expected.shape, seed=seed, device=expected.device, dtype=torch.float64, limit=math.sqrt(3))
    size = expected.detach().square().mean().sqrt().clamp(min=1e-30)
    return (noise + 2 * expected.detach() / size).to(got.dtype)
