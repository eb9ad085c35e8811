"""The system of an estimate: a known one by name, with the figures of the command line instead of its data sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...hardware import SYSTEMS, System
from .assumptions import EstimateError

_FIGURES = ("peak_tflops", "memory_gb", "memory_tbs", "link_gbs", "network_gbs", "domain")
# Command-line option of each figure of a system that can be overridden.
OVERRIDE_OPTIONS = {figure: f"--{figure.replace('_', '-')}" for figure in _FIGURES}


def find_system(name: str, overrides: Mapping[str, float | None]) -> System:
    """Return a system by name in any case, with overrides by field; None keeps the system's own.

    Raises:
        EstimateError: an unknown name without all figures, or a figure that is not above zero.
    """
    given = {field: value for field in OVERRIDE_OPTIONS if (value := overrides.get(field)) is not None}
    for field, value in given.items():
        if not 0 < value < float("inf"):
            raise EstimateError(f"{OVERRIDE_OPTIONS[field]}: got {value}, expected a number above 0.")
    known = SYSTEMS.get(name.upper())
    missing = [option for field, option in OVERRIDE_OPTIONS.items() if field not in given]
    if known is None and missing:
        raise EstimateError(
            f"--system: got '{name}', expected one of {', '.join(SYSTEMS)}. Name one of them, or give the figures of "
            f"yours: {' '.join(missing)}."
        )
    figures: dict[str, Any] = {**given, "domain": int(given["domain"])} if "domain" in given else dict(given)
    if known is None:
        return System(name, **figures, gpus_per_node=min(8, figures["domain"]), source="given on the command line")
    options = ", ".join(OVERRIDE_OPTIONS[field] for field in given)
    return replace(known, **figures, source=f"{known.source}; overridden: {options}" if given else known.source)
