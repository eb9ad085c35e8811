"""Welch's t test against scipy's, its power, and the verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from compliance.findings import Spread
from compliance.score import spread
from compliance.welch import MetricComparison, Outcome, WelchTest, compare_metric, welch_test

INTERVAL = 12_288
SAMPLES = st.lists(st.integers(1, 60).map(lambda count: float(count * INTERVAL)), min_size=2, max_size=14)
MINUTES = st.lists(st.integers(60_000, 60_000_000).map(lambda ms: ms / 60_000), min_size=2, max_size=14)


def welch_of(comparison: MetricComparison) -> WelchTest:
    assert comparison.test is not None
    return comparison.test


def spread_of(values: Sequence[float]) -> Spread:
    result = spread(values)
    assert result is not None
    return result


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, of a set without spread
@settings(max_examples=200, deadline=None)
@given(st.one_of(st.tuples(SAMPLES, SAMPLES), st.tuples(MINUTES, MINUTES)), st.floats(0.5, 0.9999))
def test_the_test_is_scipys(sets: tuple[list[float], list[float]], confidence: float) -> None:
    a, b = sets
    comparison = compare_metric("samples", a, b, confidence)
    if len({*a}) == len({*b}) == 1:
        assert comparison.test is None
        return
    ours, theirs = welch_of(comparison), stats.ttest_ind(b, a, equal_var=False)
    low, high = theirs.confidence_interval(confidence)
    scale = max(abs(low), abs(high))
    assert ours.t == pytest.approx(theirs.statistic, rel=1e-9, abs=1e-9)
    assert ours.df == pytest.approx(theirs.df, rel=1e-9)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9 * scale)
    mean = statistics.fmean(a)
    percents = ours.low_percent, ours.high_percent
    assert percents == pytest.approx((100 * low / mean, 100 * high / mean), rel=1e-9, abs=1e-7 * scale / mean)
    assert comparison.difference == pytest.approx(statistics.fmean(b) - mean, rel=1e-9, abs=1e-6)
    assert comparison.difference_percent == pytest.approx(100 * (statistics.fmean(b) / mean - 1), abs=1e-9)
    # Interval, p-value and outcome agree.
    significant = comparison.outcome in (Outcome.FEWER, Outcome.MORE)
    assert significant == (ours.p < 1 - confidence)
    if abs(ours.p - (1 - confidence)) > 1e-9:
        assert significant == (not ours.low <= 0 <= ours.high)


def test_swapped_sets_swap_the_sign() -> None:
    a, b = [10.0, 12.0, 11.0], [14.0, 15.0, 17.0, 15.5]
    one, other = welch_of(compare_metric("minutes", a, b)), welch_of(compare_metric("minutes", b, a))
    assert (one.t, one.df, one.p, one.low) == pytest.approx((-other.t, other.df, other.p, -other.high))
    assert compare_metric("minutes", a, b).outcome is Outcome.MORE
    assert compare_metric("minutes", b, a).outcome is Outcome.FEWER


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_detectable_difference_has_a_power_of_four_in_five(confidence: float) -> None:
    """Compare with the noncentral t distribution, which is exact for equal spreads of ten runs each."""
    values = spread_of([90.0, 100.0, 110.0])  # sd 10; the number of runs must not matter
    found = welch_test(values, values, confidence)
    assert found is not None
    shift = found.detectable / (values.sd * math.sqrt(2 / 10))
    critical = stats.t.ppf(0.5 + confidence / 2, 18)
    power = stats.nct.sf(critical, 18, shift) + stats.nct.cdf(-critical, 18, shift)
    assert power == pytest.approx(0.8, abs=0.01)
    assert found.detectable_percent == pytest.approx(found.detectable)  # the mean is 100
    if confidence == 0.95:
        assert found.detectable == pytest.approx(13.25, abs=0.01)


def test_the_detectable_difference_of_unequal_spreads_by_simulation() -> None:
    a, b = spread_of([100 - 8.0, 100.0, 100 + 8.0]), spread_of([200 - 3.0, 200.0, 200 + 3.0])
    found = welch_test(a, b)
    assert found is not None
    random = np.random.default_rng(20)
    simulated = stats.ttest_ind(
        random.normal(0, 8, (20_000, 10)), random.normal(found.detectable, 3, (20_000, 10)), axis=1, equal_var=False
    )
    assert float((simulated.pvalue < 0.05).mean()) == pytest.approx(0.8, abs=0.015)
    assert found.detectable_percent == pytest.approx(found.detectable)  # of A's mean, not of B's


def test_huge_and_tiny_spreads_do_not_overflow() -> None:
    for scale in (1e-200, 1e200):
        a, b = (Spread(10, 2 * scale, sd, 1.0, scale, 3 * scale, None, None) for sd in (scale, scale / 2))
        found = welch_test(a, b)
        assert found is not None
        assert (found.df, found.p) == pytest.approx((1 / (0.8**2 / 9 + 0.2**2 / 9), 1.0))


def test_equal_values_in_both_sets_leave_nothing_to_test() -> None:
    third = 359.1  # seven of which do not sum to seven times it
    same = compare_metric("minutes", [third] * 7, [third] * 6)
    assert (same.test, same.outcome, same.difference) == (None, Outcome.UNTESTED, 0.0)
    assert same.a is not None and (same.a.mean, same.a.sd, same.a.cv_percent) == (third, 0.0, 0.0)
    assert "359.100 minutes" in same.verdict
    for b, change in ((184_320.0, "6.2 % fewer"), (221_184.0, "12.5 % more")):
        other = compare_metric("samples", [196_608.0] * 3, [b] * 2)
        assert (other.test, other.outcome, other.difference) == (None, Outcome.UNTESTED, b - 196_608)
        assert all(fact in other.verdict for fact in ("196,608 samples", f"{b:,.0f}", change))


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_one_set_without_spread_is_tested() -> None:
    found = welch_of(compare_metric("samples", [3.0, 3.0, 3.0, 3.0], [1.0, 2.0, 3.0]))
    theirs = stats.ttest_ind([1.0, 2.0, 3.0], [3.0] * 4, equal_var=False)
    assert (found.t, found.df, found.p) == pytest.approx((theirs.statistic, 2.0, theirs.pvalue), rel=1e-9)


def test_verdicts_name_the_change_its_interval_and_p() -> None:
    faster = compare_metric("samples", [100.0, 101.0, 99.0, 100.0], [90.0, 91.0, 92.0, 91.0])
    test = welch_of(faster)
    assert faster.outcome is Outcome.FEWER
    interval = f"95 % interval {test.low:.1f} to {test.high:.1f} %"
    assert all(fact in faster.verdict for fact in ("9.0 % fewer samples", interval, "p < 0.0001"))
    a, b = [100.0, 101.0, 99.0], [103.0, 104.0, 102.0]
    slower = compare_metric("minutes", a, b, 0.9)
    p = welch_of(slower).p
    assert slower.outcome is Outcome.MORE and 0.02 < p < 0.03
    assert all(fact in slower.verdict for fact in ("3.0 % more minutes", "90 % interval 1.3 to 4.7 %", f"p = {p:.2g}"))
    same = compare_metric("minutes", a, b, 0.99)
    assert same.outcome is Outcome.INCONCLUSIVE
    detectable = f"10 runs each would show a difference of {welch_of(same).detectable_percent:.1f} %"
    assert all(fact in same.verdict for fact in (f"p = {p:.2g}", "99 % interval -0.76 to 6.8 %", detectable))


def test_too_few_values_are_not_compared() -> None:
    found = compare_metric("minutes", [math.inf, 3.0], [4.0, 5.0, math.inf])
    assert (found.a, found.test, found.difference, found.outcome) == (None, None, None, Outcome.UNTESTED)
    assert found.b is not None and found.b.runs == 2
    assert "minutes are 1 in A and 2 in B" in found.verdict
