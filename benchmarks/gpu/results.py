"""What a comparison found so far, and what follows from it. Kept in `results.json`, whole at any time."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import fmean
from typing import Literal

from benchmarks.gpu.contestants import CONTESTANTS
from benchmarks.gpu.records import Record, Turn
from gptoss20b.bench.result import BenchResult
from gptoss20b.bench.scenarios import Name

RESULTS = "results.json"
Timed = Literal["step_seconds", "step_without_optimizer_seconds"]


class Comparison(Record):
    """Turns on the same tokens, weights, code and settings, in the order in which they were taken."""

    scenario: Name
    sequences: int
    warmup: int
    steps: int
    git_commit: str
    turns: list[Turn]

    def turn(self, contestant: str, number: int) -> Turn | None:
        """A contestant's turn, if it has had it."""
        return next((t for t in self.turns if (t.contestant, t.number) == (contestant, number)), None)

    def ours(self, variant: str) -> Turn | None:
        """Our first turn with an architecture."""
        mine = (name for name, each in CONTESTANTS.items() if each.ours and each.variant == variant)
        return self.turn(next(mine), 1)

    def seconds(self, contestant: str, timed: Timed = "step_seconds") -> float | None:
        """Median seconds of a step, the mean over the contestant's turns; None without any."""
        medians = [
            spread.median
            for t in self.turns
            if t.contestant == contestant and t.result and (spread := getattr(t.result, timed))
        ]
        return fmean(medians) if medians else None

    def times_ours(self, contestant: str, timed: Timed = "step_seconds") -> float | None:
        """How many times as long as ours, of the same architecture, a contestant's step takes."""
        ours = self.ours(CONTESTANTS[contestant].variant)
        own, reference = self.seconds(contestant, timed), ours and self.seconds(ours.contestant, timed)
        return own / reference if own and reference else None

    def best_peer(self) -> str | None:
        """The peer that is fastest beside ours in their first turns, so that a second turn changes nothing here."""
        first = self.model_copy(update={"turns": [turn for turn in self.turns if turn.number == 1]})
        ratios = {name: first.times_ours(name) for name, each in CONTESTANTS.items() if not each.ours}
        known = {name: ratio for name, ratio in ratios.items() if ratio}
        return min(known, key=lambda name: known[name]) if known else None

    def some_result(self) -> BenchResult | None:
        """Any result, for what is the same in all."""
        return next((turn.result for turn in self.turns if turn.result), None)


def write(folder: Path, comparison: Comparison) -> None:
    """Replace the folder's results."""
    temporary = folder / f".{RESULTS}"
    temporary.write_text(comparison.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / RESULTS)  # noqa: PTH105 - the one that replaces


def read(folder: Path) -> Comparison:
    """The folder's results.

    Raises:
        OSError, ValueError: there are none, or others.
    """
    return Comparison.model_validate_json((folder / RESULTS).read_text(encoding="utf-8"))
