"""GPUs of this machine, and the links between them.

Each vendor's management library is asked first (NVML, amdsmi). Its command-line tool is asked where the library is not
installed: the tool calls the library, and fails or hangs where the library does. The readers were written from the
documented interfaces and outputs; the tests use made-up answers in the same form.
"""

from __future__ import annotations

from . import amd, nvidia
from .gpu_report import GpuReport, Interconnect


def read_gpus(limit_s: float | None = None) -> GpuReport | None:
    """Return the first vendor's report that lists a GPU, or else the first report, or None without any source."""
    reports = []
    for read_library, read_tool in ((nvidia.read_nvml, nvidia.read_nvidia_smi), (amd.read_amdsmi, amd.read_amd_smi)):
        report = read_library(limit_s) or read_tool(limit_s)
        if report is not None and report.gpus:
            return report
        reports.append(report)
    return next(filter(None, reports), None)


def read_interconnect(report: GpuReport, limit_s: float | None = None) -> Interconnect:
    """Return the links between the GPUs of a report, as far as the vendor's tool shows them for all of these."""
    count = len(report.gpus)
    if count < 2:
        return Interconnect()
    if report.source in ("amdsmi", "amd-smi"):
        return amd.read_interconnect(count, limit_s)
    return nvidia.read_interconnect(count, limit_s)
