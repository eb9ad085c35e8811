"""Stand-ins that let Megatron-Core train on a CPU with gloo.

Megatron-Core assumes a CUDA device. It asks ``torch.cuda`` for the current device, streams and random state, creates
tensors with ``device="cuda"``, and compares ``Tensor.type()`` with ``torch.cuda.*`` names. `enable` gives each of these
a meaning on a CPU. Nothing runs on import, and nothing on a machine with a GPU. No result changes: a stand-in names the
CPU instead of the GPU, or does nothing where nothing has to be awaited.

Megatron-Core also decorates its pointwise functions with ``torch.compile``. `import_megatron` leaves them as they are.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
_mode: _CudaMeansCpu | None = None


class _Synchronous:
    """Stream or event of a device that runs everything in order: waiting does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def _do_nothing(self, *_: Any) -> None: ...

    record = wait = wait_event = wait_stream = synchronize = __exit__ = _do_nothing

    def __enter__(self) -> _Synchronous:
        return self

    def record_event(self, event: _Synchronous | None = None) -> _Synchronous:
        return event or self

    def query(self) -> bool:
        return True


def _names_cuda(device: Any) -> bool:
    return device is not None and str(device).startswith("cuda")


class _CudaMeansCpu(TorchFunctionMode):
    """Treat ``device="cuda"`` as the CPU, and return from ``Tensor.type()`` what Megatron's optimizer expects."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _names_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _CPU}
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # DistributedOptimizer groups parameters by names like 'torch.cuda.FloatTensor'.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*args, **kwargs)


def import_megatron() -> None:
    """Import Megatron-Core. Without a GPU its functions are not compiled. Call it before any other import of it.

    Loading torch's compiler takes a second, compiling takes longer than a CPU run gains, and needs a C++ compiler.
    """
    compile_function = torch.compile
    if not torch.cuda.is_available():
        vars(torch)["compile"] = lambda function: function
    try:
        import megatron.core  # noqa: F401 - its decorators run now
    finally:
        vars(torch)["compile"] = compile_function


def enable() -> None:
    """Let Megatron-Core run on the CPU in this process. Idempotent.

    Raises:
        RuntimeError: a CUDA or ROCm device is present, which the stand-ins would hide.
    """
    global _mode  # noqa: PLW0603 - the mode outlives this call; the process has one
    if _mode is not None:
        return
    if torch.cuda.is_available():
        raise RuntimeError("a GPU is present: the stand-ins for the CPU would hide it")

    def get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(state)

    stand_ins: dict[str, Any] = {
        "current_device": lambda: _CPU,  # used as device=torch.cuda.current_device() throughout Megatron-Core
        "set_device": lambda device: None,
        "current_stream": _Synchronous,
        "default_stream": _Synchronous,
        "Stream": _Synchronous,  # the all-to-all dispatcher's copy stream, DDP's communication stream
        "Event": _Synchronous,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda device=None: None,
        "get_rng_state": get_rng_state,  # the tracker of random states, used around dropout and initialization
        "set_rng_state": set_rng_state,
        "manual_seed": torch.manual_seed,
    }
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)

    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    # The tracker's own get and set read torch.cuda.default_generators, which is empty without a GPU.
    vars(megatron_random).update(_get_cuda_rng_state=get_rng_state, _set_cuda_rng_state=set_rng_state)

    # The all-to-all takes its split sizes as NumPy arrays, but Megatron converts only tensors on a GPU.
    def to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    for module in (moe_utils, token_dispatcher):
        vars(module)["maybe_move_tensor_to_cpu"] = to_host

    _mode = _CudaMeansCpu()
    _mode.__enter__()  # type: ignore[no-untyped-call]
