"""Stand-ins for torch.cuda, and the replacement of functions by stand-ins."""

from __future__ import annotations

import contextlib
import inspect
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .accounting import Accountant
from .guard import ProofError
from .targets import DeviceProperties

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


def fake_cuda(stack: ExitStack, accountant: Accountant, properties: DeviceProperties) -> None:
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
        replace(stack, torch.cuda, name, function)
    if properties.gcnArchName:  # torch and this project ask torch's build for the vendor
        replace(stack, torch.version, "hip", "7.1")
    # Autocast and fused optimizers would ask the accelerator API, which looks for a real device.
    replace(stack, torch.accelerator, "is_available", lambda: False)
    from megatron.core.tensor_parallel import random

    # Megatron's own functions read the device's generator, which does not exist.
    for name, function in (
        ("_get_cuda_rng_state", lambda *_args, **_options: torch.get_rng_state()),
        ("_set_cuda_rng_state", lambda state, *_args, **_options: torch.set_rng_state(state)),
    ):
        replace(stack, random, name, function)
    # FakeTensorMode would create a context on the device.
    replace(stack, FakeTensorMode, "avoid_device_init", property(lambda _self: True))


def replace(stack: ExitStack, owner: Any, name: str, stand_in: Any) -> None:
    """Replace an attribute of a module or class by a stand-in, until the stack is closed.

    Raises:
        ProofError: this version of torch or Megatron-Core has no such attribute, or gives it other arguments.
    """
    place = f"{getattr(owner, '__module__', '')}.{owner.__name__}.{name}".lstrip(".")
    if not hasattr(owner, name):
        raise ProofError(f"{place}: not found, so its stand-in in gptoss20b/proof has no use. Find what replaced it")
    problem = difference(getattr(owner, name), stand_in)
    if problem:
        raise ProofError(f"{place}: {problem}. Change its stand-in in gptoss20b/proof")
    stack.enter_context(patch.object(owner, name, stand_in))


def difference(original: Any, stand_in: Any) -> str | None:
    """Return why a stand-in cannot take the original's place: what the one has and the other has not; or None."""
    if isinstance(stand_in, type):
        # Attributes come from C++, which the CPU build leaves out.
        methods = [name for name, value in vars(stand_in).items() if callable(value) and not name.startswith("_")]
        lacking = [name for name in methods if not hasattr(original, name)]
        return f"has no {', '.join(lacking)}" if lacking else None
    try:
        parameters = inspect.signature(original).parameters.values()
    except (TypeError, ValueError):  # an attribute, or a function in C++
        return None
    keywords = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
    positional = [None for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    try:
        inspect.signature(stand_in).bind(*positional, **keywords)
    except TypeError as error:
        return f"is called as {inspect.signature(original)}, which the stand-in does not take ({error})"
    return None
