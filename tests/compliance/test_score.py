"""Scores, windows and spreads against the official summarizer, the standard library and brute force."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mlperf_logging.result_summarizer.result_summarizer import _compute_olympic_average

from compliance.findings import Spread
from compliance.score import median_window, normalization_factor, olympic_mean, spread, variance

MINUTES = st.floats(1.0, 1e4, allow_nan=False)
# Few distinct values, so that windows tie.
COARSE = st.sampled_from([10.0, 11.0, 12.0, 20.0, math.inf])


def test_olympic_mean_drops_one_at_each_end() -> None:
    assert olympic_mean([3.0, 1.0, 2.0]) == 2.0
    assert olympic_mean([5.0, 1.0, 1.0, 9.0, 9.0]) == 5.0
    assert olympic_mean([233_472] * 7 + [221_184, 245_760, 245_760]) == 235_008.0


def test_olympic_mean_leaves_its_argument_alone() -> None:
    values = [3.0, 1.0, 2.0, 5.0]
    olympic_mean(values)
    assert values == [3.0, 1.0, 2.0, 5.0]


def test_one_run_may_not_converge_two_may_not() -> None:
    assert olympic_mean([1.0, math.inf, 2.0, 3.0]) == 2.5
    assert olympic_mean([1.0, math.inf, 2.0, math.inf]) is None
    assert olympic_mean([math.inf] * 10) is None


def test_olympic_mean_refuses() -> None:
    with pytest.raises(ValueError, match="at least 3 values, got 2"):
        olympic_mean([1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        olympic_mean([1.0, 2.0, 3.0, math.nan])


def test_olympic_mean_of_absurd_values_is_none() -> None:
    assert olympic_mean([1e308] * 10) is None


@given(st.lists(MINUTES, min_size=10, max_size=10))
def test_olympic_mean_is_the_official_one(values: list[float]) -> None:
    # The official function takes the converged runs, and how many others there were.
    assert olympic_mean(values) == pytest.approx(_compute_olympic_average(list(values), 0, 1), rel=1e-15)
    with_one = [*values[:9], math.inf]
    assert olympic_mean(with_one) == pytest.approx(_compute_olympic_average(values[:9], 1, 1), rel=1e-15)


def test_the_official_function_does_not_refuse_two() -> None:
    """Its caller does: asked itself, it averages seven of the eight runs that are left."""
    converged = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0]
    assert _compute_olympic_average(list(converged), 2, 1) == statistics.fmean(converged[1:])
    assert olympic_mean([*converged, math.inf, math.inf]) is None


def test_ten_runs_are_their_own_window() -> None:
    starts = [5.0, 3.0, 9.0, 1.0, 0.0, 2.0, 8.0, 4.0, 7.0, 6.0]
    assert median_window(starts, [1.0] * 10) == (4, 3, 5, 1, 7, 0, 9, 8, 6, 2)


def test_the_median_of_three_windows() -> None:
    # Windows of three in order of start: middle values 2, 5, 3.
    assert median_window([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 5.0, 9.0, 3.0], runs=3) == (1, 2, 3)
    # Middle values 2, 4, 4: the earlier of two equal ones.
    assert median_window([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 9.0, 3.0], runs=3) == (1, 2, 3)


def test_of_two_windows_the_slower() -> None:
    minutes = [1.0] + [5.0] * 9 + [9.0]
    assert median_window(list(range(11)), minutes) == tuple(range(10))  # equal means: the earliest
    assert median_window(list(range(11)), [4.0, 4.0] + [5.0] * 8 + [9.0]) == tuple(range(1, 11))
    assert median_window(list(range(11)), [9.0, 9.0] + [5.0] * 8 + [4.0]) == tuple(range(10))


def test_a_window_with_two_that_did_not_converge_is_the_slowest() -> None:
    minutes = [1.0] * 10 + [math.inf, math.inf]
    # Means 1, 1 (one is dropped) and infinite.
    assert median_window(list(range(12)), minutes) == tuple(range(10))
    minutes = [math.inf, math.inf] + [1.0] * 9
    assert median_window(list(range(11)), minutes) == tuple(range(10))


def test_equal_starts_keep_their_order() -> None:
    assert median_window([1.0, 0.0, 0.0], [1.0, 2.0, 3.0], runs=3) == (1, 2, 0)


def test_median_window_refuses() -> None:
    with pytest.raises(ValueError, match="10 runs, got 9"):
        median_window([0.0] * 9, [1.0] * 9)
    with pytest.raises(ValueError, match="11 starts and 10 minutes"):
        median_window([0.0] * 11, [1.0] * 10)
    with pytest.raises(ValueError, match="NaN"):
        median_window([math.nan] * 10, [1.0] * 10)


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


@given(st.permutations(range(12)))
def test_the_order_of_the_files_is_irrelevant(order: list[int]) -> None:
    minutes = [30.0, 31.0, 29.0, 40.0, 33.0, 35.0, 28.0, 30.5, 36.0, 32.0, 41.0, 27.0]
    expected = median_window([float(run) for run in range(12)], minutes)
    window = median_window([float(run) for run in order], [minutes[run] for run in order])
    assert tuple(order[index] for index in window) == expected


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


def test_no_spread() -> None:
    assert spread([]) is None
    assert spread([5.0]) is None
    assert spread([0.0, 0.0]) is None
    assert spread([-3.0, 1.0]) is None
    assert spread([1e308, 1e308]) is None
    assert spread([5.0, 5.0]) == Spread(2, 5.0, 0.0, 0.0, 5.0, 5.0, None, None)


def test_variance_of_the_reference() -> None:
    # The reference's 20 runs at GBS 16: 194,765 +- 8,243, CV 4.2 %, steps of 6.3 %.
    samples = [184_320.0] * 6 + [196_608.0] * 11 + [208_896.0] * 3
    result = variance(samples, [10.0, 12.0], 12_288, 16, 5.0)
    assert result.samples is not None
    assert result.minutes is not None
    assert round(result.samples.mean) == 194_765
    assert round(result.samples.sd) == 8_243
    assert round(result.samples.cv_percent, 1) == 4.2
    assert (result.samples.quantum, round(result.samples.quantum_percent or 0, 1)) == (12_288, 6.3)
    assert (result.minutes.runs, result.minutes.mean, result.minutes.quantum) == (2, 11.0, None)
    assert result.limit_percent == 5.0


def test_the_definition_says_what_the_figures_are() -> None:
    text = variance([184_320.0, 196_608.0], [], 12_288, 16, 2.5).definition
    for words in ("ddof 1", "converged runs", "2.5 % is this project's own, not an MLPerf rule"):
        assert words in text
    assert "CEIL(12288/GBS) x GBS = 12,288, which is 6.5 % of their mean" in text


def test_variance_counts_converged_runs_only() -> None:
    result = variance([100.0, math.inf, 120.0], [math.inf, 9.0, math.inf], 12_300, 100, 5.0)
    assert result.samples is not None
    assert (result.samples.runs, result.samples.mean, result.samples.quantum) == (2, 110.0, 12_300)
    assert result.minutes is None


@pytest.mark.parametrize(("step", "gbs"), [(12, 2), (12_300, 16), (12_288, 40), (12_288, None)])
def test_steps_of_another_size_are_not_the_closed_division_s(step: int, gbs: int | None) -> None:
    result = variance([100.0 * step, 120.0 * step], [1.0, 2.0], step, gbs, 5.0)
    assert result.samples is not None
    assert (result.samples.quantum, round(result.samples.quantum_percent or 0, 3)) == (step, 0.909)
    stated = f"Samples move in steps of {step:,}, the evaluation interval of these logs, which is 0.9 % of their mean"
    assert stated in result.definition and "CEIL" not in result.definition


@pytest.mark.parametrize("gbs", [None, 16])
def test_an_unknown_step_is_not_stated(gbs: int | None) -> None:
    result = variance([100.0, 120.0], [1.0, 2.0], None, gbs, 5.0)
    assert result.samples is not None
    assert (result.samples.quantum, result.samples.quantum_percent) == (None, None)
    assert "steps" not in result.definition


def test_the_normalization_factor_is_at_least_one() -> None:
    for reference, submission in itertools.product((100.0, 150.0), repeat=2):
        assert normalization_factor(reference, submission) == (
            1.5 if (reference, submission) == (150.0, 100.0) else 1.0
        )
