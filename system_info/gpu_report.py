"""Report of one source on the GPUs of this machine, whoever made them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU. A value that its source does not report is None or empty.

    Attributes:
        name: model name.
        driver_version: version of the kernel driver.
        memory_mib: memory in MiB.
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


@dataclass(frozen=True)
class GpuReport:
    """Answer of one source.

    Attributes:
        vendor: NVIDIA or AMD.
        source: NVML, nvidia-smi, amdsmi, amd-smi or rocm-smi.
        gpus: GPUs in the source's order.
        error: reason why the source failed; None if it answered.
        timed_out: the source did not answer within its time limit.
    """

    vendor: str
    source: str
    gpus: tuple[Gpu, ...] = ()
    error: str | None = None
    timed_out: bool = False

    @property
    def driver_version(self) -> str | None:
        """Version of the kernel driver, as the first GPU that reports one has it."""
        return next((gpu.driver_version for gpu in self.gpus if gpu.driver_version), None)


@dataclass(frozen=True)
class Interconnect:
    """Links between the GPUs of this machine.

    Attributes:
        pair_types: kinds of connection between two GPUs, over all pairs; empty unless every pair is known.
        pair_source: command that reported them.
        nvlinks: active NVLinks of each GPU; None unless all GPUs have the same.
        nvlink_speed: speed of one link, such as ``53.125 GB/s``.
    """

    pair_types: tuple[str, ...] = ()
    pair_source: str = ""
    nvlinks: int | None = None
    nvlink_speed: str | None = None
