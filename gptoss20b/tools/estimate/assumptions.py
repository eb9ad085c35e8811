"""What the scaling model takes as given: each with its value, its unit and where it is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .errors import EstimateError


def _assumed(value: float, unit: str, source: str, low: float = 0.0, high: float = float("inf")) -> Any:
    return field(default=value, metadata={"unit": unit, "source": source, "low": low, "high": high})


@dataclass(frozen=True)
class Assumptions:
    """Factors that no data sheet gives. `--assume NAME=VALUE` changes one; the metadata of a field says the rest."""

    memory_fraction: float = _assumed(
        0.8, "of memory bandwidth", "what streaming kernels reach; assumed, not measured here", 0.01, 1
    )
    link_fraction: float = _assumed(
        0.8, "of link and network bandwidth", "what large collectives reach; assumed, not measured here", 0.01, 1
    )
    latency_us: float = _assumed(25, "us per all-to-all", "one launch and its split sizes; assumed, not measured here")
    imbalance: float = _assumed(
        1.6,
        "x rows on the busiest rank, EP > 1",
        "fitted to GB200 at 8 and 72 GPUs (docs/scaling.md): holds all that EP 4 and CP 2 cost beyond their bytes",
        1,
    )
    overlap: float = _assumed(
        0.9,
        "of gradient reduction and weight gathering",
        "at most so much hides behind the last backward and the first forward; the last bucket cannot; assumed",
        0,
        1,
    )
    gradient_bytes: float = _assumed(4, "bytes per gradient reduced", "fp32 gradients (grad_reduce_in_fp32)")
    weight_bytes: float = _assumed(2, "bytes per weight gathered", "bf16 weights")
    traffic_bytes: float = _assumed(
        12,
        "bytes per weight and micro batch",
        "a bf16 gradient written, read, and added to the fp32 one (2 + 2 + 8): work that does not shrink with tokens",
    )

    def with_changes(self, texts: Sequence[str]) -> Assumptions:
        """These with ``NAME=VALUE`` texts applied, and "given by hand" as their source in `rows`.

        Raises:
            EstimateError: no such name, or a value that is no number within its bounds.
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
        """Name, value, unit and source of each."""
        return [
            (
                each.name,
                getattr(self, each.name),
                each.metadata["unit"],
                each.metadata["source"] if getattr(self, each.name) == each.default else "given by hand",
            )
            for each in fields(self)
        ]
