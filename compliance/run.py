"""View of one parsed log as a run: description, milestones, evaluations. Pure; accepts any junk in the log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

from . import benchmark
from .findings import Evaluation
from .json_values import finite_float, whole_number
from .records import Log, Record

# Ranks log one event within milliseconds. The clocks of one machine drift by less than this between corrections.
JITTER_MS = 1000.0
# In milliseconds, March 1973. Smaller times were logged in seconds.
EARLIEST_MS = 1e11
# More samples or minutes than any run takes; only broken logs claim more.
MAX_PLAUSIBLE = 1e12


@dataclass(frozen=True, slots=True)
class Machine:
    """System as described: number of accelerators, the file that states it, and the system's name."""

    accelerators: int
    source: str
    name: str | None = field(default=None, compare=False)


class Run:
    """One log as the rules see it. Attributes without support in the log are None or empty."""

    def __init__(self, log: Log, ruleset: str, machine: Machine | None = None) -> None:
        self.log = log
        self.ruleset = ruleset
        self.machine = machine
        self._index(list(_without_repeats(log.records)))
        # The records that start and stop the clock.
        self.run_start, self.run_stop = self.first("run_start"), self.first("run_stop")
        self.run_status: Any = None if self.run_stop is None else self.run_stop.metadata.get("status")

    def _index(self, records: list[Record]) -> None:
        self.records = records
        self._by_key: dict[str, list[Record]] = {}
        for record in records:
            self._by_key.setdefault(record.key, []).append(record)

    def release(self) -> None:
        """Free the losses and the records of the timed part: a judged set needs settings and evaluations only."""
        _ = self.evaluations, self.training_digest  # computed of what goes
        start = math.inf if self.run_start is None else self.run_start.line
        self._index(
            [
                record
                for record in self.records
                if record.key in benchmark.SETTING_KEYS or (record.event == "POINT_IN_TIME" and record.line < start)
            ]
        )
        self.log = Log(self.log.name)

    def all(self, key: str) -> Sequence[Record]:
        """Return every distinct record of a key, in file order."""
        return self._by_key.get(key, ())

    def first(self, key: str) -> Record | None:
        """Return the first record of a key."""
        return next(iter(self.all(key)), None)

    def value(self, key: str) -> Any:
        """Return the value of the first record of a key, None without one."""
        record = self.first(key)
        return None if record is None else record.value

    def number(self, key: str) -> float | None:
        """Return the value of a key if it is a finite number."""
        return finite_float(self.value(key))

    def count(self, key: str) -> int | None:
        """Return the value of a key if it is a whole number."""
        return whole_number(self.value(key))

    @cached_property
    def is_other_benchmark(self) -> bool:
        """Return True for a log of another benchmark of MLPerf Training, to which no rule of this one applies."""
        return str(self.value("submission_benchmark")) in benchmark.OTHERS

    @cached_property
    def division(self) -> str:
        """Return the division whose rules apply: closed unless the log declares open."""
        return "open" if self.value("submission_division") == "open" else "closed"

    @cached_property
    def target(self) -> float:
        """Return the loss that ends the run: 3.34, or the declared one in the open division."""
        declared = self.number("target_accuracy") if self.division == "open" else None
        return benchmark.TARGET_LOSS if declared is None else declared

    @cached_property
    def times_in_ms(self) -> bool:
        """Return True if all times can be milliseconds since 1970, so that clock rules apply."""
        # Train losses by their first one: a log with a wrong unit has it throughout.
        times = [record.time_ms for record in self.log.records]
        return all(time > EARLIEST_MS for time in [*times, *self.log.train_losses.times_ms[:1]])

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Return the evaluations with a finite loss and a whole number of samples, in file order."""
        found = []
        for record in self.all("eval_accuracy"):
            samples, loss = whole_number(record.samples), finite_float(record.value)
            if samples is not None and loss is not None:
                found.append(Evaluation(samples, loss, record.time_ms, record.line))
        return found

    @cached_property
    def training_digest(self) -> bytes:
        """Return a hash of the training losses, in which NaN are equal; empty without losses."""
        losses = self.log.train_losses.losses
        return blake2b(losses, digest_size=16).digest() if losses else b""

    @cached_property
    def passing_evaluation(self) -> Evaluation | None:
        """Return the first evaluation that meets the target."""
        return next((each for each in self.evaluations if 0 < each.loss <= self.target), None)

    @cached_property
    def eval_interval_samples(self) -> int | None:
        """Return the training samples between evaluations.

        The rules fix them in the closed division. In the open division the first evaluation sets them.
        """
        if self.division == "open":
            return self.evaluations[0].samples if self.evaluations and self.evaluations[0].samples > 0 else None
        batch = self.count("global_batch_size")
        return benchmark.eval_interval_samples(batch) if batch is not None and batch > 0 else None

    @cached_property
    def regular_interval(self) -> int | None:
        """Return the samples between evaluations if two or more keep one interval from the start, else None."""
        counts = [each.samples for each in self.evaluations]
        first = counts[0] if len(counts) > 1 else 0
        return first if first > 0 and counts == [first * number for number in range(1, len(counts) + 1)] else None

    @cached_property
    def trained_samples(self) -> int | None:
        """Return the largest number of training samples in any record of training."""
        blocks = [*self.all("block_stop"), *self.all("epoch_stop"), *self.all("run_stop")]
        counts = [record.samples for record in blocks] + list(self.log.train_losses.samples[-1:])
        return max((count for count in map(whole_number, counts) if count is not None), default=None)

    @cached_property
    def data_parallel(self) -> int | None:
        """Return the data-parallel size: from the machine if known, else implied by the logged batch sizes."""
        if self.machine is not None:
            model = math.prod(self.parallel(kind) for kind in ("tensor", "pipeline", "context"))
            return self.machine.accelerators // model if self.machine.accelerators % model == 0 else None
        batch, micro, steps = map(self.count, ("global_batch_size", "micro_batch_size", "gradient_accumulation_steps"))
        if batch is None or micro is None or steps is None or min(batch, micro, steps) < 1 or batch % (micro * steps):
            return None
        return batch // (micro * steps)

    @cached_property
    def accelerators(self) -> int | None:
        """Return the accelerators of the machine if known, else the ranks that the logged sizes imply."""
        if self.machine is not None:
            return self.machine.accelerators
        ranks = math.prod(self.parallel(kind) for kind in ("tensor", "pipeline", "context"))
        return None if self.data_parallel is None else self.data_parallel * ranks

    def parallel(self, kind: str) -> int:
        """Return a parallel size ("tensor", "pipeline", "context" or "expert"), 1 if the log has no valid one."""
        size = self.count(f"{kind}_parallelism")
        return 1 if size is None else max(size, 1)

    def minutes_until(self, stop_ms: float | None) -> float | None:
        """Return the minutes from run_start to a time."""
        if self.run_start is None or stop_ms is None or not self.times_in_ms:
            return None
        return (stop_ms - self.run_start.time_ms) / 60_000


def common_eval_interval(runs: Sequence[Run]) -> int | None:
    """Return the training samples between evaluations if all runs share one value, else None.

    Samples to target move in multiples of this interval. Runs without an evaluation do not count. In the open
    division every evaluation must lie on the grid of the interval. In the closed division `eval-cadence` checks that.
    """
    intervals = {run.eval_interval_samples for run in runs if run.eval_interval_samples is not None}
    interval = intervals.pop() if len(intervals) == 1 else None
    if interval is None or interval >= MAX_PLAUSIBLE:
        return None
    counts = (each.samples for run in runs if run.division == "open" for each in run.evaluations)
    return None if any(samples % interval for samples in counts) else interval


def _without_repeats(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records without repeats by other ranks or by a second copy of the output.

    Ranks may log one event at slightly different times. A second run_start without a rank prefix counts as a second
    start unless its time is identical, because the clock starts once.
    """
    seen: dict[tuple[str, str, str, str], Record] = {}
    for record in records:
        # mllog adds the caller's file and line, which differ between ranks' code paths.
        metadata = {name: value for name, value in record.metadata.items() if name not in ("file", "lineno")}
        signature = (record.key, record.event, repr(record.value), repr(sorted(metadata.items(), key=repr)))
        earlier = seen.get(signature)
        jitter = 0.0 if record.key == "run_start" and record.rank is None else JITTER_MS
        if earlier is None or abs(record.time_ms - earlier.time_ms) > jitter:
            seen[signature] = record
            yield record
