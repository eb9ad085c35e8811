"""Results of a comparison and the ratios that follow from them."""

from __future__ import annotations

from statistics import fmean

from gptoss20b.tools.bench.result import BenchResult

from .baselines import BASELINES
from .records import Settings, Trial

# Statuses that the same command would only find again. Others are tried again.
_FINAL = ("measured", "refused", "out of memory")


class Comparison(Settings):
    """Trials on the same tokens, weights, code and settings, in the order in which they ran.

    `identity` is from `compare.identity`.
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
