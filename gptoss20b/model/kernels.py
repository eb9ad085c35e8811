"""Kernels of the torch back end of which a GPU has several: choose them, and say which ones run."""

from __future__ import annotations

import torch

from ..config import Config
from .grouped_gemm import loops_on_host

# On compute capability 10, cuDNN's attention has given wrong results with fewer (pytorch issue 193893).
_CUDNN_KEY_VALUE_HEADS = 8
# Description of a grouped GEMM that is many kernels.
LOOP = "a loop that waits for the GPU"


def attention_kernels(setting: str, key_value_heads: int) -> tuple[str, ...]:
    """Return the kernels of full causal layers without sinks, of which torch takes one that this GPU supports.

    Args:
        setting: ATTENTION_KERNEL: cudnn, flash or flex, or auto for cudnn and flash.
        key_value_heads: on this rank.
    """
    if setting != "auto":
        return (setting,)
    if torch.version.hip is not None:
        return ("flash",)
    if torch.cuda.get_device_capability()[0] == 10 and key_value_heads < _CUDNN_KEY_VALUE_HEADS:
        return ("flash",)
    return ("cudnn", "flash")


def describe_attention(config: Config) -> str:
    """Return the attention kernels of this GPU, such as ``cudnn or flash, windowed layers flex``."""
    if config.model.attention_sinks:
        return "flex"
    full = attention_kernels(config.execution.attention_kernel, config.model.num_query_groups)
    return f"{' or '.join(full)}, windowed layers flex"


def describe_kernels(config: Config, backend: str, device: torch.device) -> dict[str, str]:
    """Return the kernels that run by operator. Empty on a CPU, and for back ends that choose their own."""
    if backend != "torch" or device.type != "cuda":
        return {}
    return {
        "attention": describe_attention(config),
        "grouped_gemm": LOOP if loops_on_host(device) else "one kernel",
    }
