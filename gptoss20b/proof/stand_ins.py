"""Stand-ins for what a GPU and its peers would do. Each says why it is needed; nothing else of the run is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..config import Config
from ..model import attention, dispatch
from .accounting import Accountant
from .compiler import fake_compiler
from .fake_cuda import fake_cuda, replace
from .guard import load_guard
from .targets import DeviceProperties

if TYPE_CHECKING:
    from .kernels import KernelCompiler


def gather_from_all(results: list[Any], value: Any, group: Any = None) -> None:
    """Give every rank this rank's object, as dist.all_gather_object: the fake group moves no bytes."""
    results[:] = [value] * len(results)


def fake_process_groups(stack: ExitStack, config: Config, rank: int) -> None:
    """Make one rank of torch's fake process group, whose collectives return at once."""
    from megatron.core.distributed import param_and_grad_buffer
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=config.parallel.world_size, store=FakeStore())
    stack.callback(dist.destroy_process_group)
    new_group = dist.new_group

    def new_fake_group(*args: Any, **options: Any) -> Any:
        """Create a group without NCCL's options."""
        return new_group(*args, **{**options, "backend": "fake", "pg_options": None})

    class NoCoalescing:
        """Collectives in one call. The fake group cannot coalesce, and has nothing to wait for."""

        def wait(self) -> None: ...

    @contextmanager
    def coalesce(*_args: Any, **_options: Any) -> Iterator[NoCoalescing]:
        yield NoCoalescing()

    replace(stack, dist, "new_group", new_fake_group)
    replace(stack, dist, "all_gather_object", gather_from_all)
    replace(stack, param_and_grad_buffer, "_coalescing_manager", coalesce)


def fake_tensors(stack: ExitStack) -> None:
    """Mend what fake tensors cannot do."""
    tensor_type = Tensor.type

    def type_with_device(self: Tensor, *args: Any, **options: Any) -> Any:
        """Name the device: Megatron's optimizer sorts parameters by 'torch.cuda.BFloat16Tensor'."""
        result = tensor_type(self, *args, **options)
        if isinstance(result, str) and self.device.type == "cuda" and "cuda" not in result:
            return result.replace("torch.", "torch.cuda.", 1)
        return result

    replace(stack, Tensor, "type", type_with_device)
    replace(stack, nn.Module, "_apply", apply_to_parameters)


def apply_to_parameters(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Move or cast a module as nn.Module._apply does, by new parameters: a fake tensor's data cannot be exchanged.

    A parameter that two modules share becomes two. Models here share none.
    """
    for child in self.children():
        apply_to_parameters(child, function)
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


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, scale: float, enable_gqa: bool
) -> Tensor:
    """Run FlashAttention's operator: its meta function gives the memory that both of torch's kernels need."""
    assert is_causal and enable_gqa
    operator = torch.ops.aten._scaled_dot_product_flash_attention
    return operator(query, key, value, 0.0, True, False, scale=scale)[0]  # type: ignore[no-any-return]


def fake_kernels(stack: ExitStack, accountant: Accountant) -> None:
    """Replace two choices that torch makes by asking the device."""
    functional = vars(attention)["F"]
    stand_in = type("F", (), {"scaled_dot_product_attention": staticmethod(flash_attention), "pad": functional.pad})
    replace(stack, attention, "F", stand_in)
    replace(stack, nn.RMSNorm, "forward", fake_rms_norm(accountant))


def fake_rms_norm(accountant: Accountant) -> Callable[[nn.RMSNorm, Tensor], Tensor]:
    """Return a forward pass of RMSNorm with the memory of CUDA's aten::_fused_rms_norm. The CPU's is decomposed."""

    class FusedRmsNorm(torch.autograd.Function):
        """Keeps the input and the inverse norms."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            with accountant.kernel("_fused_rms_norm", [x, weight], []) as results:
                results.extend([torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)])
            ctx.save_for_backward(x, weight, results[1])
            return results[0]  # type: ignore[no-any-return]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
            x, weight, _ = ctx.saved_tensors
            with accountant.kernel("_fused_rms_norm_backward", [*grads, *ctx.saved_tensors], []) as results:
                results.extend([torch.empty_like(x), torch.empty_like(weight)])
            return results[0], results[1]

    original = nn.RMSNorm.forward

    def forward(self: nn.RMSNorm, x: Tensor) -> Tensor:
        if x.dtype != self.weight.dtype:
            raise TypeError(f"RMSNorm: got {x.dtype} and weights of {self.weight.dtype}, which no fused kernel takes")
        if torch.compiler.is_compiling():  # the compiler decomposes it for a GPU too
            return original(self, x)
        return FusedRmsNorm.apply(x, self.weight)  # type: ignore[no-any-return, no-untyped-call]

    return forward


def fake_routing(stack: ExitStack, accountant: Accountant, config: Config, routing: Routing) -> None:
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

    replace(stack, dispatch.AllToAllPlan, "wait_for_splits", wait_for_splits)


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
        fake_cuda(stack, accountant, properties or DeviceProperties())
        fake_process_groups(stack, config, rank)
        fake_tensors(stack)
        fake_kernels(stack, accountant)
        fake_routing(stack, accountant, config, routing)
        versions = fake_compiler(stack, accountant, kernels)
        replace(stack, trainer, "initialize_weights", lambda *_args: None)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=False))
        create_process_groups(config)
        stack.enter_context(accountant)
        yield FakeGpu(accountant, routing, versions)
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
