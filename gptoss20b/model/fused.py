"""Fuse chains of pointwise torch operators into few GPU kernels.

A chain of pointwise operators reads and writes its tensors once per operator. Compiled, it reads and writes them once.
On a CPU the operators run eagerly: compiling would take longer than the runs and tests that use a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class FusedFunction(Generic[P, R]):
    """A function that runs through torch.compile where an argument is on a GPU, and eagerly elsewhere.

    Attributes:
        eager: the undecorated function.
        options: inductor's, for this function.
        compiled: the function through torch.compile, on any device. Tests call it on a CPU.
    """

    def __init__(self, function: Callable[P, R], dynamic: bool | None, options: dict[str, Any] | None) -> None:
        functools.update_wrapper(self, function)
        self.eager = function
        self.options = options
        self._dynamic = dynamic

    @functools.cached_property
    def compiled(self) -> Callable[P, R]:
        """Compile at the first use: importing the compiler takes seconds."""
        # fullgraph: a graph break would fall back to many kernels, which is only slow and which nobody would notice.
        return torch.compile(self.eager, fullgraph=True, dynamic=self._dynamic, options=self.options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, compiled if any tensor among the arguments is on a GPU."""
        if torch.compiler.is_compiling():  # as a part of the caller's graph
            return self.eager(*args, **kwargs)
        on_gpu = any(isinstance(value, Tensor) and value.is_cuda for value in (*args, *kwargs.values()))
        return (self.compiled if on_gpu else self.eager)(*args, **kwargs)


def fused(
    dynamic: bool | None = None, options: dict[str, Any] | None = None
) -> Callable[[Callable[P, R]], FusedFunction[P, R]]:
    """Return a decorator that compiles a function on GPUs, forward and backward.

    torch.compile specializes a function at most 8 times before it raises. It specializes for a dimension of size 0 or
    1, for a dtype, for a tensor that does or does not require gradients, and for grad mode on or off.

    The function takes its tensors as arguments, does not synchronize with the device and is one graph: no ``.item()``,
    no branch on a tensor's values.

    Args:
        dynamic: as in torch.compile. None specializes for the first sizes, then once more, for any size, in each
            dimension that changes. False specializes for each combination of sizes. True compiles for any size.
        options: inductor's settings for this function, as torch.compile takes them.
    """
    return lambda function: FusedFunction(function, dynamic, options)
