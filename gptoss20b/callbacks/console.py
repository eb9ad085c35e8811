"""Progress for people: header, live line, evaluations and loss curve on a terminal; in a pipe, plain lines.

Everything goes to stderr, so that stdout carries nothing but the log's records.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..config import Config
from .base import Callback
from .loss_curve import plot, samples_to_target


class NullProgress(Callback):
    """Progress of every rank but the first: shows nothing."""

    def start(self, facts: dict[str, str], line: str) -> None:
        """Show what runs: the facts as a header on a terminal, the line in a pipe."""

    def message(self, text: str) -> None:
        """Print a line that stays."""

    def detail(self, text: str) -> None:
        """Print a line that stays, but not on a terminal."""

    def close(self) -> None:
        """Remove the live line."""

    def finish(self, result: str) -> None:
        """Print the result, below a plot of the loss curve on a terminal."""


class ConsoleProgress(NullProgress):
    """Progress on stderr."""

    def __init__(self, config: Config) -> None:
        self._batch_size = config.free.global_batch_size
        self._tokens_per_sample = config.fixed.sequence_length
        self._eval_interval_samples = config.eval_interval_steps * self._batch_size
        self._target = config.fixed.target_loss
        wanted = config.logging.records_on_stdout
        self._records_on_stdout = not _is_terminal(sys.stdout) if wanted is None else wanted
        self._samples, self._evaluating = 0, False
        self._recent: deque[tuple[float, int]] = deque(maxlen=32)
        self._train: list[tuple[int, float]] = []
        self._evaluations: list[tuple[int, float]] = []
        self._reach: float | None = None
        self._console = Console(stderr=True)
        self._live: Live | None = None

    def start(self, facts: dict[str, str], line: str) -> None:
        """Show what runs."""
        if not self._on_terminal:
            self.message(line)
            return
        table = Table.grid(padding=(0, 2))
        for name, fact in facts.items():
            table.add_row(Text(name), Text(fact, overflow="fold"))
        self._console.print(Panel(table, title="GPT-OSS pretraining", expand=False))
        self._show()

    def on_train_loss(self, step: int, loss: float, learning_rate: float) -> None:
        """Show the progress made."""
        self._samples = step * self._batch_size
        self._train.append((self._samples, loss))
        self._recent.append((time.perf_counter(), self._samples))
        self._show()

    def on_eval_start(self, step: int) -> None:
        """Show on a terminal that an evaluation runs."""
        self._evaluating = True
        if self._on_terminal:
            self._show()

    def on_eval_stop(self, step: int, loss: float, converged: bool) -> None:
        """Show the evaluation. Measure training speed anew from here, without the evaluation's time."""
        samples, self._evaluating = step * self._batch_size, False
        self._evaluations.append((samples, loss))
        self._recent.clear()
        self._recent.append((time.perf_counter(), samples))
        self._reach = samples_to_target(self._train, self._evaluations, self._target)
        verdict = "target reached" if converged else f"target {self._target:g}"
        text = f"evaluation at {samples:,} samples: loss {loss:.4f} ({verdict})"
        if not self._on_terminal:
            self.message(text)
            return
        first = (self._train or self._evaluations)[0][1]
        done = 1.0 if converged else (first - loss) / max(first - self._target, 1e-9)
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=1.0, completed=min(max(done, 0.0), 1.0), width=24), Text(text))
        self._console.print(row)

    def message(self, text: str) -> None:
        """Print a line that stays, above the live one."""
        if self._live is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        with contextlib.suppress(OSError):  # a reader that has gone must not end a run
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """Print a line that stays, but not on a terminal."""
        if not self._on_terminal:
            self.message(text)

    def echo(self, line: str) -> None:
        """Print a record on stdout, above the live line if both are on one terminal."""
        if not self._records_on_stdout:
            return
        if self._live is not None and _is_terminal(sys.stdout):
            self.message(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def finish(self, result: str) -> None:
        """Print the result, below a plot of the loss curve on a terminal."""
        if self._on_terminal and self._train:
            self.message(plot(self._train, self._evaluations, self._target, min(self._console.width - 1, 100)))
        self.message(result)

    def line(self) -> str:
        """Return the progress as one line of text."""
        if not self._train:
            return "starting"
        parts = [f"{self._samples:,} samples", f"loss {self._train[-1][1]:.4f}"]
        if self._evaluations:
            parts.append(f"last evaluation {self._evaluations[-1][1]:.4f}")
        rate = self._samples_per_second()
        if rate:
            parts.append(f"{rate * self._tokens_per_sample:,.0f} tokens/s")
        to_evaluation = -self._samples % self._eval_interval_samples
        if self._evaluating or to_evaluation == 0:
            parts.append("evaluating")
        elif rate:
            parts.append(f"next evaluation in {format_duration(max(1.0, to_evaluation / rate))}")
            to_target = self._samples_to_passing_evaluation()
            if to_target is None:
                parts.append("time to target unknown")
            else:
                parts.append(f"target in about {format_duration(max(1.0, to_target / rate))}")
        return " | ".join(parts)

    @property
    def _on_terminal(self) -> bool:
        # Do not ask rich: FORCE_COLOR makes it take a pipe for a terminal. A dumb terminal cannot redraw a line.
        return _is_terminal(sys.stderr) and not self._console.is_dumb_terminal

    def _show(self) -> None:
        if not self._on_terminal:
            self.message(self.line())
            return
        if self._live is None:
            # Lines above the live one go through `message` and `echo`, so rich need not redirect the streams.
            self._live = Live(console=self._console, redirect_stdout=False, redirect_stderr=False, transient=True)
            self._live.start()
        self._live.update(Text(self.line()))

    def _samples_to_passing_evaluation(self) -> int | None:
        """Return the samples left until the first evaluation at or after the estimate; None if there is none."""
        if self._reach is None:
            return None
        to_evaluation = -self._samples % self._eval_interval_samples
        more = math.ceil((self._reach - self._samples - to_evaluation) / self._eval_interval_samples)
        return to_evaluation + max(0, more) * self._eval_interval_samples

    def _samples_per_second(self) -> float:
        if not self._recent:
            return 0.0
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        return (last - first) / (end - start) if last > first and end > start else 0.0


def _is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; it is None where the caller closed it."""
    return stream is not None and stream.isatty()


def format_duration(seconds: float) -> str:
    """Format a duration with the unit that people would use.

    >>> format_duration(42.4), format_duration(99), format_duration(600), format_duration(5999), format_duration(9000)
    ('42 s', '99 s', '10.0 min', '100.0 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
