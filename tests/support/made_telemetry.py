"""Synthetic telemetry files, and telemetry made without files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compliance.findings import RunSummary
from compliance.telemetry import LIMITS, GpuTelemetry, RunTelemetry

HEADER = (
    "time_ms,gpu,uuid,power_w,sm_clock_mhz,memory_clock_mhz,temperature_c,memory_temperature_c,utilization_percent,"
    "memory_used_mib,throttle_reasons"
)


def line(time_ms: float, gpu: int = 0, watts: float | str = 700, reasons: str = "none", temperature: int = 60) -> str:
    """Return a line of a file."""
    return f"{time_ms:.0f},{gpu},GPU-{gpu},{watts},1980,3201,{temperature},{temperature + 12},99,102400,{reasons}"


def write_lines(path: Path, lines: Sequence[str], header: str = HEADER) -> Path:
    """Write a file with a header, in a folder that is made if it is missing."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{each}\n" for each in (header, *lines)))
    return path


def made_telemetry(run: RunSummary, gpus: int = 8, **reasons: tuple[int, int]) -> RunTelemetry:
    """Return 1000 readings of a run whose GPU g draws 700 + g W.

    The last GPU is throttled by each reason, from the first reading given to before the second.
    """
    assert run.start_ms is not None and run.minutes is not None
    window = (run.start_ms, run.start_ms + round(60_000 * run.minutes))
    readings = 1000
    times = np.linspace(*window, readings)

    def gpu(number: int) -> GpuTelemetry:
        values = dict.fromkeys(LIMITS, np.full(readings, np.nan))
        values |= {"power_w": np.full(readings, 700.0 + number), "temperature_c": np.full(readings, 60.0 + number)}
        values |= {"sm_clock_mhz": np.full(readings, 1980.0), "memory_clock_mhz": np.full(readings, 3201.0)}
        places, is_last = np.arange(readings), number == gpus - 1
        throttled = {name: (places >= first) & (places < end) & is_last for name, (first, end) in reasons.items()}
        return GpuTelemetry(f"GPU {number}", times, values, throttled, window)

    return RunTelemetry(run.file, window, tuple(map(gpu, range(gpus))))
