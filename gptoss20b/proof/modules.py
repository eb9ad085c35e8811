"""Tell the account which module runs, forward and backward."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from .accounting import MODULE, Accountant


@contextmanager
def name_modules(accountant: Accountant, model: nn.Module) -> Iterator[None]:
    """Give the account the name of the module whose forward pass runs, without the number of the layer.

    Autograd's nodes keep the name, so that the backward pass is known as the same module's.
    """
    names = {module: re.sub(r"\.\d+(?=\.|$)", "", name) or "model" for name, module in model.named_modules()}
    running: list[str] = []

    def enter(module: nn.Module, inputs: Any, options: Any = None) -> None:
        # A compiled module's parts are not modules any more. What the compiler saw here, it would guard and keep.
        if torch.compiler.is_compiling() or module not in names:
            return
        _name_nodes((inputs, options), accountant.module)
        running.append(names[module])
        accountant.module = running[-1]

    def leave(module: nn.Module, _inputs: Any, outputs: Any) -> None:
        if torch.compiler.is_compiling() or module not in names:
            return
        _name_nodes(outputs, running.pop())
        accountant.module = running[-1] if running else ""

    def run_compiled(module: nn.Module, compiled: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        enter(module, inputs, options)
        outputs = None
        try:
            outputs = compiled(*inputs, **options)
        finally:
            leave(module, inputs, outputs)
        return outputs

    for module in names:
        if module._compiled_call_impl is not None:
            module._compiled_call_impl = functools.partial(run_compiled, module, module._compiled_call_impl)
    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _name_nodes(values: Any, name: str) -> None:
    """Give this name to the nodes of autograd that lead to these tensors and have none yet."""
    nodes: list[Any] = [leaf.grad_fn for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    while nodes:
        node = nodes.pop()
        if node is not None and MODULE not in node.metadata:
            node.metadata[MODULE] = name
            nodes += [next_node for next_node, _ in node.next_functions]
