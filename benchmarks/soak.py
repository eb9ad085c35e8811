"""Soak: a CPU run that trains, evaluates and saves for minutes, and whether it needs more and more of anything.

`python -m benchmarks.soak --minutes 20` starts two ranks of the small model on short sequences under torchrun, with an
evaluation every 10 steps and a checkpoint every 50, and ends them with SIGTERM. It judges what it saw of the processes
in /proc and of the steps in the log, as `benchmarks.flatness` says; the exit status is 1 if something is not flat.
Figures of record: benchmarks/README.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .flatness import WINDOWS, Progress, Sample, judge

ROOT = Path(__file__).resolve().parent.parent
STEPS_PER_EVALUATION, STEPS_PER_CHECKPOINT, BATCH = 10, 50, 4
RUN = {
    "MODEL_VARIANT": "tiny",
    "SUBMISSION_DIVISION": "open",
    "DGXNGPU": "2",
    "EXPERT_PARALLEL": "2",
    "SEQUENCE_LENGTH": "64",
    "MICRO_BATCH_SIZE": "1",
    "GLOBAL_BATCH_SIZE": str(BATCH),
    "EVAL_SAMPLES": "8",
    "EVAL_INTERVAL_SAMPLES": str(STEPS_PER_EVALUATION * BATCH),
    "SAVE_INTERVAL": str(STEPS_PER_CHECKPOINT * BATCH),
    "SAVE_KEEP": "2",
    "LOG_INTERVAL": "10",
    "WARMUP_STEPS": "10",
    # Neither is ever reached.
    "MAX_STEPS": "1000000",
    "TARGET_LOSS": "0.01",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
}


def soak(folder: Path, data: Path, seconds: float, every: float) -> tuple[list[Sample], list[Progress], dict[str, int]]:
    """Train for so long from run_start, looking at all processes every so many seconds.

    Args:
        folder: for the log, the checkpoints and what the run shows.
        data: the folder of token files.
        seconds: from run_start to SIGTERM.
        every: seconds between samples.

    Returns:
        What was seen of the processes, what the log says, and how much of each there was.

    Raises:
        RuntimeError: the run ended by itself, or not as SIGTERM ends one.
    """
    log, shown = folder / "log" / "result_0.txt", folder / "shown.txt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with shown.open("w") as output:
        launcher = subprocess.Popen(
            [*command, "-m", "gptoss20b", "train"],
            env=os.environ | RUN | {"DATADIR": str(data.resolve()), "LOGDIR": str(log.parent)},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
    try:
        started = _wait_for_start(launcher, log, shown)
        samples = list(_watch(launcher.pid, shown, started, seconds, every))
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(timeout=60)
    finally:
        launcher.kill()  # the ranks end with it
        launcher.wait()
    records = read_log(log)
    last, text = records[-1], shown.read_text()
    if last["key"] != "run_stop" or last["metadata"].get("reason") != "received SIGTERM" or "warning: " in text:
        raise RuntimeError(
            f"the run did not go as it should; its last record is {last}, and it showed:\n{text[-3000:]}"
        )
    saved = sorted(path.name for path in (folder / "log" / "checkpoints").iterdir())
    progress = list(read_progress(records))
    counts = {
        "steps": int(last["metadata"]["samples_count"]) // BATCH,
        "evaluations": sum(record["key"] == "eval_accuracy" for record in records),
        "checkpoints": int(max(name for name in saved if name.startswith("step_"))[5:]) // STEPS_PER_CHECKPOINT,
    }
    return samples, progress, counts


def _wait_for_start(launcher: subprocess.Popen[bytes], log: Path, shown: Path) -> float:
    """The time of run_start, in seconds since 1970."""
    while launcher.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            for record in read_log(log):
                if record["key"] == "run_start":
                    return float(record["time_ms"]) / 1000
        time.sleep(0.2)
    raise RuntimeError(f"the run did not start:\n{shown.read_text()[-3000:]}")


def _watch(launcher: int, shown: Path, started: float, seconds: float, every: float) -> Iterator[Sample]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = sorted((_rank(int(child)), int(child)) for child in children)
    processes = {"launcher": launcher, **{f"rank {rank}": process for rank, process in ranks}}
    ahead = time.time() - started - time.monotonic()
    while (now := time.monotonic() + ahead) < seconds:
        try:
            yield from [look(process, name, now) for name, process in processes.items()]
        except OSError:
            raise RuntimeError(f"the run ended by itself after {now:.0f} s:\n{shown.read_text()[-3000:]}") from None
        time.sleep(every)


def _rank(process: int) -> int:
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next(int(each[5:]) for each in variables if each.startswith(b"RANK="))


def look(process: int, name: str, seconds: float) -> Sample:
    """A process at this moment, of Linux: proc(5).

    Raises:
        OSError: there is no such process.
    """
    place = Path(f"/proc/{process}")
    _, resident, of_files, *_ = map(int, (place / "statm").read_text().split())
    # The second field is a name in brackets, which may hold anything; the rest is counted from the third.
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[11:15]))  # of itself in user and system mode, and of children that ended
    page = os.sysconf("SC_PAGE_SIZE")
    return Sample(
        seconds=seconds,
        process=name,
        resident=resident * page,
        anonymous=(resident - of_files) * page,
        descriptors=len(list((place / "fd").iterdir())),
        threads=int(fields[17]),
        cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"),
    )


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole records of a log that may still be written."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def read_progress(records: Sequence[dict[str, Any]]) -> Iterator[Progress]:
    """What the log says of each block."""
    started = next(record["time_ms"] for record in records if record["key"] == "run_start")
    for record in records:
        if record["key"] == "tracked_stats":
            seconds, samples = (record["time_ms"] - started) / 1000, record["metadata"]["step"]
            yield Progress(seconds, samples // BATCH, BATCH / record["value"]["throughput"])


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="From run_start to the end.")] = 20,
    settle: Annotated[float, typer.Option(min=0, help="Seconds that are not judged.")] = 60,
    every: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at the processes.")] = 5,
    data: Annotated[Path, typer.Option(help="Folder of token files.")] = ROOT / "data" / "sample",
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write all that was seen to this file.")] = None,
) -> None:
    """Train, evaluate and save for minutes, and say whether the run needs more and more of anything."""
    with tempfile.TemporaryDirectory() as folder:
        samples, progress, counts = soak(Path(folder), data, 60 * minutes, every)
    verdict = judge(samples, progress, settle)
    told = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    table = Table(title=f"{minutes:g} minutes, the first {settle:g} s not judged: {told}", title_justify="left")
    for name in ("what", f"in {WINDOWS} windows", "verdict"):
        table.add_column(name)
    for line in verdict:
        table.add_row(line.what, line.found, "flat" if line.fine else "NOT FLAT")
    Console().print(table)
    if as_json is not None:
        seen: dict[str, Sequence[Any]] = {"samples": samples, "progress": progress, "verdict": verdict}
        lists = {name: [asdict(each) for each in found] for name, found in seen.items()}
        as_json.write_text(json.dumps({"minutes": minutes, "settle": settle, "counts": counts, **lists}))
    raise typer.Exit(0 if all(line.fine for line in verdict) else 1)


if __name__ == "__main__":
    typer.run(main)
