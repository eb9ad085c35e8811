"""One log as the rules see it: a run with a description, milestones and evaluations. Pure, and indifferent to junk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import benchmark
from .findings import Evaluation
from .records import Log, Record

# Ranks log the same event within milliseconds of each other; clocks of one machine are corrected by less than this.
JITTER_MS = 1000.0
# Times below are seconds: as milliseconds they would lie before March 1973.
EARLIEST_MS = 1e11
# More samples or minutes than any run takes: what a broken log claims.
MAX_PLAUSIBLE = 1e12


@dataclass(frozen=True, slots=True)
class Machine:
    """What a system description says of the machine: its accelerators, and the file that says so."""

    accelerators: int
    source: str


class Run:
    """A parsed log, read as a run. Attributes that the log does not support are None or empty.

    Args:
        log: the parsed file.
        ruleset: "6.0.0" or "6.1.0".
        machine: the system that it ran on, None if unknown.
    """

    def __init__(self, log: Log, ruleset: str, machine: Machine | None = None) -> None:
        self.log = log
        self.ruleset = ruleset
        self.machine = machine
        self.records = list(_distinct(log.records))
        self._by_key: dict[str, list[Record]] = {}
        for record in self.records:
            self._by_key.setdefault(record.key, []).append(record)

    def all(self, key: str) -> Sequence[Record]:
        """Every distinct record of a key, in file order."""
        return self._by_key.get(key, ())

    def first(self, key: str) -> Record | None:
        """The first record of a key."""
        return next(iter(self.all(key)), None)

    def value(self, key: str) -> Any:
        """The value of the first record of a key; None if there is none."""
        record = self.first(key)
        return None if record is None else record.value

    def number(self, key: str) -> float | None:
        """The value of a key if it is a finite number."""
        return finite_float(self.value(key))

    def count(self, key: str) -> int | None:
        """The value of a key if it is a whole number."""
        return whole_number(self.value(key))

    @cached_property
    def division(self) -> str:
        """The division whose rules apply: closed unless the log says open."""
        return "open" if self.value("submission_division") == "open" else "closed"

    @cached_property
    def target(self) -> float:
        """The loss that ends the run: 3.34, in the open division what the log declares."""
        declared = self.number("target_accuracy") if self.division == "open" else None
        return benchmark.TARGET_LOSS if declared is None else declared

    @cached_property
    def times_in_ms(self) -> bool:
        """Whether the times are in milliseconds, so that clock rules make sense."""
        times = [record.time_ms for record in self.log.records]
        return all(time > EARLIEST_MS for time in [*times, *self.log.train_losses.times_ms[:1]])

    @cached_property
    def run_start(self) -> Record | None:
        """The record that starts the clock."""
        return self.first("run_start")

    @cached_property
    def run_stop(self) -> Record | None:
        """The record that stops the clock."""
        return self.first("run_stop")

    @cached_property
    def run_status(self) -> Any:
        """Status in run_stop."""
        return None if self.run_stop is None else self.run_stop.metadata.get("status")

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Evaluations with a finite loss and a whole number of samples, in file order."""
        found = []
        for record in self.all("eval_accuracy"):
            samples, loss = whole_number(record.samples), finite_float(record.value)
            if samples is not None and loss is not None:
                found.append(Evaluation(samples, loss, record.time_ms, record.line))
        return found

    @cached_property
    def passing_evaluation(self) -> Evaluation | None:
        """The first evaluation that meets the target."""
        return next((each for each in self.evaluations if 0 < each.loss <= self.target), None)

    @cached_property
    def eval_interval_samples(self) -> int | None:
        """Training samples between evaluations: by the rules in the closed division, as it began in the open one."""
        if self.division == "open":
            return self.evaluations[0].samples if self.evaluations and self.evaluations[0].samples > 0 else None
        size = self.count("global_batch_size")
        return benchmark.eval_interval_samples(size) if size is not None and size > 0 else None

    @cached_property
    def trained_samples(self) -> int | None:
        """The most training samples that any record of training counts."""
        blocks = [*self.all("block_stop"), *self.all("epoch_stop"), *self.all("run_stop")]
        counts = [record.samples for record in blocks] + list(self.log.train_losses.samples[-1:])
        return max((count for count in map(whole_number, counts) if count is not None), default=None)

    @cached_property
    def data_parallel(self) -> int | None:
        """Data parallel size: of the machine where it is known, else as the logged batch sizes imply it."""
        if self.machine is not None:
            model = self._model_parallel
            return self.machine.accelerators // model if self.machine.accelerators % model == 0 else None
        batch, micro, steps = map(self.count, ("global_batch_size", "micro_batch_size", "gradient_accumulation_steps"))
        if batch is None or micro is None or steps is None or min(batch, micro, steps) < 1 or batch % (micro * steps):
            return None
        return batch // (micro * steps)

    @cached_property
    def _model_parallel(self) -> int:
        return math.prod(self.parallel(kind) for kind in ("tensor", "pipeline", "context"))

    def parallel(self, kind: str) -> int:
        """A parallel size ("tensor", "pipeline", "context" or "expert"): 1 where the log has none or nonsense."""
        size = self.count(f"{kind}_parallelism")
        return 1 if size is None else max(size, 1)

    def minutes(self, stop_ms: float | None) -> float | None:
        """Minutes from run_start to a time."""
        if self.run_start is None or stop_ms is None or not self.times_in_ms:
            return None
        return (stop_ms - self.run_start.time_ms) / 60_000

    @property
    def score_minutes(self) -> float | None:
        """The time that counts: run_start to run_stop."""
        return self.minutes(None if self.run_stop is None else self.run_stop.time_ms)


