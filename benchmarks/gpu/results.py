"""Results of a comparison and the ratios that follow from them, kept in `results.json`."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import ValidationError

from gptoss20b.durable import atomic_write
from gptoss20b.tools.bench.result import BenchResult, throughput

from .baselines import BASELINES
from .records import Settings, Trial

RESULTS = "results.json"
StepKind = Literal["step_seconds", "step_without_optimizer_seconds"]
# Statuses that the same command would only find again. Others are tried again.
_FINAL = ("measured", "refused", "out of memory")


class ResultsError(ValueError):
    """A results file that cannot be read. The message names the file."""


class Comparison(Settings):
    """Trials on the same tokens, weights, code and settings, in the order in which they ran.

    `identity` is from `identity.identity`.
    """

    identity: dict[str, str]
    trials: list[Trial]

    def trial(self, baseline: str, number: int) -> Trial | None:
        """Return a baseline's trial, if there is one."""
        return next((t for t in self.trials if (t.baseline, t.number) == (baseline, number)), None)

    def is_final(self, baseline: str, number: int) -> bool:
        """Return whether a trial needs no retry. Failures and missing software may be fixed since."""
        trial = self.trial(baseline, number)
        return trial is not None and trial.status in _FINAL

    def with_trial(self, trial: Trial) -> Comparison:
        """Return a copy with a trial appended, in place of an earlier attempt at it."""
        others = [t for t in self.trials if (t.baseline, t.number) != (trial.baseline, trial.number)]
        return self.model_copy(update={"trials": [*others, trial]})

    def differences(self, other: Comparison) -> list[str]:
        """Describe every setting and identity that differs from another comparison's."""
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

    def our_trial(self, variant: str) -> Trial | None:
        """Return our first trial of an architecture."""
        mine = (name for name, each in BASELINES.items() if each.is_ours and each.variant == variant)
        return self.trial(next(mine), 1)

    def seconds(self, baseline: str, kind: StepKind = "step_seconds") -> float | None:
        """Return the mean over a baseline's trials of the median seconds of a step; None without any."""
        medians = [
            spread.median
            for t in self.trials
            if t.baseline == baseline and t.result and (spread := getattr(t.result, kind))
        ]
        return fmean(medians) if medians else None

    def times_ours(self, baseline: str) -> float | None:
        """Return the time of a baseline's step over that of ours, of the same architecture."""
        ours = self.our_trial(BASELINES[baseline].variant)
        seconds, reference = self.seconds(baseline), ours and self.seconds(ours.baseline)
        return seconds / reference if seconds and reference else None

    def mfu(self, baseline: str, kind: StepKind = "step_seconds") -> float | None:
        """Return the fraction of the device's peak at `seconds`, over the same trials; None if unknown."""
        seconds = self.seconds(baseline, kind)
        result = next((t.result for t in self.trials if t.baseline == baseline and t.result), None)
        if seconds is None or result is None or result.peak_tflops is None:
            return None
        tokens = result.sequences_per_step * result.sequence_length
        return throughput(seconds, tokens, result.flops_per_token)[1] / result.peak_tflops

    def best_baseline(self) -> str | None:
        """Return the baseline that is fastest relative to ours, by first trials: second ones must not change it."""
        first = self.model_copy(update={"trials": [trial for trial in self.trials if trial.number == 1]})
        ratios = {name: first.times_ours(name) for name, each in BASELINES.items() if not each.is_ours}
        known = {name: ratio for name, ratio in ratios.items() if ratio}
        return min(known, key=lambda name: known[name]) if known else None

    def any_result(self) -> BenchResult | None:
        """Return some result, for the fields that are the same in all."""
        return next((trial.result for trial in self.trials if trial.result), None)


def write_results(folder: Path, comparison: Comparison) -> None:
    """Replace the folder's results, atomically."""
    atomic_write(folder / RESULTS, comparison.model_dump_json(indent=2) + "\n")


def read_results(folder: Path) -> Comparison:
    """Return the folder's results.

    Raises:
        ResultsError: no results, or incomplete ones.
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
