"""The learning rate by the logged schedule: linear warm-up from 0, then a cosine, in Megatron-Core's arithmetic.

Two details are not fixed by the rules, and published runs differ in them; both readings are accepted, one per log:
- what a `train_loss` record's `lr` is: the rate that the step used, or the next one's; and whether `samples_count`
  includes the step. That shifts the schedule by at most one step either way.
- where the cosine ends: at max_steps, or at step opt_learning_rate_decay_steps (max_steps less the warm-up), which is
  what Megatron-Core does when given the logged number (the published reference logs, to the last bit).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rates logged in single precision are off by 6e-8; a wrong end rate shows as 5e-6 after 9,000 steps.
TOLERANCE = 2e-7
_SHIFTS = (-1, 0, 1)
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as logged. Rates per step; steps are counted from 0, the first having rate 0 unless warmup is 0."""

    base: float
    end: float
    warmup_steps: int
    decay_steps: int
    max_steps: int

    def rates(self, steps: NDArray[np.float64], last_step: int) -> NDArray[np.float64]:
        """The rate of each step, with the cosine ending at ``last_step``; the end rate after it."""
        warmup = self.warmup_steps
        ratio = (steps - warmup) / max(last_step - warmup, 1)
        cosine = self.end + 0.5 * (np.cos(np.pi * np.clip(ratio, 0.0, 1.0)) + 1.0) * (self.base - self.end)
        linear = self.base * steps / warmup if warmup > 0 else cosine
        return np.where((steps <= warmup) & (warmup > 0), linear, cosine)


class Comparison:
    """Logged against expected rates, by the reading of the schedule that explains most of them.

    Args:
        schedule: as logged.
        global_batch_size: sequences per step.
        samples: samples_count of each record.
        logged: its lr.
    """

    def __init__(
        self, schedule: Schedule, global_batch_size: int, samples: NDArray[np.float64], logged: NDArray[np.float64]
    ) -> None:
        self._schedule, self._batch, self._samples, self._logged = schedule, global_batch_size, samples, logged
        readings = [(last, shift) for last in (schedule.max_steps, schedule.decay_steps) for shift in _SHIFTS]
        self._reading = min(readings, key=self._misfit)

    def wrong(self) -> NDArray[np.intp]:
        """Indexes of the rates that the schedule cannot explain, in order."""
        starts = range(0, len(self._samples), _CHUNK)
        chunks = zip(starts, self._compared(self._reading), strict=True)
        found = [start + np.flatnonzero(wrong) for start, (wrong, _) in chunks]
        return np.concatenate(found) if found else np.empty(0, dtype=np.intp)

    def expected(self, index: int | slice = slice(None)) -> NDArray[np.float64]:
        """The rates that belong to some of the records, or to all."""
        return self._rates(self._samples[index], self._reading)

    def _rates(self, samples: NDArray[np.float64], reading: tuple[int, int]) -> NDArray[np.float64]:
        last, shift = reading
        return self._schedule.rates(samples / self._batch + shift, last)

    def _misfit(self, reading: tuple[int, int]) -> tuple[int, float]:
        """How many rates a reading cannot explain, and by how much all are off."""
        chunks = list(self._compared(reading))
        return sum(int(wrong.sum()) for wrong, _ in chunks), sum(off for _, off in chunks)

    def _compared(self, reading: tuple[int, int]) -> Iterator[tuple[NDArray[np.bool_], float]]:
        """By a reading, which rates are wrong, and the sum of all differences; in chunks: a log may have a million."""
        for start in range(0, len(self._samples), _CHUNK):
            expected = self._rates(self._samples[start : start + _CHUNK], reading)
            logged = self._logged[start : start + _CHUNK]
            off = np.abs(expected - logged)
            yield off > TOLERANCE * np.maximum(np.abs(expected), np.abs(logged)) + 1e-15, float(off.sum())
