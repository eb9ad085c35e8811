"""Import Transformer Engine without a GPU: its libraries where they load, else its Python sources alone.

Importing this module does it, and then imports Megatron-Core, which looks for Transformer Engine at its own import.

The wheels' Python code runs unchanged in both cases. Without its libraries, names of the compiled extension and of
packages that only its kernels need are stand-ins: constructors of layers use them as names and numbers only.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

from gptoss20b.megatron_cpu import import_megatron

WHEELS = "TRANSFORMER_ENGINE_WHEELS"
# Of packages that the sources import, and that constructing a layer does not call.
_KERNEL_PACKAGES = (
    *("onnxscript", "onnx", "einops", "nvdlfw_inspect", "nvdlfw_inspect.api"),
    *("triton", "triton.language", "triton.language.core", "triton.language.standard"),
)
_numbers = itertools.count()


class _Name(type):
    """A name of the extension: a class, an enumeration or a function, whose attributes are names too."""

    def __getattr__(cls, name: str) -> Any:
        return _add_name(cls, name)

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        if "number" not in vars(cls):  # a class of the sources that inherits from a name
            return super().__call__(*arguments, **options)
        # A decorator returns what it decorates.
        return arguments[0] if len(arguments) == 1 and isinstance(arguments[0], types.FunctionType) else cls

    def __int__(cls) -> int:
        return int(vars(cls)["number"])

    @property
    def __members__(cls) -> dict[str, Any]:
        return {name: value for name, value in vars(cls).items() if isinstance(value, _Name)}


def _add_name(owner: Any, name: str) -> Any:
    """Give a module or a name another name, and return it. Python's own names have to be there already."""
    if name.startswith("__"):
        raise AttributeError(name)
    value = _Name(name, (), {"number": next(_numbers)})
    setattr(owner, name, value)
    return value


class _Extension(types.ModuleType):
    """A module all of whose names exist."""

    __version__ = "3.5.0"  # of Triton: its sources take other paths for older ones

    def __getattr__(self, name: str) -> Any:
        return _add_name(self, name)


def import_transformer_engine() -> str:
    """Import transformer_engine.pytorch. Return "libraries", or "sources" where its libraries do not load.

    Raises:
        ImportError: there is neither the package nor a wheel of it in the folder of TRANSFORMER_ENGINE_WHEELS.
    """
    warnings.simplefilter("ignore")
    if importlib.util.find_spec("transformer_engine") is not None:
        importlib.import_module("transformer_engine.pytorch")
        return "libraries"
    folder = Path(os.environ.get(WHEELS) or Path(__file__).resolve().parents[3] / "shared" / "gpu_kit")
    wheels = sorted(folder.glob("transformer_engine-*-py3-none-any.whl"))
    if not wheels:
        raise ImportError(f"no package transformer_engine, and no wheel of it in {folder} ({WHEELS})")
    importlib.import_module("torch._inductor.utils")  # before a stand-in for Triton, which torch would take for it
    sys.path.insert(0, str(wheels[-1]))
    missing = [name for name in _KERNEL_PACKAGES if importlib.util.find_spec(name.split(".")[0]) is None]
    for name in ("transformer_engine_torch", "transformer_engine.pytorch.onnx_extensions", *missing):
        sys.modules[name] = _Extension(name)
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # its own switch: do not load CUDA's libraries
    common = importlib.import_module("transformer_engine.common")
    vars(common)["load_framework_extension"] = lambda _framework: None
    importlib.import_module("transformer_engine.pytorch")
    return "sources"


MODE = import_transformer_engine()
import_megatron()
