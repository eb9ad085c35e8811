"""Synthetic power logs: a reading a second, from 10 seconds before a run to 10 seconds after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.support.made_logs import END, START, MadeLog, event

AROUND_MS = 10_000


def power_log(start_ms: int, stop_ms: int, watts: float = 1000.0, *, every_ms: int = 1000) -> MadeLog:
    """Return the log of a node whose power stays the same between run_start and run_stop, and is a tenth outside."""
    begin, end = start_ms - AROUND_MS, stop_ms + AROUND_MS
    times = range(begin + every_ms, end + 1, every_ms)
    return MadeLog(
        [
            event("power_measurement_start", None, begin, event_type=START),
            event("conversion_eff", 1.0, begin, {"measurement_type": "DC"}),
            *(event("power_reading", watts if start_ms < at <= stop_ms else watts / 10, at) for at in times),
            event("power_measurement_stop", None, end, event_type=END),
        ]
    )


def switch_log(at_ms: int, watts: float) -> MadeLog:
    """Return the log of a switch with an estimated power."""
    return MadeLog([event("interconnect_power_est", watts, at_ms, {"host": "sw_0"})])


def write_power(result_folder: Path, run: str, devices: Sequence[tuple[str, MadeLog]]) -> None:
    """Write the power logs of one run beside the logs of a result."""
    folder = result_folder / "power" / run
    folder.mkdir(parents=True, exist_ok=True)
    for name, log in devices:
        log.write(folder / f"{name}.txt")
