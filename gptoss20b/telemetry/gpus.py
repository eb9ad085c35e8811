"""The GPUs of this node whose telemetry is read: those that the vendor's variables make visible to a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(frozen=True)
class Reading:
    """Values of one GPU. A value that the GPU or its library does not report is None.

    Attributes:
        sm_clock_mhz: clock of the compute units.
        temperature_c: of the GPU; on AMD its hottest point.
        utilization_percent: time in which a kernel ran.
        memory_used_mib: allocated memory, with that of the driver.
        throttle_reasons: active reasons for lower clocks than possible; empty for none.
    """

    power_w: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    utilization_percent: float | None = None
    memory_used_mib: float | None = None
    throttle_reasons: tuple[str, ...] | None = None


class Gpu(Protocol):
    """One GPU. ``index``: its number in the order of the vendor's tools. ``uuids``: names, the recorded one first."""

    index: int
    uuids: tuple[str, ...]

    def read(self) -> Reading:
        """Return the values at this moment. A lost GPU gives an empty reading."""


class NoGpuError(Exception):
    """No GPU of this node can be read. The message says why, for each vendor's library."""


AnyGpu = TypeVar("AnyGpu", bound=Gpu)


def select_visible(gpus: Sequence[AnyGpu], names: Sequence[str] | None) -> list[AnyGpu]:
    """Return the GPUs that the value of a variable such as CUDA_VISIBLE_DEVICES names; all of them for None.

    A name is a position in ``gpus``, or a UUID or its beginning. As in the vendors' runtimes, the first name that fits
    no GPU ends the list: ``-1`` hides all GPUs.
    """
    if names is None:
        return list(gpus)
    selected: list[AnyGpu] = []
    for name in map(str.strip, names):
        matches = _find(gpus, name)
        if len(matches) != 1:
            break
        # Several MIG slices of one GPU name it several times.
        selected += [gpu for gpu in matches if gpu not in selected]
    return selected


def _find(gpus: Sequence[AnyGpu], name: str) -> Sequence[AnyGpu]:
    if name.isdecimal():
        return gpus[int(name) : int(name) + 1]
    return [gpu for gpu in gpus if name and any(uuid.startswith(name) for uuid in gpu.uuids)]


def open_gpus(limit: int | None = None) -> list[Gpu]:
    """Open the library of this node's GPUs and return the visible ones: the first ``limit``, if given.

    Raises:
        NoGpuError: there is no library, no driver or no visible GPU.
    """
    from . import amd, nvidia

    reasons = []
    for vendor in (nvidia, amd):
        try:
            gpus: Sequence[Gpu] = vendor.open_visible()
        except Exception as error:  # each library has its own exception class
            reasons.append(f"{vendor.LIBRARY}: {' '.join(str(error).split()) or type(error).__name__}")
        else:
            if gpus:
                return list(gpus[:limit])
            reasons.append(f"{vendor.LIBRARY}: no GPU is visible")
    raise NoGpuError("; ".join(reasons))
