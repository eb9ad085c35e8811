"""The machines of `estimate`, as data: peak, memory and links of one GPU, as the vendors state them.

Rates are per GPU; links count one direction. GB200 and GB300 are racks of 72 GPUs on NVLink with four to a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import EstimateError


@dataclass(frozen=True)
class System:
    """One GPU and what joins it to others.

    Attributes:
        name: as --system takes it.
        peak_tflops: dense bf16 TFLOP/s.
        memory_gb: GB (10^9 bytes) of memory.
        memory_tbs: TB/s of memory.
        link_gbs: GB/s to the GPUs of its domain, one direction, all links together.
        network_gbs: GB/s to all others, one direction.
        domain: GPUs that NVLink or xGMI joins.
        gpus_per_node: what DGXNGPU is if nobody says.
        source: where the figures are from.
    """

    name: str
    peak_tflops: float
    memory_gb: float
    memory_tbs: float
    link_gbs: float
    network_gbs: float
    domain: int
    gpus_per_node: int
    source: str

    def nvlink_domain_size(self, gpus_per_node: int) -> int:
        """GPUs that share fast links where nodes have this many: a rack's, or a node's."""
        return self.domain if self.domain > self.gpus_per_node else min(self.domain, gpus_per_node)


_NVLINK_4 = "NVLink 4: 900 GB/s both ways; 400 Gb/s network"
_NVLINK_5 = "NVLink 5: 1,800 GB/s both ways"
SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("H100", 990, 80, 3.35, 450, 50, 8, 8, f"NVIDIA H100 SXM and DGX H100 data sheets; {_NVLINK_4}"),
        System("H200", 990, 141, 4.8, 450, 50, 8, 8, f"NVIDIA H200 SXM and DGX H200 data sheets; {_NVLINK_4}"),
        System("B200", 2250, 180, 8.0, 900, 50, 8, 8, f"NVIDIA DGX B200 data sheet; {_NVLINK_5}, 400 Gb/s network"),
        System("B300", 2250, 270, 8.0, 900, 100, 8, 8, f"NVIDIA DGX B300 data sheet; {_NVLINK_5}, 800 Gb/s network"),
        System("GB200", 2500, 186, 8.0, 900, 50, 72, 4, f"NVIDIA GB200 NVL72 sheet; {_NVLINK_5}, 400 Gb/s network"),
        System("GB300", 2500, 279, 8.0, 900, 100, 72, 4, f"NVIDIA GB300 NVL72 sheet; {_NVLINK_5}, 800 Gb/s network"),
        System(
            "MI355X", 2300, 288, 8.0, 537.6, 50, 8, 8,
            "AMD MI355X data sheet; xGMI 7 x 76.8 GB/s, 400 Gb/s network; peak as published MFUs of this benchmark "
            "take it (the sheet: 2,517)",
        ),
    )
}  # fmt: skip
# Words in a device's name for a card or a slice of lower rates than the module of the same name.
_OTHER_FORMS = {"PCIE", "NVL", "MIG"}
# Option of the command line for each figure that can be given by hand.
BY_HAND = {
    "peak_tflops": "--peak-tflops",
    "memory_gb": "--memory-gb",
    "memory_tbs": "--memory-tbs",
    "link_gbs": "--link-gbs",
    "network_gbs": "--network-gbs",
    "domain": "--domain",
}


def system_of(device: str) -> System | None:
    """The system whose GPU has this name, as torch gives it; None for others, and for its cards and slices.

    >>> system_of("NVIDIA H200").name
    'H200'
    >>> system_of("NVIDIA H200 NVL")
    """
    words = set(device.upper().replace("-", " ").replace("_", " ").split())
    if words & _OTHER_FORMS:
        return None
    return next((system for name, system in SYSTEMS.items() if name in words), None)


def find_system(name: str, by_hand: Mapping[str, float | None]) -> System:
    """A system by name, with the figures that are given by hand in place of its own.

    Args:
        name: one of `SYSTEMS` in any case, or any name if all of `BY_HAND` are given.
        by_hand: figures by the names of `System`'s fields, None for those not given.

    Raises:
        EstimateError: an unknown name without all figures, or a figure that is not above zero.
    """
    given = {field: value for field in BY_HAND if (value := by_hand.get(field)) is not None}
    for field, value in given.items():
        if not 0 < value < float("inf"):
            raise EstimateError(f"{BY_HAND[field]}: got {value}, expected a number above 0.")
    known = SYSTEMS.get(name.upper())
    missing = [option for field, option in BY_HAND.items() if field not in given]
    if known is None and missing:
        raise EstimateError(
            f"--system: got '{name}', expected one of {', '.join(SYSTEMS)}. Name one of them, or give the figures of "
            f"yours: {' '.join(missing)}."
        )
    figures: dict[str, Any] = {**given, "domain": int(given["domain"])} if "domain" in given else dict(given)
    if known is None:
        return System(name, **figures, gpus_per_node=min(8, figures["domain"]), source="given by hand")
    noted = f"{known.source}; by hand: {', '.join(BY_HAND[field] for field in given)}" if given else known.source
    return replace(known, **figures, source=noted)
