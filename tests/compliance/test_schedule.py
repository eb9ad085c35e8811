"""The schedule against plain arithmetic, and the accepted readings of logged rates."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from compliance.schedule import TOLERANCE, Comparison, Schedule
from tests.support.made_logs import learning_rate

BASE, END, WARMUP, LAST, BATCH = 4e-4, 4e-5, 128, 1_200_000, 16
PLAN = Schedule(BASE, END, WARMUP, LAST - WARMUP, LAST)
STEPS = np.array([0, 1, 2, 60, 127, 128, 129, 130, 500, 5000, 12_000, 13_000])


def logged(shift: int = 0, last: int = LAST, steps: NDArray[np.int64] = STEPS) -> NDArray[np.float64]:
    """Return the rates of steps shifted by ``shift``, in the C library's arithmetic."""
    return np.array([learning_rate(max(int(step) + shift, 0), BASE, END, WARMUP, last) for step in steps])


def compared(rates: NDArray[np.float64], steps: NDArray[np.int64] = STEPS, plan: Schedule = PLAN) -> Comparison:
    return Comparison(plan, BATCH, steps.astype(float) * BATCH, rates)


@pytest.mark.parametrize("warmup", [0, 1, 2, 128, 1000])
@pytest.mark.parametrize("last", [1000, 1200, 1_200_000])
def test_the_rates_are_megatron_s(warmup: int, last: int) -> None:
    steps = [step for step in (0, 1, 2, 127, 128, 129, 500, 999, 1000, last // 2, last - 1, last) if step <= last]
    rates = Schedule(BASE, END, warmup, last - warmup, last).rates(np.array(steps, float), last)
    expected = [learning_rate(step, BASE, END, warmup, last) for step in steps]
    if warmup == 0:
        expected[0] = BASE  # without a warm-up no step has rate 0
    np.testing.assert_allclose(rates, expected, rtol=1e-14)


def test_the_end_rate_follows_the_last_step() -> None:
    steps = np.array([1000.0, 1001.0, 1500.0, 2000.0, 3000.0])
    np.testing.assert_allclose(Schedule(BASE, END, 10, 990, 1000).rates(steps, 1000), END, rtol=1e-14)


def test_a_cosine_that_would_end_within_the_warm_up_ends_at_once() -> None:
    plan = Schedule(BASE, END, 10, 4, 10)
    for last in (10, 4):
        rates = plan.rates(np.arange(14, dtype=float), last)
        np.testing.assert_allclose(rates[:11], BASE * np.arange(11) / 10, rtol=1e-14)
        np.testing.assert_allclose(rates[11:], END, rtol=1e-14)


@pytest.mark.parametrize("shift", [-1, 0, 1])
@pytest.mark.parametrize("last", [LAST, LAST - WARMUP])
def test_six_readings_explain_a_log_to_the_last_bits(shift: int, last: int) -> None:
    steps = STEPS[1:]  # a step earlier than the first has no rate
    comparison = compared(logged(shift, last, steps), steps)
    assert list(comparison.wrong()) == []
    np.testing.assert_allclose(comparison.expected(), logged(shift, last, steps), rtol=4e-16)
    assert float(comparison.expected(3)) == pytest.approx(logged(shift, last, steps)[3], rel=4e-16)


@pytest.mark.parametrize("shift", [-2, 2])
def test_no_reading_is_two_steps_off(shift: int) -> None:
    steps = STEPS[2:]
    # In the warm-up one step changes the rate by much.
    assert len(compared(logged(shift, steps=steps), steps).wrong()) >= 2


def test_a_log_has_one_reading() -> None:
    """Steps 0, 1 and 2 have their own rates, steps 60 and 127 that of the next step."""
    rates = np.where(np.arange(len(STEPS)) < 3, logged(0), logged(1))
    assert list(compared(rates).wrong()) == [3, 4]


def test_another_end_of_the_cosine_is_wrong() -> None:
    steps = np.arange(0, 13_000, 100)
    wrong = compared(logged(0, LAST // 2, steps), steps).wrong()
    assert len(wrong) > 120 and wrong[-1] == len(steps) - 1


@pytest.mark.parametrize(
    ("factor", "wrong"),
    [(1 + 0.9 * TOLERANCE, []), (1 - 0.9 * TOLERANCE, []), (1 + 1.1 * TOLERANCE, [9]), (1 - 1.1 * TOLERANCE, [9])],
)
def test_rates_may_be_off_by_2e_7(factor: float, wrong: list[int]) -> None:
    rates = logged()
    rates[9] *= factor
    assert TOLERANCE == 2e-7
    assert list(compared(rates).wrong()) == wrong


def test_rates_of_single_precision_are_right() -> None:
    assert list(compared(logged().astype(np.float32).astype(float)).wrong()) == []


def test_the_last_bits_of_a_rate_near_zero_do_not_count() -> None:
    plan = Schedule(BASE, 0.0, WARMUP, LAST - WARMUP, LAST)
    steps = np.array([600_000, LAST - 1, LAST])
    rates = np.array([learning_rate(int(step), BASE, 0.0, WARMUP, LAST) for step in steps])
    assert list(compared(rates + 5e-16, steps, plan).wrong()) == []
    assert list(compared(rates + np.array([0, 0, 1e-12]), steps, plan).wrong()) == [2]


def test_the_reading_is_that_of_most_rates_not_of_the_worst() -> None:
    steps = np.array([10, 20, 30, 40, 50])
    rates = logged(0, steps=steps)
    rates[2:] += 1.0
    assert list(compared(rates, steps).wrong()) == [2, 3, 4]


def test_either_end_of_the_cosine_explains_a_log_but_not_both_in_turn() -> None:
    warmup = 100_000  # so long that the ends are far apart
    plan, steps = Schedule(BASE, END, warmup, LAST - warmup, LAST), np.arange(100_000, 112_000, 500)
    first, second = (
        np.array([learning_rate(int(step), BASE, END, warmup, last) for step in steps])
        for last in (LAST, LAST - warmup)
    )
    assert list(compared(first, steps, plan).wrong()) == list(compared(second, steps, plan).wrong()) == []
    mixed = np.concatenate([first[:18], second[18:]])
    assert list(compared(mixed, steps, plan).wrong()) == [18, 19, 20, 21, 22, 23]


def test_rates_are_numbered_over_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance.schedule._CHUNK", 5)
    for wrong in ([], [0], [4, 5], [3, 9, 10, 11]):
        rates = logged()
        rates[wrong] *= 1.001
        rates[wrong] += 1e-9  # the first rate is 0
        assert list(compared(rates).wrong()) == wrong


def test_no_rates_are_none_wrong() -> None:
    nothing = np.array([], dtype=np.int64)
    comparison = compared(nothing.astype(float), nothing)
    assert len(comparison.wrong()) == 0 and len(comparison.expected()) == 0
