"""Synthetic MLPerf logs: one run, a set of ten, a submission tree. All are deterministic.

A synthetic log keeps every rule, so that a test breaks one thing and sees one rule fire. The numbers of the benchmark
are written out here instead of imported from `compliance.benchmark`, so that a mistake there shows.
`tests/compliance/test_made_logs.py` compares these logs with the official checkers, our own logger and real logs.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from compliance.submission import REQUIRED_FIELDS

Event = dict[str, Any]

START, END = "INTERVAL_START", "INTERVAL_END"
FILE = "gptoss20b/train.py"
# Lines of that file that log a key. One line logs the whole description of a run.
LINES = {"cache_clear": 71, "init_start": 71, "init_stop": 103, "run_start": 103, "train_loss": 137, "run_stop": 149}
DESCRIPTION_LINE = 94

MAX_STEPS = 1_200_000
ACCELERATORS = 8
PLATFORM = "sys_1x8"
ORGANISATION = "Example Laboratory"

# Records that 6.1.0 requires and 6.0.0 does not.
DISCLOSURES = (
    "lowest_numerical_precision_in_linear", "lowest_numerical_precision_in_attn", "lowest_numerical_precision_in_comm",
    "tensor_parallelism", "pipeline_parallelism", "context_parallelism", "expert_parallelism", "micro_batch_size",
    "config_filename",
)  # fmt: skip

# By GBS, base learning rate and warm-up steps of the published points; 48 is halfway between its neighbours.
TUNING = {16: (4e-4, 128), 24: (5e-4, 256), 32: (8e-4, 128), 48: (9e-4, 160), 64: (1e-3, 192)}
# By GBS, olympic mean of the reference's samples to target (`rcps_gpt_oss_20b.json`, all points).
RCP_MEANS = {16: 194_560.0, 32: 234_837.0, 64: 301_056.0}
# Spread of a set's samples to target before they are rounded up to the grid of evaluations.
RELATIVE_SD = 0.025

# Time between the starts of two runs.
SLOT_MS = 12 * 3_600_000
SAMPLES_PER_SECOND = 11.2
INIT_MS, EVALUATION_MS = 300_000, 60_000
FIRST_LOSS = 11.85  # ln(128256) and a little
TRAIN_LOSSES_PER_EVALUATION = 8


@dataclass(slots=True)
class MadeLog:
    """Records of one log, each the JSON object of one `:::MLLOG` line.

    Methods that change the log return it. ``n`` counts the records of a key from 0, or from the end if negative.
    """

    events: list[Event]

    def text(self) -> str:
        """Return the log as mllog writes it."""
        return "".join(f"{line(record)}\n" for record in self.events)

    def write(self, path: Path) -> Path:
        """Write the log as UTF-8 and return the path."""
        path.write_text(self.text(), encoding="utf-8")
        return path

    def all(self, key: str) -> list[Event]:
        """Return every record of a key."""
        return [record for record in self.events if record["key"] == key]

    def index(self, key: str, n: int = 0) -> int:
        """Return the place of the n-th record of a key. Raise KeyError without one."""
        places = [place for place, record in enumerate(self.events) if record["key"] == key]
        if not -len(places) <= n < len(places):
            raise KeyError(f"{key}: no record {n}, the log has {len(places)} of them")
        return places[n]

    def find(self, key: str, n: int = 0) -> Event:
        """Return the n-th record of a key, to read or to change."""
        return self.events[self.index(key, n)]

    def set(self, key: str, value: Any, n: int = 0) -> MadeLog:
        """Change the value of the n-th record of a key."""
        self.find(key, n)["value"] = value
        return self

    def drop(self, key: str, n: int = 0) -> MadeLog:
        """Remove the n-th record of a key."""
        del self.events[self.index(key, n)]
        return self

    def insert_before(self, key: str, n: int, record: Event) -> MadeLog:
        """Insert a record before the n-th of a key."""
        self.events.insert(self.index(key, n), record)
        return self

    def insert_after(self, key: str, n: int, record: Event) -> MadeLog:
        """Insert a record after the n-th of a key."""
        self.events.insert(self.index(key, n) + 1, record)
        return self

    def shift(self, index_from: int, ms: int) -> MadeLog:
        """Move the times of all records from a place on."""
        for record in self.events[index_from:]:
            record["time_ms"] += ms
        return self

    def copy(self) -> MadeLog:
        """Return a deep copy. Making the log again is faster."""
        return copy.deepcopy(self)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Options of `compliant_log`: 8 accelerators, TP = PP = CP = 1, EP 8, GBS = micro batch x accumulation x 8.

    Attributes:
        gbs: global batch size, a multiple of 8.
        run: number of the run in its set, which determines seed, start and noise.
        ruleset: "6.0.0" or "6.1.0".
        samples_to_target: end of the run, on the evaluation grid. None: about the reference's mean, and a quarter more
            without convergence.
        division: "closed" or "open".
        eval_every: samples between evaluations in the open division, a multiple of GBS. None: as in the closed one.
        convention: of `train_loss`. "after" (ours): the record of step k has the samples after it and the rate of step
            k. "before" (published reference logs): the samples before it and the rate of the next step.
        steps_between_train_loss: None: a few hundred records per log. The first step is always logged.
        start_ms: time of the first record of run 0.
        converged: False: no evaluation meets the target, and the run is aborted.
        disclosures: False leaves out `DISCLOSURES`.
        learning_rate, warmup_steps: None: those of `TUNING` at this GBS, or the next below it.
        end_learning_rate: None: a tenth of the base.
    """

    gbs: int = 16
    run: int = 0
    ruleset: str = "6.1.0"
    samples_to_target: int | None = None
    division: str = "closed"
    eval_every: int | None = None
    convention: str = "after"
    steps_between_train_loss: int | None = None
    start_ms: int = 1_790_000_000_000
    converged: bool = True
    disclosures: bool = True
    learning_rate: float | None = None
    end_learning_rate: float | None = None
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        # Otherwise the log would not be compliant, and tests of one rule would see others.
        assert self.gbs >= ACCELERATORS and self.gbs % ACCELERATORS == 0
        assert self.samples >= 1 and self.samples % self.interval == 0 and self.interval % self.gbs == 0
        assert self.eval_every is None or self.division == "open"

    @property
    def interval(self) -> int:
        """Return the samples between evaluations."""
        return self.eval_every or grid(self.gbs)

    @property
    def samples(self) -> int:
        """Return the samples at the last evaluation."""
        if self.samples_to_target is not None:
            return self.samples_to_target
        return on_grid(self.gbs, rcp_mean(self.gbs) * (1 if self.converged else 1.25))

    @property
    def crossing(self) -> float:
        """Return the samples where the loss meets the target: half an interval before the last evaluation, or never."""
        return self.samples - self.interval / 2 if self.converged else 1.2 * self.samples

    @property
    def logged_every(self) -> int:
        """Return the steps between `train_loss` records."""
        return self.steps_between_train_loss or max(1, self.interval // self.gbs // TRAIN_LOSSES_PER_EVALUATION)

    @property
    def schedule(self) -> tuple[float, float, int]:
        """Return base rate, end rate and warm-up steps."""
        rate, warmup = TUNING[max((point for point in TUNING if point <= self.gbs), default=min(TUNING))]
        base = rate if self.learning_rate is None else self.learning_rate
        end = base * 0.1 if self.end_learning_rate is None else self.end_learning_rate
        return base, end, warmup if self.warmup_steps is None else self.warmup_steps


def compliant_log(gbs: int = 16, run: int = 0, **options: Any) -> MadeLog:
    """Return the log of one run that keeps every rule. Options are the fields of `RunPlan`."""
    return MadeLog(list(_records(RunPlan(gbs=gbs, run=run, **options))))


def compliant_set(
    gbs: int = 16, *, runs: int = 10, samples_to_target: Sequence[int] | None = None, **options: Any
) -> list[MadeLog]:
    """Return consecutive runs whose olympic mean needs no normalization at GBS 16, 24, 32, 48 and 64.

    ``samples_to_target`` has one value per run; None draws them around the reference's mean.
    """
    drawn = _draw(gbs, runs) if samples_to_target is None else samples_to_target
    return [compliant_log(gbs, run, samples_to_target=samples, **options) for run, samples in enumerate(drawn)]


def long_log(path: Path, train_losses: int = 13_000, *, gbs: int = 16, run: int = 0, **options: Any) -> Path:
    """Write a full-size log with a `train_loss` for every step, in little memory. Return the path.

    The log has at least ``train_losses`` records, up to the next evaluation. 13,000 at GBS 16 become 13,056, or 208,896
    samples, which ten compliant runs may have.
    """
    samples = on_grid(gbs, train_losses * gbs)
    plan = RunPlan(gbs=gbs, run=run, samples_to_target=samples, steps_between_train_loss=1, **options)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line(record)}\n" for record in _records(plan))
    return path


