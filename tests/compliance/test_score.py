"""Scores, windows and spreads against the official summarizer, the standard library and brute force."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mlperf_logging.result_summarizer.result_summarizer import _compute_olympic_average

from compliance.findings import Spread
from compliance.score import median_window, normalization_factor, olympic_mean, spread, variance

MINUTES = st.floats(1.0, 1e4, allow_nan=False)
# Few distinct values, so that windows tie.
COARSE = st.sampled_from([10.0, 11.0, 12.0, 20.0, math.inf])


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([3.0, 1.0, 2.0], 2.0),
        ([5.0, 1.0, 1.0, 9.0, 9.0], 5.0),
        ([233_472] * 7 + [221_184, 245_760, 245_760], 235_008.0),
        ([1.0, math.inf, 2.0, 3.0], 2.5),  # one run may not converge
        ([1.0, math.inf, 2.0, math.inf], None),
        ([math.inf] * 10, None),
        ([1e308] * 10, None),  # the sum overflows
    ],
)
def test_olympic_mean_drops_one_at_each_end(values: list[float], mean: float | None) -> None:
    given_values = list(values)
    assert olympic_mean(values) == mean
    assert values == given_values


@given(st.lists(MINUTES, min_size=10, max_size=10))
def test_olympic_mean_is_the_official_one(values: list[float]) -> None:
    # The official function takes the converged runs, and the number of the others.
    assert olympic_mean(values) == pytest.approx(_compute_olympic_average(list(values), 0, 1), rel=1e-15)
    with_one = [*values[:9], math.inf]
    assert olympic_mean(with_one) == pytest.approx(_compute_olympic_average(values[:9], 1, 1), rel=1e-15)


@pytest.mark.parametrize(
    ("starts", "minutes", "runs", "window"),
    [
        # Ten runs are one window, in order of start.
        ([5, 3, 9, 1, 0, 2, 8, 4, 7, 6], [1.0] * 10, 10, (4, 3, 5, 1, 7, 0, 9, 8, 6, 2)),
        # Middle values of the three windows: 2, 5, 3. Then 2, 4, 4, where the earlier of the equal windows is taken.
        (range(5), [1.0, 2.0, 5.0, 9.0, 3.0], 3, (1, 2, 3)),
        (range(5), [1.0, 2.0, 4.0, 9.0, 3.0], 3, (1, 2, 3)),
        # Of two windows the slower one; the earlier one if both are equal.
        (range(11), [1.0] + [5.0] * 9 + [9.0], 10, tuple(range(10))),
        (range(11), [4.0, 4.0] + [5.0] * 8 + [9.0], 10, tuple(range(1, 11))),
        (range(11), [9.0, 9.0] + [5.0] * 8 + [4.0], 10, tuple(range(10))),
        # A window with two runs that did not converge is the slowest. Means 1, 1 and infinite; infinite and 1.
        (range(12), [1.0] * 10 + [math.inf, math.inf], 10, tuple(range(10))),
        (range(11), [math.inf, math.inf] + [1.0] * 9, 10, tuple(range(10))),
        # Equal starts keep their order.
        ([1.0, 0.0, 0.0], [1.0, 2.0, 3.0], 3, (1, 2, 0)),
    ],
)
def test_the_median_window(starts: Sequence[float], minutes: list[float], runs: int, window: tuple[int, ...]) -> None:
    assert median_window(starts, minutes, runs) == window


@given(
    st.lists(st.tuples(st.integers(0, 5), COARSE), min_size=3, max_size=12),
    st.integers(3, 6),
)
def test_median_window_against_brute_force(pairs: list[tuple[int, float]], runs: int) -> None:
    assume(len(pairs) >= runs)
    order = [index for _, index in sorted((start, index) for index, (start, _) in enumerate(pairs))]

    def mean(first: int) -> float:
        middle = sorted(pairs[index][1] for index in order[first : first + runs])[1 : runs - 1]
        return statistics.fmean(middle) if math.inf not in middle else math.inf

    firsts = range(len(pairs) - runs + 1)
    # The higher of the two middle means, and the earliest window that has it.
    median = statistics.median_high([mean(first) for first in firsts])
    chosen = next(first for first in firsts if mean(first) == median)
    window = median_window([float(start) for start, _ in pairs], [minutes for _, minutes in pairs], runs)
    assert window == tuple(order[chosen : chosen + runs])


@given(st.lists(MINUTES, min_size=2, max_size=20))
def test_spread_is_that_of_the_standard_library(values: list[float]) -> None:
    result = spread(values, quantum=2.0)
    assert result is not None
    assert result.runs == len(values)
    assert result.mean == pytest.approx(statistics.fmean(values), rel=1e-13)
    assert result.sd == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-9)
    assert result.cv_percent == pytest.approx(100 * result.sd / result.mean, rel=1e-13)
    assert (result.minimum, result.maximum) == (min(values), max(values))
    assert result.quantum_percent == pytest.approx(200 / result.mean, rel=1e-13)


@pytest.mark.parametrize("values", [[], [5.0], [0.0, 0.0], [-3.0, 1.0], [1e308, 1e308]])
def test_no_spread(values: list[float]) -> None:
    assert spread(values) is None


def test_the_spread_of_equal_values_is_zero() -> None:
    assert spread([5.0, 5.0]) == Spread(2, 5.0, 0.0, 0.0, 5.0, 5.0, None, None)


def test_variance_of_the_reference() -> None:
    # The reference's 20 runs at GBS 16: 194,765 +- 8,243, CV 4.2 %, steps of 6.3 %.
    samples = [184_320.0] * 6 + [196_608.0] * 11 + [208_896.0] * 3
    # Runs that did not converge are not counted.
    result = variance([*samples, math.inf], [10.0, math.inf, 12.0], 12_288, 16, 5.0)
    assert result.samples is not None
    assert result.minutes is not None
    assert round(result.samples.mean) == 194_765
    assert round(result.samples.sd) == 8_243
    assert round(result.samples.cv_percent, 1) == 4.2
    assert (result.samples.quantum, round(result.samples.quantum_percent or 0, 1)) == (12_288, 6.3)
    assert (result.minutes.runs, result.minutes.mean, result.minutes.quantum) == (2, 11.0, None)
    assert result.limit_percent == 5.0


def test_the_definition_names_limit_and_interval() -> None:
    text = variance([184_320.0, 196_608.0], [], 12_288, 16, 2.5).definition
    for fact in ("ddof 1", "2.5 %", "CEIL(12288/GBS) x GBS = 12,288", "6.5 %"):
        assert fact in text


@pytest.mark.parametrize(("interval", "gbs"), [(12, 2), (12_300, 16), (12_288, 40), (12_288, None)])
def test_another_interval_is_not_the_closed_divisions(interval: int, gbs: int | None) -> None:
    result = variance([100.0 * interval, 120.0 * interval], [1.0, 2.0], interval, gbs, 5.0)
    assert result.samples is not None
    assert (result.samples.quantum, round(result.samples.quantum_percent or 0, 3)) == (interval, 0.909)
    assert f" {interval:,}, " in result.definition and "0.9 % of their mean" in result.definition
    assert "CEIL" not in result.definition


@pytest.mark.parametrize("gbs", [None, 16])
def test_an_unknown_interval_is_not_stated(gbs: int | None) -> None:
    result = variance([100.0, 120.0], [1.0, 2.0], None, gbs, 5.0)
    assert result.samples is not None
    assert (result.samples.quantum, result.samples.quantum_percent) == (None, None)
    assert "steps" not in result.definition


def test_the_normalization_factor_is_at_least_one() -> None:
    for reference, submission in itertools.product((100.0, 150.0), repeat=2):
        assert normalization_factor(reference, submission) == (
            1.5 if (reference, submission) == (150.0, 100.0) else 1.0
        )
