"""Progress for people: one live line on a terminal, a plain line at every logged loss in a pipe.

Everything goes to stderr, so that stdout carries nothing but the log's records.
"""

from __future__ import annotations

import sys
import time
from collections import deque

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..config import Config
from .base import Callback


class NullProgress(Callback):
    """Progress of every rank but the first: shows nothing."""

    def message(self, text: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:
        """Remove the live line."""


class ConsoleProgress(NullProgress):
    """Progress on stderr."""

    def __init__(self, config: Config) -> None:
        self._batch_size = config.free.global_batch_size
        self._tokens_per_sample = config.fixed.sequence_length
        self._eval_interval_samples = config.eval_interval_steps * self._batch_size
        self._target = config.fixed.target_loss
        self._samples, self._loss = 0, 0.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=32)
        self._evaluations: list[tuple[int, float]] = []
        self._console = Console(stderr=True)
        self._live: Live | None = None

    def on_train_loss(self, step: int, loss: float, learning_rate: float) -> None:
        """Show the progress made."""
        self._samples, self._loss = step * self._batch_size, loss
        self._recent.append((time.perf_counter(), self._samples))
        self._show()

    def on_eval_stop(self, step: int, loss: float, converged: bool) -> None:
        """Show the evaluation. Measure training speed anew from here, without the evaluation's time."""
        samples = step * self._batch_size
        self._evaluations.append((samples, loss))
        self._recent.clear()
        self._recent.append((time.perf_counter(), samples))
        verdict = "target reached" if converged else f"target {self._target:g}"
        self.message(f"evaluation at {samples:,} samples: loss {loss:.4f} ({verdict})")

    def message(self, text: str) -> None:
        """Print a line that stays, above the live one."""
        if self._live is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def echo(self, line: str) -> None:
        """Print a record on stdout; above the live line if both are on one terminal."""
        if self._live is not None and sys.stdout.isatty():
            self.message(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self) -> str:
        """Return the progress as one line of text."""
        parts = [f"{self._samples:,} samples", f"loss {self._loss:.4f}"]
        if self._evaluations:
            parts.append(f"last evaluation {self._evaluations[-1][1]:.4f}")
        rate = self._samples_per_second()
        if rate:
            parts.append(f"{rate * self._tokens_per_sample:,.0f} tokens/s")
            parts.append(f"next evaluation in {format_duration((-self._samples % self._eval_interval_samples) / rate)}")
            reach = samples_to_target(self._evaluations, self._target)
            if reach is not None:
                parts.append(f"target in about {format_duration(max(0.0, reach - self._samples) / rate)}")
        return " | ".join(parts)

    def _show(self) -> None:
        # Do not ask rich: FORCE_COLOR makes it take a pipe for a terminal. A dumb terminal cannot redraw a line.
        if not sys.stderr.isatty() or self._console.is_dumb_terminal:
            print(self.line(), file=sys.stderr, flush=True)
            return
        if self._live is None:
            # Lines above the live one go through `message` and `echo`, so rich need not redirect the streams.
            self._live = Live(console=self._console, redirect_stdout=False, redirect_stderr=False, transient=True)
            self._live.start()
        self._live.update(Text(self.line()))

    def _samples_per_second(self) -> float:
        if not self._recent:
            return 0.0
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        return (last - first) / (end - start) if last > first and end > start else 0.0


def samples_to_target(evaluations: list[tuple[int, float]], target: float) -> float | None:
    """Extrapolate the line through the last two evaluations (samples, loss) to the target.

    Returns:
        Samples at the target, or None with fewer than two evaluations or a loss that does not fall.

    >>> samples_to_target([(100, 4.0), (200, 3.5)], 3.0)
    300.0
    """
    if len(evaluations) < 2:
        return None
    (x0, y0), (x1, y1) = evaluations[-2:]
    if y1 >= y0:
        return None
    return x1 + (y1 - target) * (x1 - x0) / (y0 - y1)


def format_duration(seconds: float) -> str:
    """Format a duration with the unit that people would use.

    >>> format_duration(42.4), format_duration(600), format_duration(9000)
    ('42 s', '10.0 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
