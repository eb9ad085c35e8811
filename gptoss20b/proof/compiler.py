"""The compiler of fused functions, up to the graphs. What it would generate has no device to run on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ..model.fused import FusedFunction
from .accounting import Accountant

if TYPE_CHECKING:
    from .kernels import KernelCompiler


def fake_compiler(stack: ExitStack, accountant: Accountant, kernels: KernelCompiler | None = None) -> dict[str, int]:
    """Compile fused functions as on a GPU, up to the graphs: forward, backward and what is kept between them.

    The graphs run on fake tensors, unseen: inside of one kernel nothing reaches memory. With ``kernels`` they are also
    compiled to a GPU's code. Returns the number of compiled versions of each function.
    """
    from functorch.compile import (  # type: ignore[import-untyped]
        make_boxed_func,
        min_cut_rematerialization_partition,
    )
    from torch._dynamo.backends.common import aot_autograd
    from torch.utils._python_dispatch import _get_current_dispatch_mode, _pop_mode_temporarily

    def compile_graph(graph: Any, _inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            on_host = [each for each in arguments if isinstance(each, Tensor) and each.dim() and not each.is_cuda]
            if on_host:
                raise RuntimeError(
                    f"a compiled function got tensors on the CPU: {[tuple(each.shape) for each in on_host]}"
                )
            with accountant.silent():
                results = graph(*arguments)
            accountant.follow(results)
            return results

        return make_boxed_func(run)

    backend = aot_autograd(
        fw_compiler=compile_graph, bw_compiler=compile_graph, partition_fn=min_cut_rematerialization_partition
    )
    if kernels is not None:
        kernels.install(stack)
    versions: dict[str, int] = {}

    def compiled(function: FusedFunction[Any, Any]) -> Callable[..., Any]:
        name = function.eager.__name__
        compile_function = backend if kernels is None else kernels.backend(name, compile_graph)

        def counting(graph: Any, inputs: Any) -> Any:
            versions[name] = versions.get(name, 0) + 1
            return compile_function(graph, inputs)

        return torch.compile(function.eager, backend=counting, fullgraph=True, dynamic=function._dynamic)

    cache: dict[int, Callable[..., Any]] = {}

    def call(self: FusedFunction[Any, Any], *args: Any, **options: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # inside a compiled layer
            return self.eager(*args, **options)
        function = cache.setdefault(id(self), compiled(self))
        # The compiler traces the function itself, not what this mode does.
        inside = _get_current_dispatch_mode() is accountant
        with _pop_mode_temporarily() if inside else contextlib.nullcontext():
            results = function(*args, **options)
        accountant.follow(results)
        return results

    def compile_module(self: nn.Module, **_options: Any) -> None:
        self._compiled_call_impl = torch.compile(self._call_impl, backend=backend)

    stack.enter_context(patch.object(FusedFunction, "__call__", call))
    stack.enter_context(patch.object(nn.Module, "compile", compile_module))
    return versions
