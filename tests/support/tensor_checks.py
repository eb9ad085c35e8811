"""Compare tensors and watch the operators that run, for tests of the model on any device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def relative_error(got: Tensor | None, expected: Tensor | None, floor: float = 1e-30) -> float:
    """Return the norm of the difference over the norm of the expected fp64 tensor, or over ``floor`` if larger."""
    assert got is not None
    assert expected is not None
    assert got.shape == expected.shape
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp(min=floor))


@dataclass(frozen=True)
class Operator:
    """One operator that ran: its name, such as "aten.mm", and its tensors' shapes and addresses.

    The tensors themselves are not kept: autograd copies a gradient that has another reference.
    """

    name: str
    inputs: list[torch.Size]
    outputs: list[torch.Size]
    storages: list[int]


class RecordOperators(TorchDispatchMode):
    """Record every operator that runs, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors(args), _tensors(out if isinstance(out, tuple | list) else [out])
        self.operators.append(
            Operator(
                str(func.overloadpacket),
                [x.shape for x in inputs],
                [x.shape for x in outputs],
                [x.untyped_storage().data_ptr() for x in outputs],
            )
        )
        return out

    @property
    def names(self) -> list[str]:
        """Names of the operators, in order."""
        return [operator.name for operator in self.operators]

    @property
    def largest(self) -> int:
        """Elements of the largest tensor that an operator returned."""
        return max(shape.numel() for operator in self.operators for shape in operator.outputs)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [x for x in values if isinstance(x, Tensor)]


@contextmanager
def forbid_gpu_sync() -> Iterator[None]:
    """Raise if the host waits for the GPU inside the block."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
