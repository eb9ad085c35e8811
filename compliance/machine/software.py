"""Versions of what training runs on, from the metadata of installed packages: nothing is imported."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from .sources import clean, text, word

_FRAMEWORK = {"torch": "PyTorch", "megatron-core": "Megatron-Core"}
# The CUDA libraries carry CUDA's major version in their names.
_STACK = {
    "transformer-engine": "Transformer Engine", "flash-attn": "FlashAttention",
    "nvidia-cuda-runtime": "CUDA runtime", "nvidia-cuda-runtime-cu12": "CUDA runtime",
    "nvidia-cudnn-cu12": "cuDNN", "nvidia-cudnn-cu13": "cuDNN",
    "nvidia-nccl-cu12": "NCCL", "nvidia-nccl-cu13": "NCCL",
    "triton": "Triton",
}  # fmt: skip


def software_fields(
    root: Path = Path("/"), site: Sequence[str] | None = None, driver: str | None = None
) -> dict[str, str]:
    """Framework and other_software_stack, as far as they are known.

    Args:
        root: folder that holds `usr/local/cuda` and `opt/rocm`, where they are installed.
        site: folders of installed packages; None: those of this Python.
        driver: the accelerators' driver with its version.

    Returns:
        No framework unless torch is installed: it may be in another environment or image.
    """
    installed = _versions(sys.path if site is None else site)
    framework = [f"{name} {installed[key]}" for key, name in _FRAMEWORK.items() if key in installed]
    stack = [f"{name} {installed[key]}" for key, name in _STACK.items() if key in installed]
    rocm = word(root / "opt/rocm/.info/version")
    platform = [driver, _cuda(root), f"ROCm {rocm}" if rocm else None]
    fields = {
        # No commas: the official summary is a line of comma-separated values.
        "framework": " + ".join(framework) if "torch" in installed else "",
        "other_software_stack": ", ".join([*stack, *filter(None, platform)]),
    }
    return {field: value for field, value in fields.items() if value}


def _versions(site: Sequence[str]) -> dict[str, str]:
    """Version of each package of interest; the first on the path, as an import would find it."""
    found: dict[str, str] = {}
    for each in metadata.distributions(path=list(site)):
        about = each.metadata
        name = clean(about["Name"]).lower().replace("_", "-")
        version = clean(about["Version"])
        if version and name in _FRAMEWORK.keys() | _STACK.keys():
            found.setdefault(name, version)
    return found


def _cuda(root: Path) -> str | None:
    try:
        version = json.loads(text(root / "usr/local/cuda/version.json") or "")["cuda"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return f"CUDA toolkit {clean(version)}" if isinstance(version, str) else None
