"""The least time that a GPU takes for a step's kernels, by part of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..hardware import System
from .result import PartWork, Work

# The first pattern that is found in "module/operator" names the part. A compiled attention is one module.
_PARTS = {
    "attention scores": r"core_attention|/.*(flex|dot_product)",
    "attention projections": r"linear_qkv|linear_proj|self_attention/(mm|addmm)",
    "QK norms and rotation": r"self_attention|rotary",
    "router": r"mlp\.router",
    "experts": r"mlp\.experts",
    "dispatch": r"mlp/",
    "norms": r"layernorm",
    "embedding": r"embedding",
    "output layer and loss": r"output_layer",
    "residuals": r"[^/]+/",
    "optimizer and gradients": r"",
}


def sum_by_part(work: Iterable[Work], system: System) -> list[PartWork]:
    """Return the work of each part in each phase, with its least time on a GPU.

    A kernel takes at least its FLOPs over the peak of its dtype, and at least its bytes over the memory's bandwidth.
    """
    sums: dict[tuple[str, str], PartWork] = {}
    for each in work:
        place = f"{each.module}/{each.operator}"
        part = next(name for name, pattern in _PARTS.items() if re.search(pattern, place))
        sum_ = sums.setdefault(
            (part, each.phase), PartWork(part=part, phase=each.phase, flops=0, bytes=0, roofline_seconds=0.0)
        )
        sum_.flops += each.flops
        sum_.bytes += each.bytes
        sum_.roofline_seconds += roofline_seconds(each, system)
    return sorted(sums.values(), key=lambda each: (list(_PARTS).index(each.part), each.phase != "forward"))


def roofline_seconds(work: Work, system: System) -> float:
    """Return the least time of these kernels: compute or memory, whichever takes longer."""
    peak = system.peak_tflops
    if work.dtype == "float32" and system.fp32_tflops is not None:
        peak = system.fp32_tflops
    return max(work.flops / (peak * 1e12), work.bytes / (system.memory_tbs * 1e12))
