"""Processor time of one telemetry sample: `python -m benchmarks.telemetry_cost` on a node with GPUs.

Elsewhere, `PYTHONPATH=tests/support/fake_nvml FAKE_NVML_GPUS=8 python -m benchmarks.telemetry_cost` times made-up GPUs,
whose driver takes no time.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psutil

from gptoss20b.telemetry.csv_file import CsvFile
from gptoss20b.telemetry.gpus import open_gpus
from gptoss20b.telemetry.sampler import Warnings, read_rows

SAMPLES = 200


def main() -> None:
    """Take samples without a pause, and print the mean cost of one."""
    gpus, warn = open_gpus(), Warnings()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "telemetry.csv"
        file = CsvFile(path)
        start, wall_start = time.process_time(), time.perf_counter()
        for _ in range(SAMPLES):
            file.append(read_rows(gpus, warn))
        cpu, wall = time.process_time() - start, time.perf_counter() - wall_start
        file.close()
        size = path.stat().st_size
    print(f"GPUs: {len(gpus)}")
    print(f"a sample: {1e3 * cpu / SAMPLES:.2f} ms of processor time, {1e3 * wall / SAMPLES:.2f} ms")
    print(f"an hour at 1 Hz: {3600 * size / SAMPLES / 1e6:.1f} MB")
    print(f"memory: {psutil.Process().memory_info().rss / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
