"""Who is compared, and with which micro batches and recomputation each is tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptoss20b.config.presets import PRESETS
from gptoss20b.tools.bench.scenarios import SCENARIOS, Name, Variant

Backend = Literal["torch", "transformer_engine", "megatron_local"]


@dataclass(frozen=True)
class Baseline:
    """One row of the table.

    Attributes:
        backend: the layer back end of this project's that runs; None: transformers' model.
        variant: the architecture; a peer is compared with ours of the same.
        title: what the table calls it.
        recompute: levels of RECOMPUTE to try, in order, where memory is short.
        compiled: whether the layers of transformers' model go through torch.compile.
    """

    backend: Backend | None
    variant: Variant
    title: str
    recompute: tuple[str, ...] = ()
    compiled: bool = False

    @property
    def ours(self) -> bool:
        """Whether this is the back end that peers are compared with."""
        return self.backend == "torch"


# In the order of their first trials: ours of a variant before the peers that must compute the same.
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
    """A way to run a baseline: sequences per micro batch, and a level of RECOMPUTE (None: the environment's)."""

    micro_batch_size: int
    recompute: str | None = None


def attempts(baseline: Baseline, scenario: Name, sequences: int, memory_bytes: int | None) -> list[Attempt]:
    """How to run a baseline, the best first: all sequences in one micro batch, or one by one.

    Recomputing an activation costs less than smaller micro batches and comes before them; recomputing whole layers, the
    local spec's way out, costs more.

    Args:
        sequences: of a step.
        memory_bytes: of the device; ways that cannot fit by arithmetic are left out. None: nothing is left out.
    """
    sizes = sorted({sequences, 1}, reverse=True)
    if baseline.backend != "megatron_local":
        return [Attempt(size, level) for size in sizes for level in (None, *baseline.recompute)]
    if memory_bytes is not None:
        sizes = [size for size in sizes if kept_scores(scenario, size) < memory_bytes]
    # A single layer's scores, in fp32 on their way, are many GiB too: recomputed, only one sequence has a chance.
    return [*(Attempt(size) for size in sizes), *(Attempt(1, level) for level in baseline.recompute)]


def kept_scores(scenario: Name, micro_batch_size: int) -> int:
    """Bytes of attention probabilities that Megatron-Core's local attention keeps for the backward pass, in bf16.

    >>> kept_scores("S1", 1) / 2**30
    192.0
    """
    sizes: dict[str, int] = PRESETS["reference"]["model"] | SCENARIOS[scenario].sizes
    scores = sizes["num_attention_heads"] * SCENARIOS[scenario].sequence_length ** 2
    return 2 * scores * micro_batch_size * sizes["num_layers"]
