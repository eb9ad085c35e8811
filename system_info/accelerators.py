"""GPUs of this machine, and the links between them.

Each vendor's management library is asked first (NVML, amdsmi), then its command-line tools. The readers were written
from the documented interfaces and outputs; the tests use made-up answers in the same form.
"""

from __future__ import annotations

from . import amd, nvidia
from .gpu_report import GpuReport, Interconnect


def read_gpus(limit_s: float | None = None) -> GpuReport | None:
    """Return the first report that lists a GPU, or else the first report.

    Args:
        limit_s: time limit in seconds of each call of a library or tool.

    Returns:
        None if this machine has no vendor's library or tool.
    """
    first: GpuReport | None = None
    for read in (nvidia.read_gpus, amd.read_gpus):
        report = read(limit_s)
        if report is not None and report.gpus:
            return report
        first = first or report
    return first


def read_interconnect(report: GpuReport, limit_s: float | None = None) -> Interconnect:
    """Return the links between the GPUs of a report, from the command-line tools."""
    if len(report.gpus) < 2:
        return Interconnect()
    read = nvidia.read_interconnect if report.vendor == "NVIDIA" else amd.read_interconnect
    return read(report, limit_s)
