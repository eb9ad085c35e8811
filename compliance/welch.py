"""Two sets of numbers side by side: mean, spread, Welch's t test, and what that says in one sentence.

Pure functions of plain numbers. scipy is imported where it is used, and only its t distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from .benchmark import RUNS
from .findings import Spread
from .score import olympic_mean, spread

CONFIDENCE = 0.95
POWER = 0.8


class Outcome(StrEnum):
    """What the test says of B. UNTESTED: there is no spread, or too little to test."""

    FEWER = "fewer"
    MORE = "more"
    NOT_TOLD = "not_told"
    UNTESTED = "untested"


@dataclass(frozen=True, slots=True)
class Welch:
    """Welch's test of B - A, two-sided.

    Attributes:
        t: the statistic.
        df: degrees of freedom by Welch and Satterthwaite.
        p: probability of such a difference or a larger one, were the true means equal.
        low, high: confidence interval of the difference, in the unit of the values.
        low_percent, high_percent: the same in percent of A's mean, which is taken as exact.
        detectable: the true difference that ten runs of each, with these spreads, would show four times in five.
        detectable_percent: the same in percent of A's mean.
    """

    t: float
    df: float
    p: float
    low: float
    high: float
    low_percent: float
    high_percent: float
    detectable: float
    detectable_percent: float


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of both sets.

    Attributes:
        a, b: mean and spread of the runs that have it; None with fewer than two.
        olympic_a, olympic_b: mean without the least and the most, where the set is ten runs; None elsewhere.
        difference, difference_percent: mean of B - mean of A; the percentage is of A's.
        test: None without any spread.
        outcome: what the test says.
        verdict: the same as a sentence.
    """

    a: Spread | None
    b: Spread | None
    olympic_a: float | None
    olympic_b: float | None
    difference: float | None
    difference_percent: float | None
    test: Welch | None
    outcome: Outcome
    verdict: str


def measure(
    noun: str,
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = CONFIDENCE,
    steps: tuple[float | None, float | None] = (None, None),
) -> Measure:
    """Compares the values of two sets.

    Args:
        noun: what they count, "samples" or "minutes".
        a: one value above 0 for each run; math.inf for a run without one, which is left out.
        b: likewise.
        confidence: of the interval, between 0 and 1; a p-value below 1 - confidence is a difference.
        steps: the least that values of A and of B can move by, None if there is none.
    """
    finite_a, finite_b = ([value for value in values if math.isfinite(value)] for values in (a, b))
    olympic_a, olympic_b = (olympic_mean(values) if len(values) == RUNS else None for values in (a, b))
    spread_a, spread_b = _spread(finite_a, steps[0]), _spread(finite_b, steps[1])
    if spread_a is None or spread_b is None:
        verdict = (
            f"Not compared: runs with {noun} are {len(finite_a)} in A and {len(finite_b)} in B; each needs 2 or more."
        )
        return Measure(spread_a, spread_b, olympic_a, olympic_b, None, None, None, Outcome.UNTESTED, verdict)
    difference = spread_b.mean - spread_a.mean
    percent = 100 * difference / spread_a.mean
    test = welch(spread_a, spread_b, confidence)
    outcome = Outcome.UNTESTED
    if test is not None and test.p < 1 - confidence:
        outcome = Outcome.FEWER if difference < 0 else Outcome.MORE
    elif test is not None:
        outcome = Outcome.NOT_TOLD
    if test is None:
        verdict = _without_test(noun, spread_a.mean, spread_b.mean)
    else:
        verdict = _with_test(noun, outcome, percent, test, confidence)
    return Measure(spread_a, spread_b, olympic_a, olympic_b, difference, percent, test, outcome, verdict)


