"""Learning rates of the logged schedule: linear warm-up from 0, then a cosine, in Megatron-Core's arithmetic.

The rules leave two details open, and published runs differ in them. One log may use either reading of each:
- A `train_loss` record's `lr` is the learning rate of its step or of the next one, and `samples_count` includes the
  step or not. This shifts the schedule by at most one step in either direction.
- The cosine ends at max_steps, or at step opt_learning_rate_decay_steps (max_steps minus the warm-up). Megatron-Core
  does the latter if it is given the logged number, as in the published reference logs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rates logged in single precision are off by 6e-8. A wrong end rate shows as 5e-6 after 9,000 steps.
TOLERANCE = 2e-7
_SHIFTS = (-1, 0, 1)
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Schedule:
    """Logged schedule. Steps count from 0; the first has rate 0 unless the warm-up is 0."""

    base: float
    end: float
    warmup_steps: int
    decay_steps: int
    max_steps: int

    def rates(self, steps: NDArray[np.float64], last_step: int) -> NDArray[np.float64]:
        """Return the learning rate of each step, with the cosine ending at ``last_step``."""
        warmup = self.warmup_steps
        ratio = (steps - warmup) / max(last_step - warmup, 1)
        # The order of operations is that of Megatron-Core, so that rates agree to the last bits.
        cosine = self.end + 0.5 * (np.cos(np.pi * np.clip(ratio, 0.0, 1.0)) + 1.0) * (self.base - self.end)
        linear = self.base * steps / warmup if warmup > 0 else cosine
        return np.where((steps <= warmup) & (warmup > 0), linear, cosine)


class Comparison:
    """Logged and expected learning rates, by the reading of the schedule that explains most of them."""

    def __init__(
        self, schedule: Schedule, global_batch_size: int, samples: NDArray[np.float64], logged: NDArray[np.float64]
    ) -> None:
        self._schedule, self._batch, self._samples, self._logged = schedule, global_batch_size, samples, logged
        readings = [(last, shift) for last in (schedule.max_steps, schedule.decay_steps) for shift in _SHIFTS]
        self._reading = min(readings, key=self._misfit)

    def wrong(self) -> NDArray[np.intp]:
        """Return the indexes of the rates that contradict the schedule, in order."""
        starts = range(0, len(self._samples), _CHUNK)
        chunks = zip(starts, self._compare_chunks(self._reading), strict=True)
        indexes = [start + np.flatnonzero(is_wrong) for start, (is_wrong, _) in chunks]
        return np.concatenate(indexes) if indexes else np.empty(0, dtype=np.intp)

    def expected(self, index: int | slice = slice(None)) -> NDArray[np.float64]:
        """Return the expected rates of some records, by default of all."""
        return self._rates(self._samples[index], self._reading)

    def _rates(self, samples: NDArray[np.float64], reading: tuple[int, int]) -> NDArray[np.float64]:
        last, shift = reading
        return self._schedule.rates(samples / self._batch + shift, last)

    def _misfit(self, reading: tuple[int, int]) -> tuple[int, float]:
        """Return the number of rates that contradict a reading, and the sum of all differences."""
        chunks = list(self._compare_chunks(reading))
        return sum(int(is_wrong.sum()) for is_wrong, _ in chunks), sum(difference for _, difference in chunks)

    def _compare_chunks(self, reading: tuple[int, int]) -> Iterator[tuple[NDArray[np.bool_], float]]:
        """Yield the wrong rates of a reading and the sum of all differences, in chunks: a log may hold a million."""
        for start in range(0, len(self._samples), _CHUNK):
            expected = self._rates(self._samples[start : start + _CHUNK], reading)
            logged = self._logged[start : start + _CHUNK]
            difference = np.abs(expected - logged)
            # 1e-15 absorbs rounding of rates near 0.
            limit = TOLERANCE * np.maximum(np.abs(expected), np.abs(logged)) + 1e-15
            yield difference > limit, float(difference.sum())
