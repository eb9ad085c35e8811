"""Plans: the bootstrap against an exact enumeration, layouts, suggestions, the JSON document."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance import rcp
from compliance.documents import to_json
from compliance.plan import Layout, PassingMeans, Plan, draw_runs, layouts, lowest_passing, make_plan
from compliance.render.text import plan_text

POINTS = {point.gbs: point for point in rcp.full_points("6.1.0")}


def exact_probability(samples: tuple[int, ...], minimum: float) -> float:
    """Return P(olympic mean of ten draws < minimum), summed over every split of ten draws among the values."""
    counts = sorted(Counter(samples).items())
    total = 0.0
    for bars in itertools.combinations(range(10 + len(counts) - 1), len(counts) - 1):
        edges = (-1, *bars, 10 + len(counts) - 1)
        split = [right - left - 1 for left, right in itertools.pairwise(edges)]
        drawn = [value for (value, _), times in zip(counts, split, strict=True) for _ in range(times)]
        if sum(drawn[1:-1]) / 8 < minimum:
            ways = math.factorial(10) / math.prod(map(math.factorial, split))
            shares = ((count / len(samples)) ** n for (_, count), n in zip(counts, split, strict=True))
            total += ways * math.prod(shares)
    return total


def test_the_enumeration_is_complete() -> None:
    assert exact_probability(POINTS[64].samples, math.inf) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
@pytest.mark.parametrize("gbs", [8, 16, 32, 64])
def test_the_bootstrap_against_the_exact_probability(gbs: int, ruleset: str) -> None:
    plan = make_plan(gbs, ruleset)
    samples = POINTS[max(gbs, 16)].samples
    for estimate, test in ((plan.bootstrap.pruned, plan.rcp.pruned), (plan.bootstrap.full, plan.rcp.full)):
        assert estimate is not None
        assert test.min is not None
        exact = exact_probability(samples, test.min)
        error = math.sqrt(exact * (1 - exact) / 100_000)
        assert abs(estimate.probability - exact) < 4 * error
        assert estimate.standard_error == pytest.approx(error, rel=0.15, abs=5e-6)


def test_pruning_makes_32_safe() -> None:
    bootstrap = make_plan(32, "6.1.0").bootstrap
    assert bootstrap.pruned is not None
    assert bootstrap.full is not None
    assert bootstrap.pruned.probability < 1e-4
    assert bootstrap.full.probability > 0.02
    assert not bootstrap.approximate


def test_the_bootstrap_is_deterministic_and_its_error_shrinks() -> None:
    assert make_plan(48, "6.1.0") == make_plan(48, "6.1.0")
    few, many = (make_plan(64, "6.1.0", draws=draws).bootstrap.full for draws in (2_500, 250_000))
    assert few is not None
    assert many is not None
    assert few.standard_error / many.standard_error == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("gbs", [17, 20, 24, 40, 48, 60, 63])
def test_interpolated_runs(gbs: int) -> None:
    runs, note = draw_runs(gbs, tuple(POINTS.values()), (40_000, 10), np.random.default_rng(1))
    interval = math.ceil(12_288 / gbs) * gbs
    assert runs.shape == (40_000, 10)
    assert np.all(runs % interval == 0)
    low, high = (POINTS[16], POINTS[32]) if gbs < 32 else (POINTS[32], POINTS[64])
    share = (gbs - low.gbs) / (high.gbs - low.gbs)
    mean = (1 - share) * np.mean(low.samples) + share * np.mean(high.samples)
    # Intervals of other sizes than 12,288 cost a few dozen samples.
    assert runs.mean() == pytest.approx(mean, abs=150)
    sd = rcp.interpolate(gbs, low, high).sd
    assert sd < runs.std() < 1.25 * sd
    assert f"no reference runs at GBS {gbs}" in note
    assert f"at GBS {low.gbs} and {high.gbs}" in note


def test_interpolation_meets_the_published_runs() -> None:
    """Check that next to a published size the interpolated runs are its runs, rank by rank."""
    near = rcp.PublishedPoint(10_000, 1.0, 1.0, 18, POINTS[32].samples, 1e-3, 1)
    far = rcp.PublishedPoint(20_000, 1.0, 1.0, 18, POINTS[64].samples, 1e-3, 1)
    runs, _ = draw_runs(10_000, (near, far), (2_000, 10), np.random.default_rng(1))
    assert set(runs.ravel()) == set(POINTS[32].samples)


def test_drawn_runs_are_the_published_ones() -> None:
    for gbs in (1, 15, 16, 32, 64):
        runs, note = draw_runs(gbs, tuple(POINTS.values()), (20_000, 10), np.random.default_rng(1))
        samples = POINTS[max(gbs, 16)].samples
        shares = {value: count / 20 for value, count in Counter(samples).items()}
        drawn = {float(value): float(np.mean(runs == value)) for value in np.unique(runs)}
        assert drawn == pytest.approx(shares, abs=0.005)
        assert ("there are none at GBS" in note) is (gbs < 16)


def test_above_the_largest_point() -> None:
    printed = json.loads(to_json(make_plan(72, "6.1.0")))
    assert printed["probability_of_failing"] is None
    assert printed["bootstrap"]["pruned"] is None
    assert all(f"GBS {gbs}" in printed["bootstrap"]["note"] for gbs in (64, 72))
    missing = {"mean": None, "min": None, "kind": "missing"}
    assert printed["rcp"] == {"pruned": missing, "full": missing}
    assert printed["olympic_means_that_pass"] == {"pruned": None, "full": None}


@pytest.mark.parametrize(
    ("gbs", "pruned", "full"),
    [(16, 188_928, 188_928), (32, 224_256, 230_400), (48, 258_048, 261_120), (64, 291_840, 291_840)],
)
def test_the_smallest_mean_that_passes(gbs: int, pruned: float, full: float) -> None:
    plan = make_plan(gbs, "6.1.0", draws=1)
    assert plan.olympic_means_that_pass == PassingMeans(pruned, full)
    step = plan.eval_interval_samples / 8
    result = rcp.check_convergence(gbs, pruned, "6.1.0"), rcp.check_convergence(gbs, pruned - step, "6.1.0")
    assert [test.pruned.passed for test in result] == [True, False]


@given(gbs=st.integers(1, 64), ruleset=st.sampled_from(["6.0.0", "6.1.0"]))
def test_the_smallest_mean_that_passes_at_any_size(gbs: int, ruleset: str) -> None:
    tests = rcp.check_convergence(gbs, None, ruleset)
    for name in ("pruned", "full"):
        mean = lowest_passing(gbs, getattr(tests, name).minimum)
        assert mean is not None
        step = math.ceil(12_288 / gbs) * gbs / 8
        assert mean % step == 0
        assert getattr(rcp.check_convergence(gbs, mean, ruleset), name).passed
        assert not getattr(rcp.check_convergence(gbs, mean - step, ruleset), name).passed


def test_cadence() -> None:
    plans = {gbs: make_plan(gbs, "6.1.0", draws=1) for gbs in (16, 48, 100)}
    cadence = {gbs: (plan.eval_interval_steps, plan.eval_interval_samples) for gbs, plan in plans.items()}
    assert cadence == {16: (768, 12_288), 48: (256, 12_288), 100: (123, 12_300)}


def test_layouts() -> None:
    assert layouts(16) == (Layout(1, 8, 2), Layout(2, 8, 1), Layout(1, 16, 1))
    assert layouts(24) == (Layout(1, 8, 3), Layout(1, 24, 1))
    # GPUs share a sequence.
    assert layouts(12)[0] == Layout(1, 4, 3)
    assert layouts(7) == (Layout(1, 1, 7), Layout(1, 7, 1))


@settings(deadline=None)
@given(st.integers(1, 4096))
def test_layouts_multiply_to_the_batch(gbs: int) -> None:
    found = layouts(gbs)
    assert 1 <= len(found) <= 24
    assert len(set(found)) == len(found)
    assert all(layout.micro_batch * layout.data_parallel * layout.accumulation == gbs for layout in found)


def published(plan: Plan) -> list[tuple[float, int, int]]:
    return [(suggestion.learning_rate, suggestion.warmup_steps, suggestion.gbs) for suggestion in plan.suggested]


def test_suggestions_of_this_batch_size_come_first() -> None:
    plan = make_plan(32, "6.1.0", draws=1)
    assert published(plan) == [
        (8e-4, 128, 32),
        (8e-4, 192, 32),
        (5e-4, 256, 32),
        (5e-4, 256, 24),
        (5e-4, 256, 48),
    ]
    sources = [suggestion.source for suggestion in plan.suggested]
    assert "reference runs" in sources[0]
    assert sources[1] == sources[2] == "a submission to MLPerf Training v6.0"
    assert all("nearest" not in source for source in sources[:3])
    assert "at GBS 24, the nearest published below 32" in sources[3]
    assert "at GBS 48, the nearest published above 32" in sources[4]


def test_suggestions_for_an_unpublished_size() -> None:
    assert [gbs for _, _, gbs in published(make_plan(56, "6.1.0", draws=1))] == [48, 64, 64, 64]
    assert published(make_plan(8, "6.1.0", draws=1)) == [(4e-4, 128, 16), (4e-4, 128, 16)]
    largest = make_plan(128, "6.1.0", draws=1)
    assert [gbs for _, _, gbs in published(largest)] == [64, 64, 64]
    assert all("nearest published below 128" in suggestion.source for suggestion in largest.suggested)


def test_the_json_document() -> None:
    printed = json.loads(to_json(make_plan(48, "6.0.0", draws=1000)))
    assert (printed["gbs"], printed["ruleset"], printed["bootstrap"]["draws"]) == (48, "6.0.0", 1000)
    assert printed["accumulation"][0] == {"micro_batch": 1, "data_parallel": 8, "accumulation": 6}
    assert printed["rcp"]["pruned"]["kind"] == "interpolated" and printed["bootstrap"]["approximate"]
    assert printed["rcp"]["pruned"]["min"] == pytest.approx(256614.131389, abs=1e-6)
    assert printed["rcp"]["full"]["mean"] == pytest.approx(267946.666667, abs=1e-6)
    assert printed["probability_of_failing"] == printed["bootstrap"]["pruned"]["probability"]


def test_the_text_has_the_numbers_of_the_plan() -> None:
    plan = make_plan(24, "6.1.0", draws=1000)
    text = " ".join(plan_text(plan).split())
    assert plan.probability_of_failing is not None
    facts = [
        "Global batch size 24, ruleset 6.1.0",
        "every 512 steps = 12,288 samples",
        *(f"{each.micro_batch} {each.data_parallel} {each.accumulation}" for each in plan.accumulation),
        *(f"interpolated {test.mean:,.1f} {test.min:,.1f}" for test in (plan.rcp.pruned, plan.rcp.full)),
        *(f"GBS {each.gbs}: {each.learning_rate:g}, warm-up {each.warmup_steps} steps" for each in plan.suggested),
        f"{100 * plan.probability_of_failing:.3g} %",
    ]
    for fact in facts:
        assert fact in text
    assert "not known" in plan_text(make_plan(72, "6.1.0", draws=1))
