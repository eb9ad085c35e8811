"""Report of one source on the GPUs of this machine, whoever made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .child import ChildCall
from .files import one_line


@dataclass(frozen=True)
class Gpu:
    """One GPU. A value that its source does not report is None or empty.

    Attributes:
        memory_type: kind of memory, such as HBM3E.
        memory_bus_width: width of the memory interface in bits.
        max_clock_mhz: highest clock of the compute units in MHz.
        pcie_generation: highest PCIe generation that GPU and machine support together.
        pcie_width: highest number of PCIe lanes.
        uncorrectable_errors: uncorrectable memory errors since the driver was loaded.
        row_remap_pending: a memory row will be remapped at the next reset.
        row_remap_failed: a memory row could not be remapped.
        recovery_action: action that the driver asks for after an error, such as ``Drain and Reset``.
        throttle_reasons: active reasons for lower clocks that point at cooling or power.
        processes: compute processes, each as ``name (pid)``.
        cuda_version: newest CUDA that the driver supports, such as ``12.8``.
    """

    name: str | None = None
    driver_version: str | None = None
    memory_mib: int | None = None
    memory_type: str | None = None
    memory_bus_width: int | None = None
    max_clock_mhz: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    uncorrectable_errors: int | None = None
    row_remap_pending: bool = False
    row_remap_failed: bool = False
    recovery_action: str | None = None
    throttle_reasons: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    cuda_version: str | None = None


@dataclass(frozen=True)
class GpuReport:
    """Answer of one source: GPUs in its order, or the reason why it failed.

    Attributes:
        source: NVML, nvidia-smi, amdsmi or amd-smi.
    """

    source: str
    gpus: tuple[Gpu, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Interconnect:
    """Links between GPUs and kinds of connection over all pairs, each with the command that shows it, or None."""

    link: str | None = None
    topology: str | None = None


def read_library(source: str, read: Callable[[], Sequence[Gpu] | None], limit_s: float | None) -> GpuReport | None:
    """Call a vendor's library by a function that returns None if it is not installed. Then there is no report."""
    try:
        gpus = read() if limit_s is None else ChildCall(read, limit_s).result()
    except Exception as error:  # each library has its own exception class
        return GpuReport(source, error=one_line(str(error)) or type(error).__name__)
    return None if gpus is None else GpuReport(source, tuple(gpus))
