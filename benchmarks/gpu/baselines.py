"""The rows of the comparison, and the micro batches and recomputation to try for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptoss20b.tools.bench.scenarios import Variant

Backend = Literal["torch", "transformer_engine", "megatron_local"]


@dataclass(frozen=True)
class Baseline:
    """One row of the comparison: this project's own step, or a step it is compared with.

    Attributes:
        backend: layer back end of this project; None for transformers' model.
        variant: architecture. A baseline is compared with our step of the same architecture.
        title: name in the table.
        recompute: levels of RECOMPUTE to try, in order, where memory is short.
        compiled: run the layers of transformers' model through torch.compile.
    """

    backend: Backend | None
    variant: Variant
    title: str
    recompute: tuple[str, ...] = ()
    compiled: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether this is our own step, the one that others are compared with."""
        return self.backend == "torch"


# In the order of their first trials: our step of a variant before the baselines that must reproduce it.
BASELINES: dict[str, Baseline] = {
    "ours": Baseline("torch", "reference", "ours", ("moe_act",)),
    "transformer_engine": Baseline(
        "transformer_engine", "reference", "Megatron-Core, Transformer Engine spec", ("moe_act",)
    ),
    "megatron_local": Baseline("megatron_local", "reference", "Megatron-Core, local spec", ("layers",)),
    "ours_openai": Baseline("torch", "openai", "ours, openai variant", ("moe_act",)),
    "hugging_face_compiled": Baseline(None, "openai", "Hugging Face, layers compiled", compiled=True),
    "hugging_face": Baseline(None, "openai", "Hugging Face"),
}


@dataclass(frozen=True)
class Attempt:
    """Sequences per micro batch, and a level of RECOMPUTE (None: the environment's)."""

    micro_batch_size: int
    recompute: str | None = None


def attempts(baseline: Baseline, sequences: int) -> list[Attempt]:
    """Return the attempts to fit a baseline into memory, the fastest first.

    Recomputing an activation costs less than smaller micro batches, so it comes first. Recomputing whole layers, the
    last resort of the local spec, costs more.
    """
    sizes = sorted({sequences, 1}, reverse=True)
    if baseline.backend != "megatron_local":
        return [Attempt(size, level) for size in sizes for level in (None, *baseline.recompute)]
    # One layer's scores take many GiB, in fp32 on their way: with recomputation, only one sequence can fit.
    return [*(Attempt(size) for size in sizes), *(Attempt(1, level) for level in baseline.recompute)]
