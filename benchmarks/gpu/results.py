"""Request and outcome of a trial, which `compare` and `trial` exchange as JSON files, and results of a comparison."""

from __future__ import annotations

from statistics import fmean
from typing import Literal

from gptoss20b.tools.bench.result import BenchResult, Outcome, Record
from gptoss20b.tools.bench.scenarios import ScenarioName

from .baselines import BASELINES

Status = Literal["measured", "refused", "out of memory", "not available", "failed"]


class Settings(Record):
    """Settings that all trials of a comparison share."""

    scenario: ScenarioName
    sequences: int
    warmup: int
    steps: int


class Request(Settings):
    """One trial to run.

    Attributes:
        baseline: key of BASELINES.
        limit: `bench.measure.Timing.limit`.
        expected: our first step, which a baseline must reproduce before it is timed; None for ours.
    """

    baseline: str
    micro_batch_size: int
    limit: float
    expected: Outcome | None


class Trial(Record):
    """Outcome of one trial. ``number`` counts the baseline's trials from 1; ``reason`` explains a missing result."""

    baseline: str
    number: int
    status: Status
    reason: str = ""
    result: BenchResult | None = None


class Comparison(Settings):
    """Trials on the same tokens, weights, code and settings, in the order in which they ran.

    ``versions`` are of the packages, by name; None if one is not installed.
    """

    versions: dict[str, str | None]
    trials: list[Trial]

    def trial(self, baseline: str, number: int) -> Trial | None:
        """Return a baseline's trial, if there is one."""
        return next((t for t in self.trials if (t.baseline, t.number) == (baseline, number)), None)

    def our_trial(self, variant: str) -> Trial | None:
        """Return our first trial of an architecture."""
        mine = (name for name, each in BASELINES.items() if each.is_ours and each.variant == variant)
        return self.trial(next(mine), 1)

    def seconds(self, baseline: str) -> float | None:
        """Return the mean over a baseline's trials of the median seconds of a step; None without any."""
        results = [t.result for t in self.trials if t.baseline == baseline and t.result]
        medians = [result.step_seconds.median for result in results if result.step_seconds]
        return fmean(medians) if medians else None

    def times_ours(self, baseline: str) -> float | None:
        """Return the time of a baseline's step over that of ours, of the same architecture."""
        ours = self.our_trial(BASELINES[baseline].variant)
        seconds, reference = self.seconds(baseline), ours and self.seconds(ours.baseline)
        return seconds / reference if seconds and reference else None

    def best_baseline(self) -> str | None:
        """Return the baseline that is fastest relative to ours, by first trials: second ones must not change it."""
        first = self.model_copy(update={"trials": [trial for trial in self.trials if trial.number == 1]})
        ratios = {name: first.times_ours(name) for name, each in BASELINES.items() if not each.is_ours}
        known = {name: ratio for name, ratio in ratios.items() if ratio}
        return min(known, key=lambda name: known[name]) if known else None

    def any_result(self) -> BenchResult | None:
        """Return some result, for the fields that are the same in all."""
        return next((trial.result for trial in self.trials if trial.result), None)
