"""Stand-ins for what a GPU and its peers would do. Each says why it is needed; nothing else of the run is replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..config import Config
from ..model import attention, dispatch
from .accounting import Accountant
from .compiler import fake_compiler
from .guard import load_guard
from .targets import DeviceProperties

if TYPE_CHECKING:
    from .kernels import KernelCompiler

DEVICE = torch.device("cuda", 0)


def _streams_and_events(accountant: Accountant) -> tuple[type, type]:
    class Event:
        """An event; the first wait for it is counted. Later ones return at once, on a device too."""

        def __init__(self, *_args: Any, **_options: Any) -> None:
            self._waited_for = False

        def record(self, *_args: Any) -> None:
            self._waited_for = False

        def wait(self, *_args: Any) -> None: ...

        def query(self) -> bool:
            return True

        def elapsed_time(self, _other: Any) -> float:
            return 1.0

        def synchronize(self) -> None:
            if not self._waited_for:
                accountant.wait("event.synchronize")
            self._waited_for = True

    class Stream:
        """A stream on which everything has happened."""

        cuda_stream = stream_id = device_index = 0
        device_type = 1
        device = DEVICE

        def __init__(self, *_args: Any, **_options: Any) -> None: ...

        def wait_stream(self, _stream: Any) -> None: ...

        def wait_event(self, _event: Any) -> None: ...

        def query(self) -> bool:
            return True

        def record_event(self, event: Any = None) -> Any:
            return event or Event()

        def synchronize(self) -> None:
            accountant.wait("stream.synchronize")

        def __enter__(self) -> None: ...

        def __exit__(self, *_error: Any) -> None: ...

    return Stream, Event


def _fake_cuda(stack: ExitStack, accountant: Accountant, properties: DeviceProperties) -> None:
    """Replace torch.cuda's functions: the CPU build has none that work."""
    stream_type, event_type = _streams_and_events(accountant)
    stream = stream_type()
    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 8,
        "current_device": lambda: 0,
        "set_device": lambda _device: None,
        "current_stream": lambda _device=None: stream,
        "default_stream": lambda _device=None: stream,
        "Stream": stream_type,
        "Event": event_type,
        "stream": lambda _stream: contextlib.nullcontext(),
        "synchronize": lambda _device=None: accountant.wait("cuda.synchronize"),
        "get_rng_state": lambda _device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, _device=None: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "get_device_capability": lambda _device=None: (properties.major, properties.minor),
        "get_device_name": lambda _device=None: properties.name,
        "get_device_properties": lambda _device=None: properties,
        "empty_cache": lambda: None,
    }
    for name, function in functions.items():
        stack.enter_context(patch.object(torch.cuda, name, function))
    # Autocast and fused optimizers would ask the accelerator API, which looks for a real device.
    stack.enter_context(patch.object(torch.accelerator, "is_available", lambda: False))
    from megatron.core.tensor_parallel import random

    # Megatron's own functions read the device's generator, which does not exist.
    for name, function in (
        ("_get_cuda_rng_state", lambda *_args, **_options: torch.get_rng_state()),
        ("_set_cuda_rng_state", lambda state, *_args, **_options: torch.set_rng_state(state)),
    ):
        stack.enter_context(patch.object(random, name, function))
    # FakeTensorMode would create a context on the device.
    stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", property(lambda _self: True)))


def _fake_process_groups(stack: ExitStack, config: Config, rank: int) -> None:
    """Make one rank of torch's fake process group, whose collectives return at once."""
    from megatron.core.distributed import param_and_grad_buffer
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=config.parallel.world_size, store=FakeStore())
    stack.callback(dist.destroy_process_group)
    new_group = dist.new_group

    def new_fake_group(*args: Any, **options: Any) -> Any:
        """Create a group without NCCL's options."""
        return new_group(*args, **{**options, "backend": "fake", "pg_options": None})

    def gather_from_all(results: list[Any], value: Any, group: Any = None) -> None:
        """Give every rank this rank's object: the fake group moves no bytes."""
        results[:] = [value] * len(results)

    class NoCoalescing:
        """Collectives in one call. The fake group cannot coalesce, and has nothing to wait for."""

        def wait(self) -> None: ...

    @contextmanager
    def coalesce(*_args: Any, **_options: Any) -> Iterator[NoCoalescing]:
        yield NoCoalescing()

    stack.enter_context(patch.object(dist, "new_group", new_fake_group))
    stack.enter_context(patch.object(dist, "all_gather_object", gather_from_all))
    stack.enter_context(patch.object(param_and_grad_buffer, "_coalescing_manager", coalesce))


def _fake_tensors(stack: ExitStack) -> None:
    """Mend what fake tensors cannot do."""
    tensor_type = Tensor.type

    def type_with_device(self: Tensor, *args: Any, **options: Any) -> Any:
        """Name the device: Megatron's optimizer sorts parameters by 'torch.cuda.BFloat16Tensor'."""
        result = tensor_type(self, *args, **options)
        if isinstance(result, str) and self.device.type == "cuda" and "cuda" not in result:
            return result.replace("torch.", "torch.cuda.", 1)
        return result

    stack.enter_context(patch.object(Tensor, "type", type_with_device))
    stack.enter_context(patch.object(nn.Module, "_apply", _apply_to_parameters))


