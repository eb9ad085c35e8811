"""The compiler of fused functions, up to the graphs. What it would generate has no device to run on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..model.fused import FusedFunction
from .accounting import Accountant
from .fake_cuda import replace

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
    from torch._inductor.decomposition import select_decomp_table
    from torch.utils._python_dispatch import _get_current_dispatch_mode, _pop_mode_temporarily

    def compile_graph(name: str, graph: Any, _inputs: Any) -> Any:
        changed = _changed_arguments(graph)

        def run(*arguments: Any) -> Any:
            on_host = [each for each in arguments if isinstance(each, Tensor) and each.dim() and not each.is_cuda]
            if on_host:
                raise RuntimeError(
                    f"a compiled function got tensors on the CPU: {[tuple(each.shape) for each in on_host]}"
                )
            with accountant.kernel(name, arguments, [arguments[index] for index in changed]) as results:
                results.extend(graph(*arguments))
            return tuple(results)

        return make_boxed_func(run)

    if kernels is not None:
        kernels.install(stack)
    versions: dict[str, int] = {}
    decompositions = select_decomp_table()

    def backend_of(name: str, options: dict[str, Any] | None = None) -> Callable[[Any, Any], Any]:
        if kernels is not None:
            backend = kernels.backend(name, functools.partial(compile_graph, name), options)
        else:
            backend = aot_autograd(
                fw_compiler=functools.partial(compile_graph, name),
                bw_compiler=functools.partial(compile_graph, f"{name} backward"),
                partition_fn=min_cut_rematerialization_partition,
                # Of the CUDA build's own operators, the compiler makes others that it can fuse.
                decompositions=decompositions,
            )

        def counting(graph: Any, inputs: Any) -> Any:
            versions[name] = versions.get(name, 0) + 1
            return backend(graph, inputs)

        return counting

    def compiled(function: FusedFunction[Any, Any]) -> Callable[..., Any]:
        backend = backend_of(function.eager.__name__, function.options)
        return torch.compile(function.eager, backend=backend, fullgraph=True, dynamic=function._dynamic)

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

    modules: dict[type, Callable[[Any, Any], Any]] = {}  # the modules of a class share what is compiled

    def compile_module(self: nn.Module, **_options: Any) -> None:
        self._compiled_call_impl = torch.compile(
            self._call_impl, backend=modules.setdefault(type(self), backend_of(type(self).__name__))
        )

    replace(stack, FusedFunction, "__call__", call)
    replace(stack, nn.Module, "compile", compile_module)
    return versions


def _changed_arguments(graph: Any) -> list[int]:
    """Return the positions of the arguments that a graph writes to."""
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    written = {node.args[0] for node in graph.graph.nodes if node.target is torch.ops.aten.copy_.default}
    return [index for index, node in enumerate(placeholders) if node in written]
