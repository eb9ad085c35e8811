"""The file `metrics.jsonl` beside the log: norms, routing and attention scores at each logged loss, and loss spikes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import Config
from ..durable import atomic_write
from ..probe import Probe
from .base import Callback

# Standard deviations above the mean at which a loss is a spike.
SPIKE_SCORE = 6.0
_DECAY = 0.9
# Logged losses before the first score.
_AT_LEAST = 10


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file, up to one that a full disk or a killed process has cut."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            lines.append({**line, "step": int(line["step"]), "loss": float(line["loss"])})
        except (ValueError, TypeError, KeyError):
            break
    return lines


def _finite(value: Any) -> Any:
    """Return a value for JSON, which has neither NaN nor infinity: null stands for them.

    >>> _finite([1.0, math.inf])
    [1.0, None]
    """
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class SpikeScore:
    """How far each loss is above the exponentially weighted mean of those before it, in standard deviations."""

    def __init__(self) -> None:
        self._count, self._mean, self._variance = 0, 0.0, 0.0

    def update(self, loss: float) -> float | None:
        """Return the score of the next loss; None for the first ten.

        >>> score = SpikeScore()
        >>> [score.update(3.0 + 0.01 * (-1) ** k) for k in range(10)] == [None] * 10
        True
        >>> round(score.update(3.1))
        10
        """
        deviation = loss - self._mean if self._count else 0.0
        score = deviation / math.sqrt(self._variance) if self._count >= _AT_LEAST and self._variance > 0 else None
        self._mean = self._mean + (1 - _DECAY) * deviation if self._count else loss
        self._variance = _DECAY * (self._variance + (1 - _DECAY) * deviation**2)
        self._count += 1
        return score


class Metrics(Callback):
    """Write a line of JSON for each logged loss, on rank 0. All ranks measure.

    Args:
        config: of the run.
        path: of the file; None on other ranks. A resumed run keeps its lines up to ``start_step``.
        start_step: steps that are finished when training starts.
        warn: receives a sentence about each spike, and about a file that cannot be written.
    """

    def __init__(self, config: Config, path: Path | None, start_step: int, warn: Callable[[str], None]) -> None:
        self._config, self._path, self._warn = config, path, warn
        self._score = SpikeScore()
        self._probe: Probe | None = None
        if path is not None and path.exists():
            kept = [line for line in _read_lines(path) if line["step"] <= start_step]
            for line in kept:
                self._score.update(line["loss"])
            try:
                atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept), flush=False)
            except OSError as error:
                self._stop_writing(error)

    def on_step_start(self, step: int) -> None:
        """Measure the step if its loss will be logged."""
        if self._config.logging.has_loss(step):
            self._probe = self._probe or Probe(self.trainer)
            self._probe.start()

    def on_train_loss(self, step: int, loss: float, learning_rate: float) -> None:
        """Write the line."""
        assert self._probe is not None, "the step whose loss is logged has started"
        measured = self._probe.read()
        score = self._score.update(loss)
        if score is not None and score > SPIKE_SCORE:
            self._warn(f"warning: loss {loss:.4f} of step {step} is {score:.1f} standard deviations above its mean")
        if self._path is None:
            return
        samples = step * self._config.free.global_batch_size
        line = {"step": step, "samples": samples, "loss": loss, "learning_rate": learning_rate, "spike_score": score}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({name: _finite(value) for name, value in (line | measured).items()}) + "\n")
        except OSError as error:
            self._stop_writing(error)

    def _stop_writing(self, error: OSError) -> None:
        self._warn(f"warning: {self._path} ends here: {error.strerror}")
        self._path = None