def line(record: Event) -> str:
    """Return a record's line as mllog writes it, without the line break."""
    return f":::MLLOG {json.dumps(record)}"


def event(
    key: str, value: Any, time_ms: int, metadata: dict[str, Any] | None = None, event_type: str = "POINT_IN_TIME"
) -> Event:
    """Return a record in mllog's order of keys. Metadata is added to the file and line of the call."""
    return {
        "namespace": "",
        "time_ms": time_ms,
        "event_type": event_type,
        "key": key,
        "value": value,
        "metadata": {"file": FILE, "lineno": LINES.get(key, 142), **(metadata or {})},
    }


def grid(gbs: int) -> int:
    """Return the samples between evaluations: 12,288 rounded up to whole steps."""
    return -(-12_288 // gbs) * gbs


def on_grid(gbs: int, samples: float) -> int:
    """Return the samples at the first evaluation at or after ``samples``."""
    return math.ceil(samples / grid(gbs)) * grid(gbs)


def rcp_mean(gbs: int) -> float:
    """Return the reference's mean samples to target, interpolated between its points."""
    return float(np.interp(gbs, list(RCP_MEANS), list(RCP_MEANS.values())))


def learning_rate(update: int, base: float, end: float, warmup: int, last: int) -> float:
    """Return the learning rate after some updates: linear from 0 over warmup, cosine to the end rate at last."""
    if update <= warmup:
        return base * update / max(warmup, 1)
    # In Megatron-Core's order of operations, for equality to the last bit.
    progress = (update - warmup) / (last - warmup)
    return end + 0.5 * (math.cos(math.pi * progress) + 1.0) * (base - end)


def hyperparameters(plan: RunPlan, seed: int) -> dict[str, Any]:
    """Return the records that describe a run, by key, in log order."""
    base, end, warmup = plan.schedule
    micro_batch = 2 if plan.gbs % (2 * ACCELERATORS) == 0 else 1
    return {
        "submission_benchmark": "gpt_oss_20b",
        "submission_division": plan.division,
        "submission_org": ORGANISATION,
        "submission_platform": PLATFORM,
        "submission_status": "onprem",
        "seed": seed,
        "global_batch_size": plan.gbs,
        "micro_batch_size": micro_batch,
        "gradient_accumulation_steps": plan.gbs // ACCELERATORS // micro_batch,
        "max_sequence_length": 8192,
        "train_samples": MAX_STEPS * plan.gbs,
        "eval_samples": 1024,
        "target_accuracy": 3.34,
        "init_checkpoint_step": 0,
        "opt_name": "adamw",
        "opt_base_learning_rate": base,
        "opt_end_learning_rate": end,
        "opt_learning_rate_warmup_steps": warmup,
        "opt_learning_rate_decay_steps": MAX_STEPS - warmup,
        "opt_learning_rate_decay_schedule": "cosine with linear warmup",
        "opt_adamw_beta_1": 0.9,
        "opt_adamw_beta_2": 0.95,
        "opt_adamw_epsilon": 1e-5,
        "opt_adamw_weight_decay": 0.1,
        "opt_gradient_clip_norm": 1.0,
        "max_steps": MAX_STEPS,
        "lowest_numerical_precision_in_linear": "bfloat16",
        "lowest_numerical_precision_in_attn": "bfloat16",
        "lowest_numerical_precision_in_comm": "bfloat16",
        "tensor_parallelism": 1,
        "pipeline_parallelism": 1,
        "context_parallelism": 1,
        "expert_parallelism": 8,
        "config_filename": f"config_{PLATFORM}.sh",
    }


def write_set(folder: Path, logs: Sequence[MadeLog]) -> list[Path]:
    """Write `result_0.txt`, `result_1.txt`, ... to a folder. Return their paths in that order."""
    folder.mkdir(parents=True, exist_ok=True)
    return [log.write(folder / f"result_{number}.txt") for number, log in enumerate(logs)]


def system_description(**changes: Any) -> dict[str, Any]:
    """Return the system description of the logs' system. Changes replace or add fields."""
    example = dict.fromkeys(REQUIRED_FIELDS, "example")
    counts = {"number_of_nodes": "1", "accelerators_per_node": str(ACCELERATORS), "host_processors_per_node": "2"}
    names = {"submitter": ORGANISATION, "system_name": PLATFORM, "division": "closed", "status": "Available on-premise"}
    return example | counts | names | changes


def write_tree(
    root: Path, logs: Sequence[MadeLog], system: str = PLATFORM, description: dict[str, Any] | None = None
) -> Path:
    """Write a submission of one system with its code and results. Return the root."""
    code = root / "benchmarks" / "gpt_oss_20b" / "implementations" / system
    described = system_description() if description is None else description
    files = {
        root / "systems" / f"{system}.json": json.dumps(described, indent=2) + "\n",
        code / "README.md": "# GPT-OSS 20B\n\nRun `./run_and_time.sh`.\n",
        code / "run_and_time.sh": '#!/usr/bin/env bash\nset -euo pipefail\nexec python train.py "$@"\n',
        code / "train.py": "import secrets\n\nseed = secrets.randbits(31)\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    write_set(root / "results" / system / "gpt_oss_20b", logs)
    return root


def _records(plan: RunPlan) -> Iterator[Event]:
    noise = random.Random(f"GBS {plan.gbs}, run {plan.run}")
    now = float(plan.start_ms + plan.run * SLOT_MS)
    yield event("cache_clear", True, int(now))
    yield event("init_start", None, int(now + 1), event_type=START)
    for key, value in hyperparameters(plan, seed=noise.getrandbits(31)).items():
        if plan.disclosures or key not in DISCLOSURES:
            yield event(key, value, int(now + 900), {"lineno": DESCRIPTION_LINE})
    now += INIT_MS * noise.uniform(0.95, 1.05)
    yield event("init_stop", None, int(now), event_type=END)
    yield event("run_start", None, int(now), event_type=START)
    now += 1500
    yield event("eval_tokens_sha256", "5e" * 32, int(now))
    speed = SAMPLES_PER_SECOND * noise.uniform(0.99, 1.01)
    for samples in range(plan.interval, plan.samples + 1, plan.interval):
        now = yield from _block(plan, samples, now, speed * noise.uniform(0.995, 1.005), noise)
    ending = {"status": "success"} if plan.converged else {"status": "aborted", "reason": "target not reached"}
    yield event("run_stop", None, int(now + 20), {"samples_count": plan.samples, **ending}, END)


def _block(plan: RunPlan, end: int, now: float, speed: float, noise: random.Random) -> Generator[Event, None, float]:
    """Yield training up to ``end`` samples and the evaluation there. Return the time after it in ms."""
    begin, at_end = end - plan.interval, {"samples_count": end}
    yield event("block_start", None, int(now), {"samples_count": begin}, START)
    base, end_rate, warmup = plan.schedule
    # The cosine of published logs ends at the logged decay steps, that of our logs at max_steps.
    after = plan.convention == "after"
    last = MAX_STEPS if after else MAX_STEPS - warmup
    for step in range(begin // plan.gbs + 1, end // plan.gbs + 1):
        if step % plan.logged_every and step != 1:
            continue
        samples = step * plan.gbs
        loss = min(FIRST_LOSS, _loss(samples / plan.crossing)) + noise.uniform(-0.05, 0.05)
        rate = learning_rate(step - 1 if after else step, base, end_rate, warmup, last)
        time = int(now + (samples - begin) / speed * 1000)
        yield event("train_loss", loss, time, {"samples_count": samples if after else samples - plan.gbs, "lr": rate})
    now += plan.interval / speed * 1000
    yield event("tracked_stats", {"throughput": speed}, int(now), {"step": end})
    yield event("block_stop", None, int(now), at_end, END)
    yield event("eval_start", None, int(now), at_end, START)
    now += EVALUATION_MS * noise.uniform(0.98, 1.02)
    # The noise is less than the curve falls in half an interval: only the last evaluation meets the target.
    loss = _loss(end / plan.crossing) + noise.uniform(-0.1, 0.1) * plan.interval / plan.samples
    yield event("eval_accuracy", loss, int(now), at_end)
    yield event("eval_stop", None, int(now), at_end, END)
    return now


def _loss(progress: float) -> float:
    """Return an evaluation loss in nats, similar to real logs: 3.34 at progress 1, about 5.2 at the first of 18."""
    return 2.8 + 0.54 * math.pow(progress, -0.52)


def _draw(gbs: int, runs: int) -> list[int]:
    """Return quantiles of a normal distribution in random order, each rounded up to the grid of evaluations."""
    quantiles = [NormalDist().inv_cdf((number + 0.5) / runs) for number in range(runs)]
    drawn = [on_grid(gbs, rcp_mean(gbs) * (1 + RELATIVE_SD * quantile)) for quantile in quantiles]
    random.Random(gbs).shuffle(drawn)
    return drawn
