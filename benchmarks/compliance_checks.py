"""Checking logs: CPU seconds, wall seconds and peak memory of this project's checks and of the official tools.

`python -m benchmarks.compliance_checks` makes ten logs of 13,000 training losses, a submission tree of them and one log
of 200 MB. It times whole processes, ours and the official ones in alternation because machines are noisy, and prints
medians:

- `check-set --no-official` beside `package_checker` (mlperf-logging), which checks the same ten logs;
- `check-set` with the official tools beside the same;
- `check-run --no-official` on the 200 MB log beside `compliance_checker`.

Figures of record: docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.support import made_logs

ROOT = Path(__file__).resolve().parent.parent
# At GBS 16 a training loss is a line of about 240 bytes.
LARGE_LOG_LOSSES = 840_000
MIN_LARGE_LOG_BYTES = 200_000_000


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds of a process with its children, and the peak memory of the largest of them in MiB."""

    wall: float
    cpu: float
    mib: float


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each command.")] = 3,
) -> None:
    """Time our checks beside the official tools."""
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, Any] = measure(Path(folder), repeats)
    figures |= {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "mlperf-logging": version("mlperf-logging"),
    }
    print(json.dumps(figures, indent=2))


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Return all figures. The logs are made in ``folder``."""
    tree, large = make_logs(folder)
    results = str(next(tree.glob("results/*/gpt_oss_20b")))
    ours = [sys.executable, "-m", "compliance"]
    official = [sys.executable, "-m"]
    log = ["--log_output", str(folder / "official.log")]
    commands = {
        "check_set": [*ours, "check-set", results, "--no-official"],
        "check_set_with_official": [*ours, "check-set", results],
        "package_checker": [*official, "mlperf_logging.package_checker", str(tree), "training", "6.1.0", *log],
        "check_run_200mb": [*ours, "check-run", str(large), "--no-official"],
        "compliance_checker_200mb": [*official, "mlperf_logging.compliance_checker", str(large), *log],
    }
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for repeat in range(repeats):
        # Every second round runs backwards, so that no command always follows the same one.
        for name in commands if repeat % 2 == 0 else reversed(commands):
            costs[name].append(run_and_measure(commands[name]))
    figures: dict[str, Any] = {"repeats": repeats, "large_log_mb": round(large.stat().st_size / 1e6)}
    for name, each in costs.items():
        figures[name] = {
            field: round(statistics.median(getattr(one, field) for one in each), 2) for field in ("wall", "cpu", "mib")
        }
    return figures


def make_logs(folder: Path) -> tuple[Path, Path]:
    """Make a compliant submission tree with ten long logs, and one large log, with the tests' generator."""
    tree = made_logs.write_tree(folder / "tree", made_logs.compliant_set(16))
    for number, path in enumerate(sorted(tree.glob("results/*/*/result_*.txt"))):
        made_logs.long_log(path, 13_000, run=number)
    large = made_logs.long_log(folder / "large.txt", LARGE_LOG_LOSSES)
    if large.stat().st_size < MIN_LARGE_LOG_BYTES:
        raise RuntimeError(f"the large log has {large.stat().st_size} bytes, expected {MIN_LARGE_LOG_BYTES}")
    return tree, large


def run_and_measure(command: Sequence[str]) -> Cost:
    """Run a command and return its cost.

    Raises:
        RuntimeError: a nonzero exit status.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        if process.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {output.read()[-2000:].decode(errors='replace')}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


if __name__ == "__main__":
    typer.run(main)
