"""Reviewing a repository of 20 submitters with 3 results each: this project's `review` beside the official tools.

`python -m benchmarks.review_repository` makes 600 logs of 13,056 training losses (1.9 GB), and times whole commands:

- `review --no-official`, with its 60 pages;
- `package_checker` (mlperf-logging) on the submissions one by one, as it takes no more than one.

CPU seconds include children. Memory is the largest sum, over the command and its children, of the proportional set size
(PSS): memory that processes share counts once. It is sampled every 50 ms.

Figures of record: docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.compliance_checks import ROOT
from tests.support import made_logs

SYSTEMS = ("sys_1x8", "sys_2x8", "sys_4x8")
SAMPLING_S = 0.05


def main(
    submitters: Annotated[int, typer.Option(min=1, help="Submitters with three results each.")] = 20,
    official: Annotated[int, typer.Option(min=0, help="Submissions that the official package checker checks.")] = 20,
) -> None:
    """Time a review beside the official package checker."""
    with tempfile.TemporaryDirectory() as name:
        folder, repository = Path(name), Path(name) / "repository"
        trees = make_repository(repository, submitters)
        figures: dict[str, Any] = {"logs": 10 * len(SYSTEMS) * len(trees), "cores": os.cpu_count()}
        command = ["compliance", "review", str(repository), "--no-official", "--out", str(folder / "review")]
        figures["review"] = measure([command])
        checks = [
            ["mlperf_logging.package_checker", str(tree), "training", "6.1.0", "--log_output", str(folder / "log")]
            for tree in trees[:official]
        ]
        if checks:
            figures[f"package_checker on {len(checks)} submissions"] = measure(checks)
    print(json.dumps(figures, indent=2))


def make_repository(root: Path, submitters: int) -> list[Path]:
    """Make submissions that pass. Return their folders."""
    first = root / "laboratory_00"
    for number, system in enumerate(SYSTEMS):
        made_logs.write_tree(first, made_logs.compliant_set(16), system)
        for run, log in enumerate(sorted((first / "results" / system).rglob("*.txt"))):
            made_logs.long_log(log, 13_000, run=10 * number + run)
    for number in range(1, submitters):
        for file in (path for path in first.rglob("*") if path.is_file()):
            copy = root / f"laboratory_{number:02}" / file.relative_to(first)
            copy.parent.mkdir(parents=True, exist_ok=True)
            organisation = made_logs.ORGANISATION.encode()
            copy.write_bytes(file.read_bytes().replace(organisation, b"Laboratory %d" % number))
    return sorted(root.iterdir())


def measure(commands: Sequence[Sequence[str]]) -> dict[str, float]:
    """Run Python modules one after the other. Return their wall and CPU seconds and their peak memory in MiB.

    Raises:
        CalledProcessError: a command failed.
    """
    before, started, peak = os.times(), time.perf_counter(), 0
    for command in commands:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.DEVNULL)
        ended = threading.Event()
        sampled: list[int] = []
        sampler = threading.Thread(target=_sample_memory, args=(process.pid, ended, sampled))
        sampler.start()
        status = process.wait()
        ended.set()
        sampler.join()
        peak = max(peak, *sampled)
        if status:
            raise subprocess.CalledProcessError(status, command)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return {"wall": round(time.perf_counter() - started, 1), "cpu": round(cpu, 1), "mib": round(peak / 2**20)}


def _sample_memory(pid: int, ended: threading.Event, sampled: list[int]) -> None:
    while not ended.wait(SAMPLING_S):
        total = 0
        with suppress(psutil.Error):
            for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
                with suppress(psutil.Error):  # ended since
                    total += process.memory_full_info().pss
        sampled.append(total)


if __name__ == "__main__":
    typer.run(main)
