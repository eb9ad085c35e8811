"""What a comparison found so far, and what follows from it. Kept in `results.json`, whole at any time."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import ValidationError

from benchmarks.gpu.baselines import BASELINES
from benchmarks.gpu.records import Record, Trial
from gptoss20b.durable import atomic_write
from gptoss20b.tools.bench.result import BenchResult, speed
from gptoss20b.tools.bench.scenarios import Name

RESULTS = "results.json"
Timed = Literal["step_seconds", "step_without_optimizer_seconds"]
# What the same command would only find again; the rest it tries again.
_SETTLED = ("measured", "refused", "out of memory")


class ResultsError(ValueError):
    """A results file that cannot be read; says which and why."""


class Comparison(Record):
    """Turns on the same tokens, weights, code and settings, in the order in which they were taken.

    `identity` is `identity.identity`.
    """

    scenario: Name
    sequences: int
    warmup: int
    steps: int
    identity: dict[str, str]
    trials: list[Trial]

    def trial(self, baseline: str, number: int) -> Trial | None:
        """A baseline's trial, if it has had it."""
        return next((t for t in self.trials if (t.baseline, t.number) == (baseline, number)), None)

    def settled(self, baseline: str, number: int) -> bool:
        """Whether there is nothing more to learn from the trial; not if it failed or its software was missing."""
        trial = self.trial(baseline, number)
        return trial is not None and trial.status in _SETTLED

    def with_trial(self, trial: Trial) -> Comparison:
        """This and a further trial, in the place of an earlier try of it."""
        others = [t for t in self.trials if (t.baseline, t.number) != (trial.baseline, trial.number)]
        return self.model_copy(update={"trials": [*others, trial]})

    def differences(self, other: Comparison) -> list[str]:
        """What the other comparison has that this has not, trials aside: name, this one's, the other's."""
        mine, theirs = (
            {
                name: str(value)
                for name, value in (each.model_dump(exclude={"trials", "identity"}) | each.identity).items()
            }
            for each in (self, other)
        )
        return [
            f"{name} {mine.get(name, 'none')} and not {theirs.get(name, 'none')}"
            for name in mine | theirs
            if mine.get(name) != theirs.get(name)
        ]

    def ours(self, variant: str) -> Trial | None:
        """Our first trial with an architecture."""
        mine = (name for name, each in BASELINES.items() if each.ours and each.variant == variant)
        return self.trial(next(mine), 1)

    def seconds(self, baseline: str, timed: Timed = "step_seconds") -> float | None:
        """Median seconds of a step, the mean over the baseline's trials; None without any."""
        medians = [
            spread.median
            for t in self.trials
            if t.baseline == baseline and t.result and (spread := getattr(t.result, timed))
        ]
        return fmean(medians) if medians else None

    def times_ours(self, baseline: str, timed: Timed = "step_seconds") -> float | None:
        """How many times as long as ours, of the same architecture, a baseline's step takes."""
        ours = self.ours(BASELINES[baseline].variant)
        own, reference = self.seconds(baseline, timed), ours and self.seconds(ours.baseline, timed)
        return own / reference if own and reference else None

    def mfu(self, baseline: str, timed: Timed = "step_seconds") -> float | None:
        """Fraction of the device's peak at `seconds`, so of the same trials as the ratios; None if one is not known."""
        seconds = self.seconds(baseline, timed)
        result = next((t.result for t in self.trials if t.baseline == baseline and t.result), None)
        if seconds is None or result is None or result.peak_tflops is None:
            return None
        tokens = result.sequences_per_step * result.sequence_length
        return speed(seconds, tokens, result.flops_per_token)[1] / result.peak_tflops

    def best_peer(self) -> str | None:
        """The peer that is fastest beside ours in their first trials, so that a second trial changes nothing here."""
        first = self.model_copy(update={"trials": [trial for trial in self.trials if trial.number == 1]})
        ratios = {name: first.times_ours(name) for name, each in BASELINES.items() if not each.ours}
        known = {name: ratio for name, ratio in ratios.items() if ratio}
        return min(known, key=lambda name: known[name]) if known else None

    def some_result(self) -> BenchResult | None:
        """Any result, for what is the same in all."""
        return next((trial.result for trial in self.trials if trial.result), None)


def write(folder: Path, comparison: Comparison) -> None:
    """Replace the folder's results."""
    atomic_write(folder / RESULTS, comparison.model_dump_json(indent=2) + "\n")


def read(folder: Path) -> Comparison:
    """The folder's results.

    Raises:
        ResultsError: there are none, or they are not whole; names the file.
    """
    path = folder / RESULTS
    try:
        return Comparison.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ResultsError(f"{path}: not results of this version of compare: {place}: {first['msg']}") from error
