"""Arithmetic that is written as plain torch operators and runs as few kernels on a GPU.

A chain of pointwise operators reads and writes its tensors once per operator; compiled, it reads and writes them once.
On a CPU the operators run as they are: compiling takes longer there than the runs and tests that use it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class Fused(Generic[P, R]):
    """A function that is compiled where its tensors are on a GPU, and called as it is elsewhere.

    Attributes:
        eager: the function itself.
        compiled: the same through torch.compile, on any device; a test on a CPU calls it by this name.
    """

    def __init__(self, function: Callable[P, R], dynamic: bool | None) -> None:
        functools.update_wrapper(self, function)
        self.eager = function
        self._dynamic = dynamic

    @functools.cached_property
    def compiled(self) -> Callable[P, R]:
        """Made at its first use: importing the compiler takes seconds."""
        # One graph or an error: what falls back to many kernels would only be slow, and nobody would see it.
        return torch.compile(self.eager, fullgraph=True, dynamic=self._dynamic)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it, compiled if any tensor among the arguments is on a GPU."""
        on_gpu = any(isinstance(each, Tensor) and each.is_cuda for each in (*args, *kwargs.values()))
        return (self.compiled if on_gpu else self.eager)(*args, **kwargs)


def fused(dynamic: bool | None = None) -> Callable[[Callable[P, R]], Fused[P, R]]:
    """Decorator: compile this function on GPUs, forward and backward.

    Args:
        dynamic: torch.compile's. None compiles for the sizes first seen, and once more, for any size, in each
            dimension that changes; False compiles for each combination of sizes (torch allows 8 before it raises);
            True compiles for any size at once.

    Besides, torch makes versions of their own for a dimension of size 0 or 1, for another dtype, for a tensor that does
    or does not require gradients, and for grad mode on or off; all count toward the 8.

    The function takes its tensors as arguments, synchronises with nothing, and is one graph: no ``.item()``, no branch
    on a tensor's values.
    """
    return lambda function: Fused(function, dynamic)
