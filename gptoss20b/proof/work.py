"""FLOPs and bytes of operators, as a roofline counts them: matrix products, and what each kernel reads and writes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Operators that reserve memory without touching it.
_UNTOUCHED = ("aten::empty", "aten::new_empty")
# Operators that read as much of their first argument, such as an embedding's table, as they return.
_GATHERS = {"aten::index", "aten::gather", "aten::embedding", "aten::index_select"}
# Operators that overwrite their first argument without reading it.
_OVERWRITES = {"aten::fill_", "aten::zero_", "aten::copy_"}
# Arguments that a schema declares as written, and that are so only with a gradient scaler.
_UNCHANGED = {"aten::_fused_adam_": {"grads"}, "aten::_fused_adamw_": {"grads"}}
_admitted_pairs: dict[tuple[str, int], int] = {}


def count_flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Return the FLOPs of matrix products and attention, by torch's formulas; 0 for other operators.

    Attention counts the pairs of a query and a key that its mask admits; torch's formulas count all. Its backward pass
    computes the scores again, which is counted too.
    """
    packet = getattr(func, "overloadpacket", func)
    if packet is torch.ops.aten._grouped_mm:
        left, right = args[:2]
        # [rows, in] of all groups x [groups, in, out]; or [out, rows] x [rows, in], where each group has its rows.
        return 2 * int(left.shape[0]) * int(left.shape[1]) * int(right.shape[-1])
    if packet not in flop_registry:
        return 0
    # The formula of addmm has no place for the dtype of the result, which some overloads take.
    args = [arg for arg in args if not isinstance(arg, torch.dtype)]
    flops = int(flop_registry[packet](*args, **kwargs, out_val=out))
    return round(flops * _admitted_share(args)) if "attention" in str(packet) else flops


def _admitted_share(args: Any) -> float:
    """Return the share of all pairs that the mask of self-attention, forward or backward, admits."""
    length = int(args[0].shape[2])  # of the query or of the output's gradient
    if mask := _block_mask(args):
        return _count_pairs(mask[-1], length) / length**2
    is_causal = next((arg for arg in args if isinstance(arg, bool)), False)
    return (length + 1) / (2 * length) if is_causal else 1.0


def _block_mask(args: Any) -> Any:
    """Return flex_attention's block mask, a tuple that ends with the mask's function; None for other operators."""
    return next((arg for arg in args if isinstance(arg, tuple) and arg and callable(arg[-1])), None)


def _count_pairs(mask: Any, length: int) -> int:
    """Count the pairs that a mask, a function of (batch, head, query, key), admits; once per mask."""
    identity = (str(getattr(mask, "code", mask)), length)
    if identity not in _admitted_pairs:
        with _disable_current_modes():
            zero, positions = torch.zeros((), dtype=torch.int64), torch.arange(length)
            # A thousand queries at a time, which takes tens of megabytes.
            parts = positions[:, None].split(1024)
            _admitted_pairs[identity] = sum(int(mask(zero, zero, part, positions).sum()) for part in parts)
    return _admitted_pairs[identity]


def count_bytes(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> int:
    """Return the bytes that one operator reads and writes on the device; 0 for a view."""
    name = name.partition(".")[0]  # without the overload
    if name.startswith(_UNTOUCHED):
        return 0
    read, written, known = list[Tensor](), list[Tensor](), set[int]()
    for index, (value, is_out, is_changed) in enumerate(_arguments(func, name, args, kwargs)):
        tensors = list(on_device(value))
        known |= {storage_of(tensor) for tensor in tensors}
        if not is_out and not (index == 0 and name in _OVERWRITES):
            read += tensors
        if is_changed:
            written += tensors
    written += [tensor for tensor in on_device(out) if storage_of(tensor) not in known]
    if not written:
        return 0
    if name in _GATHERS:
        read[0] = written[-1]
    return sum(map(bytes_of, read + written))


def _arguments(func: Any, name: str, args: Any, kwargs: Any) -> Iterator[tuple[Any, bool, bool]]:
    """Yield each argument, whether it is there for the result only, and whether the operator changes it."""
    schema = getattr(func, "_schema", None)
    if schema is None:  # a higher-order operator
        yield from ((value, False, False) for value in (*args, *kwargs.values()))
        return
    for index, argument in enumerate(schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        yield value, argument.is_out, writes and argument.name not in _UNCHANGED.get(name, ())


def on_device(values: Any) -> Iterator[Tensor]:
    """Yield the tensors that are not on the CPU among nested values."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.device.type != "cpu":
            yield leaf


def storage_of(tensor: Tensor) -> int:
    """Return the identity of a tensor's storage."""
    return int(tensor.untyped_storage()._cdata)


def bytes_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor in memory: an expanded dimension is there once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(map(int, sizes)) * tensor.element_size()


def kernel_bytes(arguments: Iterable[Any], results: Any, changed: Iterable[Tensor], counted: set[int]) -> int:
    """Return the bytes of one fused kernel: what it gets and returns, without the storages already ``counted``."""
    read = [tensor for tensor in on_device(list(arguments)) if storage_of(tensor) not in counted]
    known = counted | {storage_of(tensor) for tensor in read}
    written = [tensor for tensor in on_device(results) if storage_of(tensor) not in known]
    return sum(map(bytes_of, [*read, *written, *changed]))
