"""GPUs of this machine, whoever made them.

Each vendor's management library is asked first (NVML, amdsmi), then its command-line tools. The readers were written
from the documented interfaces and outputs; the tests use made-up answers in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .files import one_line
from .tools import run_module


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


def read_gpus(limit_s: float | None = None) -> GpuReport | None:
    """Return the first report that lists a GPU, or else the first report.

    Args:
        limit_s: time limit in seconds of each call of a library or tool.

    Returns:
        None if this machine has no vendor's library or tool.
    """
    from . import amd, nvidia

    first: GpuReport | None = None
    for read in (nvidia.read_gpus, amd.read_gpus):
        report = read(limit_s)
        if report is not None and report.gpus:
            return report
        first = first or report
    return first


def read_interconnect(report: GpuReport, limit_s: float | None = None) -> Interconnect:
    """Return the links between the GPUs of a report, from the command-line tools."""
    from . import amd, nvidia

    if len(report.gpus) < 2:
        return Interconnect()
    return (nvidia if report.vendor == "NVIDIA" else amd).read_interconnect(report, limit_s)


def read_library(vendor: str, source: str, module: str, limit_s: float | None) -> GpuReport | None:
    """Call a vendor's library through a module of this package, in a child process.

    Returns:
        None if the library is not installed.
    """
    output = run_module(module, limit_s)
    try:
        answer = json.loads(output.stdout.splitlines()[-1])
        if answer is None:
            return None
        return GpuReport(vendor, source, tuple(map(_parse_gpu, answer.get("gpus", ()))), answer.get("error"))
    except (ValueError, LookupError):
        return GpuReport(vendor, source, error=output.failure or "no answer", timed_out=output.timed_out)


def _parse_gpu(row: dict[str, Any]) -> Gpu:
    return Gpu(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})


def print_library_report(read: Callable[[], Iterator[Gpu]]) -> None:
    """Print the answer that `read_library` expects of its child process, as one line of JSON.

    Args:
        read: calls the library; raises ImportError if it is not installed.
    """
    answer: dict[str, Any] | None
    try:
        answer = {"gpus": [asdict(gpu) for gpu in read()]}
    except ImportError:
        answer = None
    except Exception as error:  # each library has an exception class of its own
        answer = {"error": one_line(str(error)) or type(error).__name__}
    print(json.dumps(answer))