def _apply_to_parameters(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Move or cast a module as nn.Module._apply does, by new parameters: a fake tensor's data cannot be exchanged."""
    for child in self.children():
        _apply_to_parameters(child, function)
    for name, parameter in self._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            moved = function(parameter)
        if moved.device != parameter.device or moved.dtype != parameter.dtype:
            replacement = nn.Parameter(moved, parameter.requires_grad)
            for key, value in parameter.__dict__.items():
                if "fake" not in key:  # the fake tensor's own attributes
                    replacement.__dict__.setdefault(key, value)
            self._parameters[name] = replacement
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = function(buffer)
    return self


def _fake_kernels(stack: ExitStack) -> None:
    """Replace two choices that torch makes by asking the device."""

    def flash_attention(
        query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, scale: float, enable_gqa: bool
    ) -> Tensor:
        """Run FlashAttention's operator: its meta function gives the memory that both kernels need."""
        assert is_causal and enable_gqa
        operator = torch.ops.aten._scaled_dot_product_flash_attention
        return operator(query, key, value, 0.0, True, False, scale=scale)[0]  # type: ignore[no-any-return]

    functional = vars(attention)["F"]
    stand_in = type("F", (), {"scaled_dot_product_attention": staticmethod(flash_attention), "pad": functional.pad})
    stack.enter_context(patch.object(attention, "F", stand_in))
    stack.enter_context(patch.object(nn.RMSNorm, "forward", _rms_norm))


class _FusedRmsNorm(torch.autograd.Function):
    """Memory of CUDA's aten::_fused_rms_norm, which keeps its input and the inverse norms. The CPU's is decomposed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        inverse_norms = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, weight, inverse_norms)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _rms_norm(self: nn.RMSNorm, x: Tensor) -> Tensor:
    if x.dtype != self.weight.dtype:
        raise TypeError(f"RMSNorm: got an input of {x.dtype} and weights of {self.weight.dtype}: not one fused kernel")
    return _FusedRmsNorm.apply(x, self.weight)  # type: ignore[no-any-return, no-untyped-call]


def _fake_routing(stack: ExitStack, accountant: Accountant, config: Config, routing: Routing) -> None:
    """Give the host the sizes of the all-to-all, which real routing would decide.

    This rank receives ``routing.imbalance`` times the mean number of rows. Waiting for the sizes is counted.
    """
    ranks = config.parallel.expert
    tokens = config.execution.micro_batch_size * config.fixed.sequence_length
    rows = tokens * config.model.router_topk // (config.parallel.tensor * config.parallel.context)

    def wait_for_splits(self: dispatch.AllToAllPlan) -> tuple[list[int], list[int]]:
        if self.ready is not None:
            self.ready.synchronize()
        return [rows // ranks] * ranks, [round(rows * routing.imbalance) // ranks] * ranks

    stack.enter_context(patch.object(dispatch.AllToAllPlan, "wait_for_splits", wait_for_splits))


@dataclass
class Routing:
    """Rows that this rank's experts receive, over the mean of all ranks."""

    imbalance: float


@dataclass(frozen=True)
class FakeGpu:
    """One rank on a GPU that does not exist.

    Attributes:
        accountant: the account of its work.
        routing: what its experts receive from now on.
        versions: number of compiled versions of each fused function.
    """

    accountant: Accountant
    routing: Routing
    versions: dict[str, int]


@contextmanager
def fake_gpu(
    config: Config, imbalance: float = 1.0, rank: int = 0, properties: DeviceProperties | None = None,
    kernels: KernelCompiler | None = None,
) -> Iterator[FakeGpu]:  # fmt: skip
    """Run this block as one rank of the configuration, on a GPU that does not exist, with every tensor fake.

    Megatron-Core's process groups exist in the block. Weights have no values, so nothing is initialized. The GPU is an
    H200 without ``properties``. With ``kernels``, fused functions are compiled to kernels, else up to their graphs.

    Raises:
        ProofError: this machine cannot do it.
    """
    load_guard()
    from .. import trainer
    from ..process_groups import create_process_groups

    accountant, routing = Accountant(), Routing(imbalance)
    with ExitStack() as stack:
        _fake_cuda(stack, accountant, properties or DeviceProperties())
        _fake_process_groups(stack, config, rank)
        _fake_tensors(stack)
        _fake_kernels(stack)
        _fake_routing(stack, accountant, config, routing)
        versions = fake_compiler(stack, accountant, kernels)
        stack.enter_context(patch.object(trainer, "initialize_weights", lambda *_args: None))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=False))
        create_process_groups(config)
        stack.enter_context(accountant)
        yield FakeGpu(accountant, routing, versions)
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