def common_eval_interval(runs: Sequence[Run]) -> int | None:
    """Samples between evaluations, the least that samples to target can move by; None if the runs have no such number.

    All must have the same, but for a run that never evaluated, which says nothing of it. In the closed division it is
    that of the rules, whatever `eval-cadence` finds; in the open one the evaluations must show it: all on its grid.
    """
    intervals = {run.eval_interval_samples for run in runs if run.eval_interval_samples is not None}
    step = intervals.pop() if len(intervals) == 1 else None
    if step is None or step >= MAX_PLAUSIBLE:
        return None
    shown = (each.samples for run in runs if run.division == "open" for each in run.evaluations)
    return None if any(samples % step for samples in shown) else step


def finite_float(value: object) -> float | None:
    """A JSON number as a float; None for anything else, NaN and infinities among it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def whole_number(value: object) -> int | None:
    """A JSON number as an integer (16 and 16.0 alike); None for anything else."""
    number = finite_float(value)
    if number is None or not number.is_integer():
        return None
    # An integer is kept as it is: a seed of 64 bits is no float.
    return value if isinstance(value, int) else int(number)


def comparison_key(value: object) -> str:
    """Equal for equal JSON values: numbers by what they are worth, however they are written.

    >>> comparison_key(1), comparison_key(1.0), comparison_key(True), comparison_key("1")
    ('1', '1', 'True', "'1'")
    """
    number = whole_number(value)
    return repr(value if number is None else number)


def _distinct(records: Iterable[Record]) -> Iterator[Record]:
    """Leaves out what another rank, or another copy of the output, says again.

    Times of the same event may differ between ranks; the clock starts once, so a run_start without a rank before it
    must be the very same one.
    """
    seen: dict[tuple[str, str, str, str], Record] = {}
    for record in records:
        about = {name: value for name, value in record.metadata.items() if name not in ("file", "lineno")}
        signature = (record.key, record.event, repr(record.value), repr(sorted(about.items(), key=repr)))
        earlier = seen.get(signature)
        jitter = 0.0 if record.key == "run_start" and record.rank is None else JITTER_MS
        if earlier is None or abs(record.time_ms - earlier.time_ms) > jitter:
            seen[signature] = record
            yield record
