"""The CPU run: steps per second, seconds from process start to run_start, and the share of a step spent in logging.

`python -m benchmarks.cpu_run` times this project's torch back end and Megatron-Core's own local spec on the same
weights and tokens and prints medians. The order is ours, theirs, theirs, ours, because machines are noisy. Start-up is
timed over whole runs under torchrun. Figures of record: docs/benchmarks.md.
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
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gptoss20b.run_metadata import versions

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TINY = {
    "MODEL_VARIANT": "tiny",
    "SUBMISSION_DIVISION": "open",
    "DGXNGPU": "2",
    "EXPERT_PARALLEL": "2",
    "DATADIR": str(ROOT / "data" / "sample"),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
}


def main(
    steps: Annotated[int, typer.Option(help="Timed steps in each of the four rounds.")] = 3,
    starts: Annotated[int, typer.Option(help="Number of runs whose start is timed.")] = 3,
) -> None:
    """Time the CPU run beside Megatron-Core's local spec."""
    start_seconds = [time_to_run_start() for _ in range(starts)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "steps.json"
        done = launch(["-m", "benchmarks.cpu_run", "--time-steps", str(output), str(steps)])
        if done.returncode != 0:
            raise RuntimeError(f"the steps could not be timed:\n{done.stderr}")
        seconds: dict[str, Any] = json.loads(output.read_text())
    ours, local = statistics.median(seconds["torch"]), statistics.median(seconds["megatron_local"])
    figures = {
        "steps_per_second": round(1 / ours, 3),
        "peer_steps_per_second": round(1 / local, 3),
        "times_the_peer": round(local / ours, 2),
        "seconds_to_run_start": round(statistics.median(start_seconds), 1),
        "logging_share_percent": round(100 * statistics.median(seconds["logging"]) / ours, 4),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **{name: versions()[name] for name in ("python", "torch", "megatron-core")},
    }
    print(json.dumps(figures, indent=2))


def launch(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run two ranks under torchrun, as run_and_time.sh does."""
    return subprocess.run(
        [*TORCHRUN, *command],
        env=os.environ | TINY | variables,
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )


def time_to_run_start() -> float:
    """Return the seconds from starting the launcher to the log's run_start, in a run of the real configuration."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        # The shortest whole run. It misses its target, so its exit status does not matter.
        done = launch(["-m", "gptoss20b", "train"], LOGDIR=folder, MAX_STEPS="1", WARMUP_STEPS="0")
        log = Path(folder) / "result_0.txt"
        if log.exists() and (run_start := run_start_time(read_log(log))):
            return run_start - started
    raise RuntimeError(f"the run did not start:\n{done.stderr}")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the complete records of a log that may still be written."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def run_start_time(records: list[dict[str, Any]]) -> float | None:
    """Return the time of run_start in seconds since 1970, or None before it."""
    return next((record["time_ms"] / 1000 for record in records if record["key"] == "run_start"), None)


def time_steps(output: Path, steps: int) -> None:
    """Time steps of both back ends and the logging of one step, on every rank. Rank 0 writes the seconds."""
    import torch.distributed as dist

    from gptoss20b.batches import synthetic_batches
    from gptoss20b.callbacks.console import ConsoleProgress
    from gptoss20b.config import resolve
    from gptoss20b.mlperf_log import RunLog
    from gptoss20b.process_groups import distributed_session, read_rank
    from gptoss20b.trainer import Trainer

    config = resolve()
    rank = read_rank(config)
    batches = partial(synthetic_batches, config, rank.device, config.accumulation_steps)
    seconds: dict[str, list[float]] = {"torch": [], "megatron_local": [], "logging": []}
    with distributed_session(config, rank):
        trainers = {
            "torch": Trainer(config, "torch", rank.device, 1),
            "megatron_local": Trainer(config, "megatron_local", rank.device, 1),
        }
        losses = {name: trainer.step(batches()).loss() for name, trainer in trainers.items()}
        assert abs(losses["torch"] / losses["megatron_local"] - 1) < 1e-5, "both back ends must compute the same"
        for name in ("torch", "megatron_local", "megatron_local", "torch"):
            for _ in range(steps):
                dist.barrier()
                start = time.perf_counter()
                loss = trainers[name].step(batches()).loss()
                seconds[name].append(time.perf_counter() - start)
        if rank.is_rank_zero:
            log = RunLog(output.with_name("result_0.txt"))
            progress = ConsoleProgress(config)
            for step in range(100):
                start = time.perf_counter()
                log.train_loss(step, loss, 0.0)
                progress.on_train_loss(step, loss, 0.0)
                seconds["logging"].append(time.perf_counter() - start)
            log.close()
            output.write_text(json.dumps(seconds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--time-steps"]:
        time_steps(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        typer.run(main)
