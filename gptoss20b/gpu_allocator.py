"""Settings of PyTorch's caching allocator of GPU memory."""

from __future__ import annotations

import os

import torch

# torch 2.9 renamed the second to the first. Where both are set, the allocator of CUDA reads the second.
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_DEFAULT = "expandable_segments:True"


def use_expandable_segments() -> None:
    """Let the allocator grow its segments on NVIDIA GPUs, unless the user has set one of `VARIABLES`, also to nothing.

    Traces need some 5 GiB less with them: the numbers of rows change in every layer and step, and blocks of one number
    seldom fit another. Call this before the process uses a GPU: the allocator reads the variable once.
    """
    # torch's newest builds for ROCm have them too, and have crashed with them (pytorch issue 187343).
    if torch.version.cuda is not None and not any(name in os.environ for name in VARIABLES):
        os.environ[VARIABLES[0]] = _DEFAULT


def allocator_settings() -> dict[str, str]:
    """Return those of `VARIABLES` that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}