def welch(a: Spread, b: Spread, confidence: float = CONFIDENCE) -> Welch | None:
    """Welch's t test of two means whose variances may differ (B. L. Welch, Biometrika 34, 1947).

    t = (mean_B - mean_A) / se, with se^2 = sd_A^2 / n_A + sd_B^2 / n_B; the interval reaches t(df) x se to either side.

    The detectable difference is the one that this test at ten runs each finds with a power of 0.8:
    (t(0.5 + confidence / 2) + t(0.8)) x se, both quantiles and se those of ten runs. Shifting t like this, instead of
    taking the noncentral t distribution, leaves the power within 0.01 of 0.8 up to a confidence of 99 %.

    Args:
        a: two or more values, of a mean above 0.
        b: likewise, in the same unit.
        confidence: of the interval, between 0 and 1.

    Returns:
        None if neither set has any spread: t is then undefined.
    """
    from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

    se, df = _error(a, b, a.runs, b.runs)
    if se == 0:
        return None
    difference = b.mean - a.mean
    t = difference / se
    tail = 0.5 + confidence / 2
    reach = float(stdtrit(df, tail)) * se
    se_of_ten, df_of_ten = _error(a, b, RUNS, RUNS)
    detectable = float(stdtrit(df_of_ten, tail) + stdtrit(df_of_ten, POWER)) * se_of_ten
    return Welch(
        t=t,
        df=df,
        p=float(2 * stdtr(df, -abs(t))),
        low=difference - reach,
        high=difference + reach,
        low_percent=100 * (difference - reach) / a.mean,
        high_percent=100 * (difference + reach) / a.mean,
        detectable=detectable,
        detectable_percent=100 * detectable / a.mean,
    )


def _error(a: Spread, b: Spread, runs_a: int, runs_b: int) -> tuple[float, float]:
    """Standard error of the difference, and its degrees of freedom (0 without spread), for so many runs."""
    of_a, of_b = a.sd / math.sqrt(runs_a), b.sd / math.sqrt(runs_b)
    se = math.hypot(of_a, of_b)
    if se == 0:
        return 0.0, 0.0
    # Shares of the variance: the fourth powers themselves could overflow, or vanish.
    return se, 1 / ((of_a / se) ** 4 / (runs_a - 1) + (of_b / se) ** 4 / (runs_b - 1))


def _spread(values: Sequence[float], step: float | None) -> Spread | None:
    """Mean and spread; of equal values exactly, where a sum in floating point leaves a trace of a deviation."""
    found = spread(values, step)
    if found is None or found.minimum < found.maximum:
        return found
    return replace(found, mean=found.minimum, sd=0.0, cv_percent=0.0)


def _with_test(noun: str, outcome: Outcome, percent: float, test: Welch, confidence: float) -> str:
    p = f"p = {test.p:.2g}" if test.p >= 1e-4 else "p < 0.0001"
    interval = f"{100 * confidence:g} % interval {in_percent(test.low_percent)} to {in_percent(test.high_percent)} %"
    if outcome is Outcome.NOT_TOLD:
        power = (
            f"{RUNS} runs each would show a difference of {in_percent(test.detectable_percent)} % four times in five"
        )
        return f"No difference in {noun} can be told: {p} ({interval}); with these spreads {power}."
    return f"B needs {in_percent(abs(percent))} % {outcome} {noun} than A ({interval}), {p}."


def _without_test(noun: str, a: float, b: float) -> str:
    told = "without any spread there is nothing to test against"
    if a == b:
        return f"Every run of A and of B needs {plain(a)} {noun}: no difference is seen, and {told}."
    change = f"{in_percent(100 * abs(b - a) / a)} % {'fewer' if b < a else 'more'}"
    return f"Every run of A needs {plain(a)} {noun} and every run of B {plain(b)}, {change}; {told}."


def in_percent(value: float) -> str:
    """A percentage as people read it.

    >>> in_percent(-8.04), in_percent(0.0432)
    ('-8.0', '0.043')
    """
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def plain(value: float) -> str:
    """A number of samples or minutes as people read it.

    >>> plain(196608.0), plain(359.97312)
    ('196,608', '359.973')
    """
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.3f}"
