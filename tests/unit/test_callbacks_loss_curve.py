"""The extrapolation of the loss curve to the target, and its plot."""

from __future__ import annotations

import math

import pytest

from benchmarks import target_estimate
from gptoss20b.callbacks.loss_curve import Point, plot, samples_to_target
from tests.support.paths import REFERENCE_LOGS

# 3 + 40 n^-0.5 in training; evaluations are 0.05 lower. The target 3.15 is reached at n = 40,000.
TRAIN: list[Point] = [(n, 3 + 40 * n**-0.5) for n in range(100, 10_001, 100)]
EVALUATIONS: list[Point] = [(n, 3 + 40 * n**-0.5 - 0.05) for n in range(1000, 10_001, 1000)]


def test_a_power_law_is_found_with_the_offset_of_the_evaluations() -> None:
    assert samples_to_target(TRAIN, EVALUATIONS, 3.15) == pytest.approx(40_000, rel=0.05)


@pytest.mark.parametrize(
    ("train", "evaluations", "target"),
    [
        ([], EVALUATIONS, 3.15),
        (TRAIN, EVALUATIONS[:1], 3.15),
        (TRAIN[:3], EVALUATIONS, 3.15),
        (TRAIN, EVALUATIONS, 2.9),  # below what the curve tends to
        ([(n, 5.0 + n / 10_000) for n, _ in TRAIN], EVALUATIONS, 3.15),  # rising
        ([(n, loss - 0.1 * (n > 8_000)) for n, loss in TRAIN], EVALUATIONS, 3.01),  # the earlier fit says otherwise
    ],
)
def test_a_fit_that_means_nothing_is_unknown(train: list[Point], evaluations: list[Point], target: float) -> None:
    assert samples_to_target(train, evaluations, target) is None


@pytest.mark.skipif(not REFERENCE_LOGS.is_dir(), reason="the reference's logs are not on this machine")
def test_ten_runs_of_the_reference_at_half_time() -> None:
    median, largest = target_estimate.errors_at(REFERENCE_LOGS, 0.5)[1:]
    assert [median, largest] == pytest.approx([0.26, 0.42], abs=0.01)


def test_the_plot_has_every_kind_of_point_and_the_target() -> None:
    lines = plot([(5, 9.0), (100, 4.0)], [(50, 5.0)], 3.0, width=60, height=7).splitlines()
    assert [len(lines), max(map(len, lines))] == [8, 60]
    assert lines[0] == f"{'9.00':>7} |  ."
    assert "o" in lines[4] and lines[5].endswith(".") and lines[6] == f"{'3.00':>7} |{51 * '-'}"
    assert math.isclose(lines[5].index(".") - 9, 50)
    assert lines[7].split()[0] == "0" and lines[7].endswith("100 samples")
