"""Welch's t test on two sets of numbers, and its verdict as a sentence.

Pure functions of plain numbers. Only the t distribution of scipy is used, and scipy is imported on the first test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from annotated_types import Interval

from .benchmark import RUNS
from .findings import Spread
from .score import olympic_mean, spread

CONFIDENCE = 0.95
POWER = 0.8


class Outcome(StrEnum):
    """Outcome of the test: B is lower, B is higher, or the difference may be noise. UNTESTED: no test was possible."""

    FEWER = "fewer"
    MORE = "more"
    INCONCLUSIVE = "not_told"
    UNTESTED = "untested"


@dataclass(frozen=True, slots=True)
class WelchTest:
    """Welch's two-sided test of B - A.

    Attributes:
        df: degrees of freedom by Welch and Satterthwaite.
        p: probability of a difference at least as large, were the true means equal.
        low, high: confidence interval of the difference, in the unit of the values.
        low_percent, high_percent: the same in percent of A's mean, which is taken as exact.
        detectable: true difference that ten runs of each, with these spreads, would detect with a power of 0.8.
    """

    t: float
    df: float
    p: Annotated[float, Interval(ge=0, le=1)]
    low: float
    high: float
    low_percent: float
    high_percent: float
    detectable: float
    detectable_percent: float


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric of both sets.

    Attributes:
        a, b: mean and spread over the runs that have a value; None with fewer than two.
        olympic_a, olympic_b: olympic mean, for a set of ten runs only.
        difference, difference_percent: mean of B - mean of A; the percentage is of A's mean.
        test: Welch's test; None if neither set has a spread, or one has fewer than two values.
        outcome: what B needs, by the test. not_told: the difference may be noise. untested: there is no test.
    """

    a: Spread | None
    b: Spread | None
    olympic_a: float | None
    olympic_b: float | None
    difference: float | None
    difference_percent: float | None
    test: WelchTest | None
    outcome: Outcome
    verdict: str


def compare_metric(
    noun: str,
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = CONFIDENCE,
    quanta: tuple[float | None, float | None] = (None, None),
) -> MetricComparison:
    """Compare one metric of two sets, in the unit ``noun`` ("samples" or "minutes").

    The values are above 0, one per run; ``math.inf``, which is excluded, for a run without a value. ``quanta`` are the
    resolutions of A and B. A p-value below 1 - confidence is a difference.
    """
    finite_a, finite_b = ([value for value in values if math.isfinite(value)] for values in (a, b))
    olympic_a, olympic_b = (olympic_mean(values) if len(values) == RUNS else None for values in (a, b))
    spread_a, spread_b = spread(finite_a, quanta[0]), spread(finite_b, quanta[1])
    if spread_a is None or spread_b is None:
        verdict = (
            f"Not compared: runs with {noun} are {len(finite_a)} in A and {len(finite_b)} in B; each needs 2 or more."
        )
        return MetricComparison(spread_a, spread_b, olympic_a, olympic_b, None, None, None, Outcome.UNTESTED, verdict)
    difference = spread_b.mean - spread_a.mean
    percent = 100 * difference / spread_a.mean
    test = welch_test(spread_a, spread_b, confidence)
    if test is None:
        outcome, verdict = Outcome.UNTESTED, _untested_verdict(noun, spread_a.mean, spread_b.mean)
    else:
        significant = Outcome.FEWER if difference < 0 else Outcome.MORE
        outcome = significant if test.p < 1 - confidence else Outcome.INCONCLUSIVE
        verdict = _tested_verdict(noun, outcome, percent, test, confidence)
    return MetricComparison(spread_a, spread_b, olympic_a, olympic_b, difference, percent, test, outcome, verdict)


def welch_test(a: Spread, b: Spread, confidence: float = CONFIDENCE) -> WelchTest | None:
    """Run Welch's t test of two means whose variances may differ (B. L. Welch, Biometrika 34, 1947).

    t = (mean_B - mean_A) / se, with se^2 = sd_A^2 / n_A + sd_B^2 / n_B. The interval is the difference +- t(df) x se.

    The detectable difference is the one that this test at ten runs each finds with a power of 0.8:
    (t(0.5 + confidence / 2) + t(0.8)) x se, with quantiles and se for ten runs. This shifts the central t distribution
    instead of using the noncentral one. The power stays within 0.01 of 0.8 up to a confidence of 99 %.

    Returns:
        None if neither set has a spread: t is undefined.
    """
    from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

    se, df = _standard_error(a, b, a.runs, b.runs)
    if se == 0:
        return None
    difference = b.mean - a.mean
    t = difference / se
    tail = 0.5 + confidence / 2
    reach = float(stdtrit(df, tail)) * se
    se_of_ten, df_of_ten = _standard_error(a, b, RUNS, RUNS)
    detectable = float(stdtrit(df_of_ten, tail) + stdtrit(df_of_ten, POWER)) * se_of_ten
    return WelchTest(
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


def _standard_error(a: Spread, b: Spread, runs_a: int, runs_b: int) -> tuple[float, float]:
    """Return the standard error of the difference at these numbers of runs, and its degrees of freedom.

    Both are 0 without a spread.
    """
    se_a, se_b = a.sd / math.sqrt(runs_a), b.sd / math.sqrt(runs_b)
    se = math.hypot(se_a, se_b)
    if se == 0:
        return 0.0, 0.0
    # Welch-Satterthwaite with fractions of the variance: fourth powers of the sd itself may overflow or underflow.
    return se, 1 / ((se_a / se) ** 4 / (runs_a - 1) + (se_b / se) ** 4 / (runs_b - 1))


def _tested_verdict(noun: str, outcome: Outcome, percent: float, test: WelchTest, confidence: float) -> str:
    p = f"p = {test.p:.2g}" if test.p >= 1e-4 else "p < 0.0001"
    low, high = format_percent(test.low_percent), format_percent(test.high_percent)
    interval = f"{100 * confidence:g} % interval {low} to {high} %"
    if outcome is Outcome.INCONCLUSIVE:
        detectable = f"a difference of {format_percent(test.detectable_percent)} % four times in five"
        power = f"with these spreads {RUNS} runs each would show {detectable}"
        return f"No difference in {noun} can be told: {p} ({interval}); {power}."
    return f"B needs {format_percent(abs(percent))} % {outcome} {noun} than A ({interval}), {p}."


def _untested_verdict(noun: str, a: float, b: float) -> str:
    reason = "without any spread there is nothing to test against"
    if a == b:
        return f"Every run of A and of B needs {format_number(a)} {noun}: no difference is seen, and {reason}."
    change = f"{format_percent(100 * abs(b - a) / a)} % {'fewer' if b < a else 'more'}"
    needs = f"Every run of A needs {format_number(a)} {noun} and every run of B {format_number(b)}, {change}"
    return f"{needs}; {reason}."


def format_percent(value: float) -> str:
    """Format a percentage with two significant digits or one decimal.

    >>> format_percent(-8.04), format_percent(0.0432)
    ('-8.0', '0.043')
    """
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def format_number(value: float) -> str:
    """Format a number of samples or minutes with separated thousands.

    >>> format_number(196608.0), format_number(359.97312)
    ('196,608', '359.973')
    """
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.3f}"
