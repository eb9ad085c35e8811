"""The rows of the comparison, and the micro batches and recomputation to try for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptoss20b.config.presets import PRESETS
from gptoss20b.tools.bench.scenarios import SCENARIOS, ScenarioName, Variant

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


def attempts(baseline: Baseline, scenario: ScenarioName, sequences: int, memory_bytes: int | None) -> list[Attempt]:
    """Return the attempts to fit a baseline into memory, the fastest first.

    Recomputing an activation costs less than smaller micro batches, so it comes first. Recomputing whole layers, the
    last resort of the local spec, costs more. Attempts that cannot fit into ``memory_bytes`` are left out.
    """
    sizes = sorted({sequences, 1}, reverse=True)
    if baseline.backend != "megatron_local":
        return [Attempt(size, level) for size in sizes for level in (None, *baseline.recompute)]
    if memory_bytes is not None:
        sizes = [size for size in sizes if attention_score_bytes(scenario, size) < memory_bytes]
    # One layer's scores take many GiB too, in fp32 on their way: with recomputation, only one sequence can fit.
    return [*(Attempt(size) for size in sizes), *(Attempt(1, level) for level in baseline.recompute)]


def attention_score_bytes(scenario: ScenarioName, micro_batch_size: int) -> int:
    """Return the bytes of bf16 attention probabilities that Megatron-Core's local attention keeps for backward.

    >>> attention_score_bytes("S1", 1) / 2**30
    192.0
    """
    sizes: dict[str, int] = PRESETS["reference"]["model"] | SCENARIOS[scenario].sizes
    scores = sizes["num_attention_heads"] * SCENARIOS[scenario].sequence_length ** 2
    return 2 * scores * micro_batch_size * sizes["num_layers"]
