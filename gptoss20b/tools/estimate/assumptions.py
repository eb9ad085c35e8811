"""Assumptions of the scaling model, each with its value, unit and source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any


class EstimateError(ValueError):
    """An unknown system, an impossible efficiency or an unsupported layout. The message names what to change."""


def _assumption(value: float, unit: str, source: str, low: float = 0.0, high: float = float("inf")) -> Any:
    return field(default=value, metadata={"unit": unit, "source": source, "low": low, "high": high})


@dataclass(frozen=True)
class Assumptions:
    """Factors that no data sheet gives. `--assume NAME=VALUE` changes one; a field's metadata has unit and source."""

    memory_fraction: float = _assumption(
        0.8, "of memory bandwidth", "what streaming kernels reach; assumed, not measured here", 0.01, 1
    )
    link_fraction: float = _assumption(
        0.8, "of link and network bandwidth", "what large collectives reach; assumed, not measured here", 0.01, 1
    )
    latency_us: float = _assumption(
        25, "us per all-to-all", "one launch and its split sizes; assumed, not measured here"
    )
    imbalance: float = _assumption(
        1.6,
        "x rows on the busiest rank, EP > 1",
        "fitted to GB200 at 8 and 72 GPUs (docs/performance-model.md): all that EP 4 and CP 2 cost beyond their bytes",
        1,
    )
    overlap: float = _assumption(
        0.9,
        "of gradient reduction and weight gathering",
        "largest part hidden behind the last backward and the first forward; the last bucket is exposed; assumed",
        0,
        1,
    )
    gradient_bytes: float = _assumption(4, "bytes per gradient reduced", "fp32 gradients (grad_reduce_in_fp32)")
    weight_bytes: float = _assumption(2, "bytes per weight gathered", "bf16 weights")
    traffic_bytes: float = _assumption(
        12,
        "bytes per weight and micro batch",
        "a bf16 gradient written, read, and added to the fp32 one (2 + 2 + 8): work that does not shrink with tokens",
    )

    def with_overrides(self, texts: Sequence[str]) -> Assumptions:
        """Return a copy with ``NAME=VALUE`` texts applied.

        Raises:
            EstimateError: an unknown name, or a value that is no number within its bounds.
        """
        known = {each.name: each for each in fields(self)}
        changes: dict[str, float] = {}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in known:
                raise EstimateError(f"--assume: got '{text}', expected NAME=VALUE with one of {', '.join(known)}.")
            low, high = known[name].metadata["low"], known[name].metadata["high"]
            try:
                changes[name] = float(value)
            except ValueError:
                changes[name] = float("nan")
            if not low <= changes[name] <= high or changes[name] == float("inf"):
                raise EstimateError(f"--assume {name}: got '{value}', expected a number from {low:g} to {high:g}.")
        return replace(self, **changes)

    def rows(self) -> list[tuple[str, float, str, str]]:
        """Return name, value, unit and source of each assumption."""
        return [
            (
                each.name,
                getattr(self, each.name),
                each.metadata["unit"],
                each.metadata["source"] if getattr(self, each.name) == each.default else "set on the command line",
            )
            for each in fields(self)
        ]
