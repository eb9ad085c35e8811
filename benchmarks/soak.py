"""Soak test: a CPU run that trains, evaluates and saves for minutes, checked for leaks and slowdown.

`python -m benchmarks.soak --minutes 20` starts two ranks of the small model on short sequences under torchrun, with an
evaluation every 10 steps and a checkpoint every 50, and ends them with SIGTERM. `benchmarks.flatness` checks samples of
the processes and the steps in the log. The exit status is 1 if something is not flat. Figures of record:
docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from .cpu_run import ROOT, TINY, TORCHRUN, read_log, run_start_time
from .flatness import WINDOWS, Progress, Sample, check_flatness

STEPS_PER_EVALUATION, STEPS_PER_CHECKPOINT, BATCH = 10, 50, 4
RUN = TINY | {
    "SEQUENCE_LENGTH": "64",
    "MICRO_BATCH_SIZE": "1",
    "GLOBAL_BATCH_SIZE": str(BATCH),
    "EVAL_SAMPLES": "8",
    "EVAL_INTERVAL_SAMPLES": str(STEPS_PER_EVALUATION * BATCH),
    "SAVE_INTERVAL": str(STEPS_PER_CHECKPOINT * BATCH),
    "SAVE_KEEP": "2",
    "LOG_INTERVAL": "10",
    "WARMUP_STEPS": "10",
    # Limits that are never reached.
    "MAX_STEPS": "1000000",
    "TARGET_LOSS": "0.01",
}


def soak(folder: Path, data: Path, seconds: float, every: float) -> tuple[list[Sample], list[Progress], dict[str, int]]:
    """Run the soak test for ``seconds`` from run_start to SIGTERM, and take a sample after ``every`` of them.

    Returns:
        Samples of the processes, progress from the log, and the numbers of steps, evaluations and checkpoints.

    Raises:
        RuntimeError: the run ended by itself, or SIGTERM did not stop it properly.
    """
    log, errors = folder / "log" / "result_0.txt", folder / "stderr.txt"
    with errors.open("w") as output:
        launcher = subprocess.Popen(
            [*TORCHRUN, "-m", "gptoss20b", "train"],
            env=os.environ | RUN | {"DATADIR": str(data.resolve()), "LOGDIR": str(log.parent)},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
    try:
        started = _wait_for_start(launcher, log, errors)
        samples = list(_sample_processes(launcher.pid, errors, started, seconds, every))
        alive = launcher.poll() is None
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(timeout=60)
    finally:
        launcher.kill()  # the ranks end with it
        launcher.wait()
    records = read_log(log)
    last, text = records[-1], errors.read_text()
    # A rank that the signal reaches late may see the connection of another end first, and give that as the reason.
    stopped = alive and last["key"] == "run_stop" and last["metadata"].get("status") == "aborted"
    if not stopped or "warning: " in text:
        raise RuntimeError(
            f"the run did not stop on SIGTERM as expected; its last record is {last}, its stderr:\n{text[-3000:]}"
        )
    saved = sorted(path.name for path in (folder / "log" / "checkpoints").iterdir())
    progress = list(read_progress(records))
    counts = {
        "steps": int(last["metadata"]["samples_count"]) // BATCH,
        "evaluations": sum(record["key"] == "eval_accuracy" for record in records),
        "checkpoints": int(max(name for name in saved if name.startswith("step_"))[5:]) // STEPS_PER_CHECKPOINT,
    }
    return samples, progress, counts


def _wait_for_start(launcher: subprocess.Popen[bytes], log: Path, errors: Path) -> float:
    """Wait for run_start and return its time, in seconds since 1970."""
    while launcher.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if started := run_start_time(read_log(log)):
                return started
        time.sleep(0.2)
    raise RuntimeError(f"the run did not start:\n{errors.read_text()[-3000:]}")


def _sample_processes(
    launcher_pid: int, errors: Path, started: float, seconds: float, every: float
) -> Iterator[Sample]:
    launcher = psutil.Process(launcher_pid)
    ranks = {f"rank {child.environ()['RANK']}": child for child in launcher.children()}
    processes = {"launcher": launcher, **dict(sorted(ranks.items()))}
    # A monotonic clock that starts at run_start.
    offset = time.time() - started - time.monotonic()
    while (now := time.monotonic() + offset) < seconds:
        try:
            yield from [take_sample(process, name, now) for name, process in processes.items()]
        except psutil.Error:
            raise RuntimeError(f"the run ended by itself after {now:.0f} s:\n{errors.read_text()[-3000:]}") from None
        time.sleep(every)


def take_sample(process: psutil.Process, name: str, seconds: float) -> Sample:
    """Return a sample of a process at this moment.

    Raises:
        psutil.Error: the process has ended.
    """
    with process.oneshot():
        memory, cpu = process.memory_info(), process.cpu_times()
        return Sample(
            seconds=seconds,
            process=name,
            resident=memory.rss,
            anonymous=memory.rss - memory.shared,
            descriptors=process.num_fds(),
            threads=process.num_threads(),
            cpu_seconds=cpu.user + cpu.system + cpu.children_user + cpu.children_system,
        )


def read_progress(records: list[dict[str, Any]]) -> Iterator[Progress]:
    """Yield the progress at the end of each block."""
    started = run_start_time(records) or 0.0
    for record in records:
        if record["key"] == "tracked_stats":
            seconds, samples = record["time_ms"] / 1000 - started, record["metadata"]["step"]
            yield Progress(seconds, samples // BATCH, BATCH / record["value"]["throughput"])


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="Minutes from run_start to the end.")] = 20,
    settle: Annotated[float, typer.Option(min=0, help="Seconds at the start that are not checked.")] = 60,
    every: Annotated[float, typer.Option(min=0.05, help="Seconds between samples of the processes.")] = 5,
    data: Annotated[Path, typer.Option(help="Folder of token files.")] = ROOT / "data" / "sample",
) -> None:
    """Train, evaluate and save for minutes, and check that memory, open files, threads and step time stay flat."""
    with tempfile.TemporaryDirectory() as folder:
        samples, progress, counts = soak(Path(folder), data, 60 * minutes, every)
    verdicts = check_flatness(samples, progress, settle)
    listed = ", ".join(f"{number:,} {name}" for name, number in counts.items())
    table = Table(title=f"{minutes:g} minutes, the first {settle:g} s not checked: {listed}", title_justify="left")
    for column in ("quantity", f"in {WINDOWS} windows", "verdict"):
        table.add_column(column)
    for verdict in verdicts:
        table.add_row(verdict.quantity, verdict.measured, "flat" if verdict.is_flat else "NOT FLAT")
    Console().print(table)
    raise typer.Exit(0 if all(verdict.is_flat for verdict in verdicts) else 1)


if __name__ == "__main__":
    typer.run(main)
