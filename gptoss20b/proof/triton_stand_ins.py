"""Stand-ins for the device that inductor and Triton ask while they compile. The compilers are the real ones."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .fake_cuda import replace
from .guard import ProofError
from .kernel_report import Resources
from .targets import Target

# Read when torch's compiler is imported. A CPU build has no launcher in C++; workers would not see the stand-ins.
ENVIRONMENT = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER": "0",
}
# Function name, warps, stages and resources of a kernel that a device would load.
OnLoad = Callable[[str, int, int, Resources], None]


def fake_device(stack: ExitStack, target: Target, on_load: OnLoad) -> None:
    """Let inductor and Triton compile for a target that is not there, and tell ``on_load`` each binary.

    Raises:
        ProofError: there is no Triton.
    """
    try:
        from triton.runtime import driver
    except ModuleNotFoundError as error:
        raise ProofError("triton: not installed. Run: pip install -r requirements/proof.txt") from error
    binaries = _read_reports(stack, target)
    stack.enter_context(patch.object(driver, "_active", _Driver(target, binaries, on_load)))
    if target.backend == "hip":  # torch asks its own build for the vendor
        stack.enter_context(patch.object(torch.version, "hip", "7.1"))
    _fake_inductor_device(stack, target)
    _fold_constants_on_cpu(stack)


def _read_reports(stack: ExitStack, target: Target) -> dict[str, tuple[int, int, Resources]]:
    """Return warps, stages and resources by binary, a mapping that fills up: Triton drops its assembler's report."""
    from triton import knobs
    from triton.backends.amd.compiler import HIPBackend
    from triton.backends.nvidia.compiler import CUDABackend

    binaries: dict[str, tuple[int, int, Resources]] = {}
    make_cubin, make_hsaco = CUDABackend.make_cubin, HIPBackend.make_hsaco

    def cubin(self: Any, source: Any, metadata: dict[str, Any], *options: Any) -> bytes:
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            binary: bytes = make_cubin(self, source, metadata, *options)
        resources = parse_ptxas(log.getvalue(), metadata["shared"])
        binaries[_digest(binary)] = metadata["num_warps"], metadata["num_stages"], resources
        return binary

    def hsaco(source: str, metadata: dict[str, Any], options: Any) -> bytes:
        binary: bytes = make_hsaco(source, metadata, options)
        binaries[_digest(binary)] = (
            metadata["num_warps"],
            metadata["num_stages"],
            parse_amd_metadata(source, metadata["shared"]),
        )
        return binary

    replace(stack, CUDABackend, "make_cubin", cubin)
    replace(stack, HIPBackend, "make_hsaco", staticmethod(hsaco))
    stack.enter_context(patch.object(knobs.nvidia, "dump_ptxas_log", True))
    return binaries


def _digest(binary: bytes) -> str:
    return hashlib.sha256(binary).hexdigest()


def parse_ptxas(log: str, shared_bytes: int) -> Resources:
    """Return the resources of the only kernel in the output of `ptxas -v`."""
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    used = re.search(r"Used (\d+) registers", log)
    if frame is None or used is None:
        raise ProofError(f"ptxas -v: expected a stack frame and registers, got: {log[:500]}")
    stack, stores, loads = map(int, frame.groups())
    return Resources(
        registers=int(used[1]),
        stack_bytes=stack,
        spill_store_bytes=stores,
        spill_load_bytes=loads,
        shared_bytes=shared_bytes,
    )


def parse_amd_metadata(assembly: str, shared_bytes: int) -> Resources:
    """Return the resources of the only kernel in AMD assembly, from the metadata at its end.

    Spilled scalar registers are left out: they go to vector registers, whose spills are counted.
    """

    def value(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        if found is None:
            raise ProofError(f"AMD assembly: expected the metadata '.{key}'")
        return int(found[1])

    spilled = 4 * value("vgpr_spill_count")
    return Resources(
        registers=value("vgpr_count"),
        stack_bytes=value("private_segment_fixed_size"),
        spill_store_bytes=spilled,
        spill_load_bytes=spilled,
        shared_bytes=shared_bytes,
    )


class _Driver:
    """Triton's driver of the device: it would load binaries and launch them."""

    def __init__(self, target: Target, binaries: dict[str, tuple[int, int, Resources]], on_load: OnLoad) -> None:
        self._target, self._binaries, self._on_load = target, binaries, on_load
        self.utils = self

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self._target.backend, self._target.architecture, self._target.properties.warp_size)

    def get_device_properties(self, _device: int) -> dict[str, int]:
        properties = self._target.properties
        return {
            "max_shared_mem": properties.shared_memory_per_block_optin,
            "multiprocessor_count": properties.multi_processor_count,
            "warpSize": properties.warp_size,
        }

    def load_binary(self, name: str, binary: bytes, _shared: int, _device: int) -> tuple[int, int, int, int, int]:
        """Return module, function, registers, spilled registers and the largest block, as the real driver does."""
        warps, stages, resources = self._binaries[_digest(binary)]
        self._on_load(name, warps, stages, resources)
        return 0, 0, resources.registers, resources.stack_bytes // 4, self._target.properties.max_threads_per_block

    def launcher_cls(self, _source: Any, _metadata: Any) -> Callable[..., None]:
        return lambda *_arguments: None

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_current_stream(self, _device: int = 0) -> int:
        return 0


def _fake_inductor_device(stack: ExitStack, target: Target) -> None:
    """Answer the questions of torch's compiler: it took torch.cuda's functions when it was imported."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.runtime import triton_helpers

    answers: dict[str, Any] = {
        "get_device_properties": target.properties,
        **dict.fromkeys(("current_device", "exchange_device", "maybe_exchange_device", "get_raw_stream"), 0),
        **dict.fromkeys(("set_device", "synchronize"), None),
    }
    for name, answer in answers.items():
        replace(stack, CudaInterface, name, staticmethod(lambda _device=None, answer=answer: answer))
    for name in ("_exchange_device", "_maybe_exchange_device"):
        replace(stack, torch.cuda, name, lambda _device: 0)
    # Generated code imports it.
    stack.enter_context(patch.object(torch._C, "_cuda_getCurrentRawStream", lambda _device: 0, create=True))
    # It would replace the driver by the first that finds its device.
    replace(stack, triton_helpers, "set_driver_to_gpu", lambda: None)


def _fold_constants_on_cpu(stack: ExitStack) -> None:
    """Evaluate constants of graphs on the CPU: torch evaluates them on their device, which has no operators here."""
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder

    class OnCpu(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            return function(*args, **kwargs | ({"device": "cpu"} if "device" in kwargs else {}))

    run = UniformValueConstantFolder.run

    def run_on_cpu(self: Any) -> Any:
        with OnCpu():  # type: ignore[no-untyped-call]
            return run(self)

    replace(stack, UniformValueConstantFolder, "run", run_on_cpu)
