"""What a person sees while a run goes: one live line on a terminal, a plain line every LOG_INTERVAL in a pipe.

Everything here goes to stderr, so that stdout carries nothing but the log's records.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .config import Config


class Progress(Protocol):
    """Observer of a run on rank 0. Called with what the log already holds; never changes the run."""

    def trained(self, samples: int, loss: float) -> None:
        """A loss was logged."""

    def evaluated(self, samples: int, loss: float) -> None:
        """An evaluation ended."""

    def message(self, text: str) -> None:
        """Something worth a line of its own."""

    def close(self) -> None:
        """The run is over."""


class NullProgress:
    """The progress of every rank but the first."""

    def trained(self, samples: int, loss: float) -> None:
        """Nothing."""

    def evaluated(self, samples: int, loss: float) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@dataclass
class _State:
    samples: int = 0
    loss: float | None = None


class Display:
    """Progress on stderr.

    Args:
        config: for the evaluation interval and the target.
    """

    def __init__(self, config: Config) -> None:
        self._tokens_per_sample = config.fixed.sequence_length
        self._interval = config.eval_interval_steps * config.free.global_batch_size
        self._target = config.fixed.target_loss
        self._state = _State()
        self._recent: deque[tuple[float, int]] = deque(maxlen=32)
        self._evaluations: list[tuple[int, float]] = []
        self._console = Console(stderr=True)
        self._live: Live | None = None

    def trained(self, samples: int, loss: float) -> None:
        """Show the progress made."""
        self._state = _State(samples, loss)
        self._recent.append((time.perf_counter(), samples))
        self._show()

    def evaluated(self, samples: int, loss: float) -> None:
        """Show the evaluation; training speed is measured anew, without the evaluation's time."""
        self._evaluations.append((samples, loss))
        self._recent.clear()
        self._recent.append((time.perf_counter(), samples))
        verdict = "target reached" if loss <= self._target else f"target {self._target:g}"
        self.message(f"evaluation at {samples:,} samples: loss {loss:.4f} ({verdict})")

    def message(self, text: str) -> None:
        """Print a line that stays, above the live one."""
        if self._live is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def echo(self, line: str) -> None:
        """Print a record on stdout; on a terminal that also shows the live line, above that."""
        if self._live is not None and sys.stdout.isatty():
            self.message(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self) -> None:
        # Not what rich takes for a terminal: FORCE_COLOR makes it one of a pipe, and a dumb one cannot redraw a line.
        if not sys.stderr.isatty() or self._console.is_dumb_terminal:
            print(self.line(), file=sys.stderr, flush=True)
            return
        if self._live is None:
            # Neither stream is redirected: what is printed above the line goes through `message` and `echo`.
            self._live = Live(console=self._console, redirect_stdout=False, redirect_stderr=False, transient=True)
            self._live.start()
        self._live.update(Text(self.line()))

    def line(self) -> str:
        """The progress as one line of text."""
        samples = self._state.samples
        parts = [f"{samples:,} samples", f"loss {self._state.loss:.4f}"]
        if self._evaluations:
            parts.append(f"last evaluation {self._evaluations[-1][1]:.4f}")
        rate = self._samples_per_second()
        if rate:
            parts.append(f"{rate * self._tokens_per_sample:,.0f} tokens/s")
            parts.append(f"next evaluation in {_duration((-samples % self._interval) / rate)}")
            reach = samples_to_target(self._evaluations, self._target)
            if reach is not None:
                parts.append(f"target in about {_duration(max(0.0, reach - samples) / rate)}")
        return " | ".join(parts)

    def _samples_per_second(self) -> float:
        if not self._recent:
            return 0.0
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        return (last - first) / (end - start) if last > first and end > start else 0.0


def samples_to_target(evaluations: list[tuple[int, float]], target: float) -> float | None:
    """Where the line through the last two evaluations' (samples, loss) meets the target; None while it cannot be told.

    >>> samples_to_target([(100, 4.0), (200, 3.5)], 3.0)
    300.0
    """
    if len(evaluations) < 2:
        return None
    (x0, y0), (x1, y1) = evaluations[-2:]
    if y1 >= y0:
        return None
    return x1 + (y1 - target) * (x1 - x0) / (y0 - y1)


def _duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> _duration(42.4), _duration(600), _duration(9000)
    ('42 s', '10.0 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
