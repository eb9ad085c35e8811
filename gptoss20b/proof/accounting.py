"""An account of one rank's work on fake tensors: live bytes, waits of the host, collectives, operators."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from .work import count_bytes, count_flops, kernel_bytes, on_device, storage_of

# Key of an autograd node's metadata: the module whose forward pass made the node.
MODULE = "gptoss20b.proof module"
# The CUDA caching allocator rounds every allocation up to this size.
ALIGNMENT = 512
# Operators whose result the host must know: each waits for the device.
_READ_BACK = {
    *("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal"),
    *("aten::masked_select", "aten::unique2", "aten::_unique2"),
}
_COPIES = {"aten::_to_copy": (0, None), "aten::copy_": (1, 0)}
_THIS_PACKAGE = str(Path(__file__).parent)
# Files of these folders name the place of a wait: ours and Megatron-Core's.
_KNOWN_CODE = ("gptoss20b/", "megatron/core/", "torch/optim/")


@dataclass(frozen=True)
class Allocation:
    """A storage on the device: its rounded size, and the module whose forward pass made it, or ""."""

    size: int
    module: str


@dataclass
class Account:
    """What happened since the last `reset`.

    Attributes:
        waits: places where the host waited for the device, with their number.
        collectives: number and payload bytes of each kind of collective.
        work: number, FLOPs and bytes of the kernels by module, phase, operator and dtype of the matrix product or "".
    """

    waits: Counter[str] = field(default_factory=Counter)
    collectives: dict[str, list[int]] = field(default_factory=dict)
    work: dict[tuple[str, str, str, str], list[int]] = field(default_factory=dict)


class Accountant(TorchDispatchMode):
    """Sees every operator on fake tensors, and follows the storages of its results until they are freed.

    Attributes:
        allocations: every storage by its key, also those that are freed.
        live_bytes: bytes of the storages that are alive now.
        peak_bytes: the highest live_bytes since `reset`.
        events: key and bytes of every allocation, and key and negative bytes of every release, in order.
        account: waits and collectives since `reset`.
        module: name of the module whose forward pass runs, or "".
    """

    # Inductor's generated code and higher-order operators such as flex_attention pass through.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocations: dict[int, Allocation] = {}
        self.live_bytes = self.peak_bytes = 0
        self.events: list[tuple[int, int]] = []
        self.account = Account()
        self.module = ""
        self._peak_event = 0
        self._references: dict[int, Any] = {}
        self._keys: dict[int, int] = {}  # of live storages, by address
        self._silent = False
        self._counted: set[int] = set()  # storages that products inside a compiled function have read or written

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Tell torch.compile that this mode does not change results, so that it may compile below it."""
        return True

    def reset(self) -> Account:
        """Start a new account, and return the one before."""
        before, self.account = self.account, Account()
        self.peak_bytes, self._peak_event = self.live_bytes, len(self.events)
        return before

    def live_keys(self) -> list[int]:
        """Return the keys of the storages that are alive now."""
        return list(self._references)

    def at_peak(self) -> list[int]:
        """Return the keys of the storages that were alive at the peak."""
        live: dict[int, None] = {}
        for key, size in self.events[: self._peak_event]:
            if size > 0:
                live[key] = None
            else:
                del live[key]
        return list(live)

    def key_of(self, tensor: Tensor) -> int | None:
        """Return the key of a live tensor's storage; None if it is not on the device."""
        return self._keys.get(tensor.untyped_storage()._cdata)

    @contextmanager
    def kernel(self, name: str, arguments: Iterable[Any], changed: Iterable[Tensor]) -> Iterator[list[Any]]:
        """Account for a compiled function, which this block runs, as for one kernel.

        Its temporaries never reach memory. Matrix products and attention inside are kernels of their own.

        Yields:
            A list for the function's results, which are followed afterwards.
        """
        results: list[Any] = []
        inside = _get_current_dispatch_mode() is self
        before = self._silent, self._counted
        self._silent, self._counted = True, set()
        try:
            with contextlib.nullcontext() if inside else self:
                yield results
            moved = kernel_bytes(arguments, results, changed, self._counted)
        finally:
            self._silent, self._counted = before
        self._note_work(name, 0, moved)
        self.follow(results)

    def wait(self, kind: str) -> None:
        """Record that the host waits for the device here."""
        self.account.waits[f"{kind} in {_place()}"] += 1

    def follow(self, results: Any) -> None:
        """Follow the storages of results that are new."""
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                self._follow_storage(tensor)

    def _follow_storage(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._keys or storage.nbytes() == 0:
            return
        key = self._keys[address] = len(self.allocations)
        size = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        self.allocations[key] = Allocation(size, self.module)
        self._references[key] = weakref.ref(storage, lambda _: self._release(address, key))
        self.live_bytes += size
        self.events.append((key, size))
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self._peak_event = self.live_bytes, len(self.events)

    def _release(self, address: int, key: int) -> None:
        if self._keys.get(address) == key:
            del self._keys[address]
        size = self.allocations[key].size
        self._references.pop(key, None)
        self.live_bytes -= size
        self.events.append((key, -size))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name() if callable(getattr(func, "name", None)) else str(func)
        out = func(*args, **kwargs)
        if name.startswith("prim::"):  # attributes of a tensor
            return out
        self._note_wait(name, args, kwargs, out)
        if name.startswith("c10d::"):
            self._note_collective(name, args)
        else:
            self._note_operator(func, name, args, kwargs, out)
        if not self._silent:
            self.follow(out)
        return out

    def _note_operator(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        flops = count_flops(func, args, kwargs, out)
        if flops or not self._silent:
            moved = count_bytes(func, name, args, kwargs, out)
            if flops or moved:
                dtype = str(args[1].dtype).removeprefix("torch.") if flops else ""  # args[0] may be addmm's sum
                self._note_work(name.removeprefix("aten::"), flops, moved, dtype)
        if flops and self._silent:
            self._counted |= {storage_of(tensor) for tensor in on_device((args, kwargs, out))}

    def _note_work(self, operator: str, flops: int, moved: int, dtype: str = "") -> None:
        node: Any = torch._C._current_autograd_node()
        module = self.module or (node.metadata.get(MODULE, "") if node is not None else "")
        phase = "backward" if node is not None else "forward" if module else "update"
        sums = self.account.work.setdefault((module, phase, operator, dtype), [0, 0, 0])
        for index, value in enumerate((1, flops, moved)):
            sums[index] += value

    def _note_wait(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if name in _READ_BACK and _is_on_device(args[0]):
            self.wait(name)
        elif name in _COPIES:
            source_index, target_index = _COPIES[name]
            source, target = args[source_index], out if target_index is None else args[target_index]
            blocking = not (kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))
            if blocking and source.device != target.device and "cuda" in (source.device.type, target.device.type):
                self.wait(f"copy {source.device.type} to {target.device.type}")
        elif name.startswith("aten::index") and len(args) > 1 and isinstance(args[1], list | tuple):
            masks = (index for index in args[1] if isinstance(index, Tensor) and index.dtype == torch.bool)
            if any(_is_on_device(mask) for mask in masks):
                self.wait(f"{name} with a mask")

    def _note_collective(self, name: str, args: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if not all(_is_on_device(tensor) for tensor in tensors):
            raise RuntimeError(f"{name} got a tensor on the CPU, which NCCL and RCCL refuse")
        # Of input and output, the larger is what crosses the links, up to the rank's own share.
        payload = max((tensor.numel() * tensor.element_size() for tensor in tensors), default=0)
        count = self.account.collectives.setdefault(name.removeprefix("c10d::").strip("_"), [0, 0])
        count[0] += 1
        count[1] += payload


def _is_on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _place() -> str:
    """Return file, line and function of the innermost frame of this project or Megatron-Core."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        part = next((part for part in _KNOWN_CODE if part in name), None)
        if part is not None and not name.startswith(_THIS_PACKAGE):
            return f"{name[name.rindex(part) :]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "unknown"
