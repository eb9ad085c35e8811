"""Two sets side by side: Welch's test against scipy's, what is said of the runs, and the command."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from scipy import stats  # type: ignore[import-untyped]

import compliance
from compliance.cli import ExitCode
from compliance.compare import Comparison, NotComparableError, compare
from compliance.documents import to_json
from compliance.findings import Spread
from compliance.render.comparison_text import comparison_text
from compliance.score import spread
from compliance.welch import MetricComparison, Outcome, WelchTest, compare_metric, welch_test
from tests.support.commands import command
from tests.support.judging import judged
from tests.support.made_logs import MadeLog, compliant_log, event, write_set
from tests.support.paths import REFERENCE_LOGS

PACKAGE = Path(compliance.__file__).parent
SCHEMA = json.loads((PACKAGE / "comparison.schema.json").read_text(encoding="utf-8"))
STEP = 12_288
Capture = pytest.CaptureFixture[str]


def runs_of(steps: Sequence[int], first: int = 0, gbs: int = 16, **options: Any) -> list[MadeLog]:
    """Logs whose runs need so many evaluation intervals; `first` gives sets seeds of their own."""
    interval = -(-STEP // gbs) * gbs
    return [
        compliant_log(gbs, first + number, samples_to_target=interval * count, **options)
        for number, count in enumerate(steps)
    ]


def compared(a: Sequence[MadeLog], b: Sequence[MadeLog], **options: Any) -> Comparison:
    sets = [
        [judged(log, f"{name}/result_{number}.txt") for number, log in enumerate(logs)]
        for name, logs in (("a", a), ("b", b))
    ]
    return compare(sets[0], sets[1], "6.1.0", **options)


def welch_of(measured: MetricComparison) -> WelchTest:
    assert measured.test is not None
    return measured.test


def spread_of(values: Sequence[float]) -> Spread:
    found = spread(values)
    assert found is not None
    return found


# The test


COUNTS = st.lists(st.integers(1, 60).map(lambda steps: float(steps * STEP)), min_size=2, max_size=14)
TIMES = st.lists(st.integers(60_000, 60_000_000).map(lambda ms: ms / 60_000), min_size=2, max_size=14)


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, of a set without spread
@settings(max_examples=300, deadline=None)
@given(st.one_of(st.tuples(COUNTS, COUNTS), st.tuples(TIMES, TIMES)), st.floats(0.5, 0.9999))
def test_welch_is_scipys(sets: tuple[list[float], list[float]], confidence: float) -> None:
    a, b = sets
    found = compare_metric("samples", a, b, confidence)
    if len({*a}) == len({*b}) == 1:
        assert found.test is None
        return
    ours, theirs = welch_of(found), stats.ttest_ind(b, a, equal_var=False)
    low, high = theirs.confidence_interval(confidence)
    scale = max(abs(low), abs(high))
    assert ours.t == pytest.approx(theirs.statistic, rel=1e-9, abs=1e-9)
    assert ours.df == pytest.approx(theirs.df, rel=1e-9)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9 * scale)
    mean = statistics.fmean(a)
    of_mean = 100 / mean
    percents = ours.low_percent, ours.high_percent
    assert percents == pytest.approx((low * of_mean, high * of_mean), rel=1e-9, abs=1e-9 * scale * of_mean)
    assert found.difference == pytest.approx(statistics.fmean(b) - mean, rel=1e-9, abs=1e-6)
    assert found.difference_percent == pytest.approx(100 * (statistics.fmean(b) / mean - 1), abs=1e-9)
    # Interval, p-value and verdict tell the same.
    told = found.outcome in (Outcome.FEWER, Outcome.MORE)
    assert told == (ours.p < 1 - confidence)
    if abs(ours.p - (1 - confidence)) > 1e-9:
        assert told == (not ours.low <= 0 <= ours.high)


@given(COUNTS)
@settings(max_examples=50, deadline=None)
def test_the_figures_of_a_set(values: list[float]) -> None:
    found = compare_metric("samples", values, [1.0, 2.0], quanta=(float(STEP), None)).a
    assert found is not None
    assert (found.mean, found.sd) == pytest.approx((statistics.mean(values), statistics.stdev(values)), rel=1e-12)
    assert found.cv_percent == pytest.approx(100 * statistics.stdev(values) / statistics.mean(values), rel=1e-12)
    assert (found.runs, found.minimum, found.maximum) == (len(values), min(values), max(values))
    assert found.quantum == STEP and found.quantum_percent == pytest.approx(100 * STEP / statistics.mean(values))


def test_swapped_sets_swap_the_sign() -> None:
    a, b = [10.0, 12.0, 11.0], [14.0, 15.0, 17.0, 15.5]
    one, other = welch_of(compare_metric("minutes", a, b)), welch_of(compare_metric("minutes", b, a))
    assert (one.t, one.df, one.p, one.low) == pytest.approx((-other.t, other.df, other.p, -other.high))
    assert compare_metric("minutes", a, b).outcome is Outcome.MORE
    assert compare_metric("minutes", b, a).outcome is Outcome.FEWER


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_detectable_difference_has_a_power_of_four_in_five(confidence: float) -> None:
    """By the noncentral t distribution, exact for equal spreads of ten runs each."""
    values = spread_of([90.0, 100.0, 110.0])  # sd 10; how many runs there are must not matter
    found = welch_test(values, values, confidence)
    assert found is not None
    shift = found.detectable / (values.sd * math.sqrt(2 / 10))
    critical = stats.t.ppf(0.5 + confidence / 2, 18)
    power = stats.nct.sf(critical, 18, shift) + stats.nct.cdf(-critical, 18, shift)
    assert power == pytest.approx(0.8, abs=0.01)
    assert found.detectable_percent == pytest.approx(found.detectable)  # the mean is 100
    if confidence == 0.95:
        assert found.detectable == pytest.approx(13.25, abs=0.01)


def test_the_detectable_difference_of_unlike_spreads_by_simulation() -> None:
    a, b = spread_of([100 - 8.0, 100.0, 100 + 8.0]), spread_of([200 - 3.0, 200.0, 200 + 3.0])
    found = welch_test(a, b)
    assert found is not None
    draw = np.random.default_rng(20)
    shown = stats.ttest_ind(
        draw.normal(0, 8, (20_000, 10)), draw.normal(found.detectable, 3, (20_000, 10)), axis=1, equal_var=False
    )
    assert float((shown.pvalue < 0.05).mean()) == pytest.approx(0.8, abs=0.015)
    assert found.detectable_percent == pytest.approx(found.detectable)  # of A's mean, not of B's


def test_huge_and_tiny_spreads_do_not_overflow() -> None:
    for scale in (1e-200, 1e200):
        a, b = (Spread(10, 2 * scale, sd, 1.0, scale, 3 * scale, None, None) for sd in (scale, scale / 2))
        found = welch_test(a, b)
        assert found is not None
        assert (found.df, found.p) == pytest.approx((1 / (0.8**2 / 9 + 0.2**2 / 9), 1.0))


# No spread


def test_equal_values_in_both_sets_leave_nothing_to_test() -> None:
    third = 359.1  # seven of which do not sum to seven times it
    same = compare_metric("minutes", [third] * 7, [third] * 6)
    assert (same.test, same.outcome, same.difference) == (None, Outcome.UNTESTED, 0.0)
    assert same.a is not None and (same.a.mean, same.a.sd, same.a.cv_percent) == (third, 0.0, 0.0)
    assert same.verdict.startswith("Every run of A and of B needs 359.100 minutes: no difference is seen")
    for b, change in ((184_320.0, "6.2 % fewer"), (221_184.0, "12.5 % more")):
        other = compare_metric("samples", [196_608.0] * 3, [b] * 2)
        assert (other.test, other.outcome, other.difference) == (None, Outcome.UNTESTED, b - 196_608)
        assert f"A needs 196,608 samples and every run of B {b:,.0f}, {change}; without any spread" in other.verdict


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_one_set_without_spread_is_tested() -> None:
    found = welch_of(compare_metric("samples", [3.0, 3.0, 3.0, 3.0], [1.0, 2.0, 3.0]))
    theirs = stats.ttest_ind([1.0, 2.0, 3.0], [3.0] * 4, equal_var=False)
    assert (found.t, found.df, found.p) == pytest.approx((theirs.statistic, 2.0, theirs.pvalue), rel=1e-9)
    compared_sets = compared(runs_of([16, 16]), runs_of([15, 17, 16], first=20))
    hidden = [note for note in compared_sets.notes if "hides what spread" in note]
    assert hidden == [
        "Every run of A needs 196,608 samples: the interval hides what spread there is, and the test takes it to be "
        "none."
    ]


# The sentences


def test_what_the_verdicts_say() -> None:
    faster = compare_metric("samples", [100.0, 101.0, 99.0, 100.0], [90.0, 91.0, 92.0, 91.0])
    test = welch_of(faster)
    assert faster.outcome is Outcome.FEWER
    assert faster.verdict == (
        f"B needs 9.0 % fewer samples than A (95 % interval {test.low:.1f} to {test.high:.1f} %), p < 0.0001."
    )
    slower = compare_metric("minutes", [100.0, 101.0, 99.0], [103.0, 104.0, 102.0], 0.9)
    assert slower.outcome is Outcome.MORE
    p = welch_of(slower).p
    assert 0.02 < p < 0.03
    assert slower.verdict == f"B needs 3.0 % more minutes than A (90 % interval 1.3 to 4.7 %), p = {p:.2g}."
    same = compare_metric("minutes", [100.0, 101.0, 99.0], [103.0, 104.0, 102.0], 0.99)
    assert same.outcome is Outcome.INCONCLUSIVE
    detectable = welch_of(same).detectable_percent
    assert same.verdict == (
        f"No difference in minutes can be told: p = {p:.2g} (99 % interval -0.76 to 6.8 %); with these spreads 10 runs "
        f"each would show a difference of {detectable:.1f} % four times in five."
    )


def test_too_few_values_are_not_compared() -> None:
    found = compare_metric("minutes", [math.inf, 3.0], [4.0, 5.0, math.inf])
    assert (found.a, found.test, found.difference, found.outcome) == (None, None, None, Outcome.UNTESTED)
    assert found.b is not None and found.b.runs == 2
    assert found.verdict == "Not compared: runs with minutes are 1 in A and 2 in B; each needs 2 or more."


# The sets


def test_figures_of_the_logs() -> None:
    a, b = [16, 17, 15, 16, 18, 16, 15, 17, 16, 16], [14, 15, 13, 14, 15]
    found = compared(runs_of(a), runs_of(b, first=20), names=("before", "after"))
    assert (found.a.name, found.a.runs, found.a.converged, found.a.eval_interval_samples, found.a.left_out) == (
        ("before", 10, 10, STEP, ())
    )
    assert (found.b.name, found.b.runs, found.b.converged) == ("after", 5, 5)
    theirs = stats.ttest_ind([each * STEP for each in b], [each * STEP for each in a], equal_var=False)
    assert welch_of(found.samples).p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.samples.outcome is found.minutes.outcome is Outcome.FEWER
    assert found.samples.olympic_a == sum(sorted(a)[1:-1]) / 8 * STEP
    assert found.samples.olympic_b is None and found.minutes.olympic_b is None
    assert found.settings == () and found.warnings == ()


def test_minutes_are_those_to_the_target_and_not_to_run_stop() -> None:
    logs = runs_of([15, 16, 17])
    expected = []
    for log in logs:
        log.shift(log.index("run_stop"), 50_000)
        start, met = log.find("run_start")["time_ms"], log.find("eval_accuracy", -1)["time_ms"]
        expected.append((met - start) / 60_000)
    found = compared(logs, runs_of([15, 16, 17], first=20)).minutes
    assert found.a is not None and found.a.mean == pytest.approx(statistics.mean(expected), rel=1e-12)


def test_runs_that_missed_the_target_are_left_out_and_said() -> None:
    logs = runs_of([16, 17, 15, 16, 18, 16, 15, 17, 16]) + runs_of([21], first=9, converged=False)
    found = compared(logs, runs_of([16, 17, 15], first=20))
    assert (found.a.runs, found.a.converged, found.a.left_out) == (10, 9, ("a/result_9.txt",))
    assert found.samples.a is not None and (found.samples.a.runs, found.samples.a.maximum) == (9, 18 * STEP)
    assert found.samples.olympic_a == sum([15, 16, 16, 16, 16, 17, 17, 18]) / 8 * STEP  # it is dropped as the slowest
    assert found.warnings == (
        "1 of 10 runs of A did not meet the target and are left out: a set without its slowest runs looks faster than "
        "it is.",
    )
    assert "A without a/result_9.txt" in comparison_text(found)


def test_an_aborted_run_or_one_at_no_samples_has_not_converged() -> None:
    logs = runs_of([16, 17, 15, 16])
    logs[0].find("run_stop")["metadata"]["status"] = "aborted"
    for record in logs[1].events:
        if record["key"] == "eval_accuracy":
            record["metadata"]["samples_count"] = 0
    for record in logs[2].all("eval_accuracy"):
        record["metadata"]["samples_count"] = 10**300
    with pytest.raises(NotComparableError, match=r"A \(A\): 1 of 4 runs met the target; expected 2 or more"):
        compared(logs, runs_of([16, 17], first=20))


def test_broken_rules_are_named_and_the_runs_compared() -> None:
    logs = runs_of([16, 17, 15])
    logs[0].set("cache_clear", False)
    logs[2].set("cache_clear", False).set("opt_adamw_beta_2", 0.9)
    found = compared(logs, runs_of([16, 17], first=20))
    broken = {each.rule: each.files for each in found.a.broken}
    assert broken["cache-clear"] == ("a/result_0.txt", "a/result_2.txt")
    assert broken["hyperparameter-fixed"] == ("a/result_2.txt",)
    assert broken["set-alike"] == ("a/result_2.txt",)
    assert found.b.broken == ()  # too few for a result is none of a comparison's business
    assert found.samples.a is not None and found.samples.a.runs == 3
    text = " ".join(comparison_text(found).split())
    assert "A breaks cache-clear (2 runs), hyperparameter-fixed (1 run), set-alike (1 run); check-set says" in text
    assert "B breaks no rule" in text


def test_convergence_against_the_reference_is_judged_of_ten_runs_only() -> None:
    ten, nine = [8, 9] * 5, [8, 9, 8] * 3
    found = compared(runs_of(ten), runs_of(nine, first=20))
    assert [each.rule for each in found.a.broken] == ["rcp-pruned"] and found.b.broken == ()
    assert "A breaks rcp-pruned (the set)" in comparison_text(found)


def test_minutes_without_a_clock_leave_the_samples() -> None:
    logs = runs_of([16, 17, 15])
    logs[0].drop("run_start")
    logs[1].find("run_start")["time_ms"] += 10**10  # it starts after it ends
    found = compared(logs, runs_of([16, 17], first=20))
    assert found.samples.a is not None and found.samples.a.runs == 3
    assert found.minutes.verdict == "Not compared: runs with minutes are 1 in A and 2 in B; each needs 2 or more."
    Draft202012Validator(SCHEMA).validate(json.loads(to_json(found)))
    assert "Not compared: runs with minutes" in comparison_text(found)


# The settings


def test_settings_that_differ_are_side_by_side() -> None:
    b = runs_of([16, 17], first=20, gbs=32)
    for log in b:
        log.set("submission_platform", "other_1x8").set("lowest_numerical_precision_in_linear", "fp8")
        log.set("expert_parallelism", 4).set("max_steps", 1_200_000.0).drop("config_filename")
    found = {each.key: (each.a, each.b) for each in compared(runs_of([16, 17]), b).settings}
    assert found == {
        "submission_platform": (('"sys_1x8"',), ('"other_1x8"',)),
        "global_batch_size": (("16",), ("32",)),
        "gradient_accumulation_steps": (("1",), ("2",)),
        "opt_base_learning_rate": (("0.0004",), ("0.0008",)),
        "opt_end_learning_rate": (("4e-05",), ("8e-05",)),
        "lowest_numerical_precision_in_linear": (('"bfloat16"',), ('"fp8"',)),
        "expert_parallelism": (("8",), ("4",)),
        "config_filename": (('"config_sys_1x8.sh"',), ()),
    }


def test_a_setting_of_the_vendors_own_is_shown_where_it_is_one_for_the_set() -> None:
    a, b = runs_of([16, 17]), runs_of([16, 17], first=20)
    for number, log in enumerate([*a, *b]):
        log.insert_before("run_start", 0, event("attention_kernel", "v2" if number < 2 else "v3", 1_790_000_000_000))
        log.insert_before("run_start", 0, event("host_of_the_day", f"node{number}", 1_790_000_000_000))
        log.insert_after("run_start", 0, event("moment", "a" if number < 2 else "b", log.find("run_start")["time_ms"]))
    found = compared(a, b)
    assert [(each.key, each.a, each.b) for each in found.settings] == [("attention_kernel", ('"v2"',), ('"v3"',))]
    assert 'attention_kernel: "v2" in A, "v3" in B' in comparison_text(found)


def test_a_set_of_several_values_shows_them_all() -> None:
    a = [*runs_of([16, 17]), *runs_of([16], first=2, warmup_steps=64)]
    (differs,) = (
        each
        for each in compared(a, runs_of([16, 17], first=20)).settings
        if each.key == "opt_learning_rate_warmup_steps"
    )
    assert (differs.a, differs.b) == (("128", "64"), ("128",))


def test_no_difference_in_settings_is_said() -> None:
    text = comparison_text(compared(runs_of([16, 17]), runs_of([15, 17], first=20)))
    assert "Logged settings that differ\n  none\n" in text


# The grid, and what is not independent


def test_the_grid_of_each_set() -> None:
    def notes(gbs: int) -> str:
        return " ".join(compared(runs_of([15, 16]), runs_of([15, 16], first=20, gbs=gbs)).notes)

    assert "12,288 samples in A (6.5 % of the mean) and 12,288 samples in B (6.5 % of the mean)" in notes(16)
    assert "GBS" not in notes(16)
    assert "GBS differs (16 and 32), the evaluation interval does not" in notes(32)
    assert "12,288 samples in A (6.5 % of the mean) and 12,320 samples in B" in notes(40)
    assert "The intervals differ (GBS 16 and 40): about half of that, +16 samples of B - A" in notes(40)


def test_a_set_of_two_batch_sizes_has_no_single_interval() -> None:
    found = compared([*runs_of([15, 16]), *runs_of([16], first=3, gbs=40)], runs_of([15, 16], first=20))
    assert found.a.eval_interval_samples is None and found.b.eval_interval_samples == STEP
    assert "of no single size in A and 12,288 samples in B" in found.notes[0]
    assert not any("GBS" in note for note in found.notes[1:])


def test_a_run_that_never_evaluated_leaves_the_interval_known() -> None:
    a = runs_of([16, 17, 15], division="open")
    a[0].events = [record for record in a[0].events if not record["key"].startswith("eval_")]
    found = compared(a, runs_of([16, 17], first=20, division="open"))
    assert (found.a.eval_interval_samples, found.a.converged) == (STEP, 2)


def test_the_grid_of_open_sets_is_that_of_their_evaluations() -> None:
    def open_runs(every: int, first: int) -> list[MadeLog]:
        counts = ((first, 16), (first + 1, 17))
        return [
            compliant_log(16, run, samples_to_target=every * count, division="open", eval_every=every)
            for run, count in counts
        ]

    a, b = open_runs(96, 0), open_runs(112, 20)
    found = compared(a, b)
    assert (found.a.eval_interval_samples, found.b.eval_interval_samples) == (96, 112)
    assert "96 samples in A (6.1 % of the mean) and 112 samples in B" in found.notes[0]
    b[0].find("eval_accuracy", 2)["metadata"]["samples_count"] += 16
    found = compared(a, b)
    assert (found.a.eval_interval_samples, found.b.eval_interval_samples) == (96, None)
    assert "96 samples in A (6.1 % of the mean) and of no single size in B" in found.notes[0]


def test_shared_seeds_and_copies_are_warned_of() -> None:
    a, b = runs_of([16, 17, 15, 16, 17]), runs_of([16, 17, 15, 16, 17], first=20)
    assert compared(a, b).warnings == ()
    b[1].set("seed", a[3].find("seed")["value"])
    (warning,) = compared(a, b).warnings
    assert warning.startswith(
        "1 run of B has the seed of a run of A (b/result_1.txt = a/result_3.txt): not independent"
    )
    for run in range(4):
        b[run] = a[run].copy().set("seed", 7_000_000 + run)
    (warning,) = compared(a, b).warnings
    assert warning.startswith(
        "4 runs of B have the evaluation losses of a run of A to the last digit (b/result_0.txt = a/result_0.txt, "
        "b/result_1.txt = a/result_1.txt, b/result_2.txt = a/result_2.txt, and 1 more)"
    )


def test_a_set_against_itself() -> None:
    found = compared(runs_of([16, 17, 15]), runs_of([16, 17, 15]))
    assert welch_of(found.samples).p == pytest.approx(1.0)
    assert found.samples.outcome is Outcome.INCONCLUSIVE
    assert [warning.split(" a run of A")[0] for warning in found.warnings] == [
        "3 runs of B have the seed of",
        "3 runs of B have the evaluation losses of",
    ]


def test_other_targets_are_warned_of() -> None:
    b = runs_of([16, 17], first=20, division="open")
    for log in b:
        log.set("target_accuracy", 3.3401)
    (warning,) = compared(runs_of([16, 17]), b).warnings
    assert warning.startswith("The target is 3.34 in A and 3.3401 in B")


# The JSON


BREAKS: dict[str, Any] = {
    "another version": lambda made: made.update(schema_version=1),
    "something more": lambda made: made.update(verdict="faster"),
    "a set of one run": lambda made: made["a"].update(runs=1),
    "a p-value above one": lambda made: made["samples"]["test"].update(p=1.5),
    "a spread without a mean": lambda made: made["samples"]["b"].pop("mean"),
    "a setting without values": lambda made: made["settings"][0].pop("a"),
}


@pytest.mark.parametrize("breaks", BREAKS.values(), ids=BREAKS)
def test_the_schema_refuses_a_wrong_comparison(breaks: Any) -> None:
    made = json.loads(to_json(compared(runs_of([16, 17]), runs_of([15, 17], first=20, gbs=32))))
    validator = Draft202012Validator(SCHEMA)
    assert validator.is_valid(made)
    breaks(made)
    assert not validator.is_valid(made)


def test_the_json_has_what_the_text_says() -> None:
    logs = [*runs_of([16, 17, 15]), *runs_of([20], first=3, converged=False)]
    logs[0].set("cache_clear", False)
    found = compared(logs, runs_of([14, 15], first=20, gbs=40), names=("one", "two"))
    made = json.loads(to_json(found), parse_constant=pytest.fail)
    Draft202012Validator(SCHEMA).validate(made)
    text = " ".join(comparison_text(found, width=100_000).split())
    for name in ("samples", "minutes"):
        assert made[name]["verdict"] in text
        for side in ("a", "b"):
            assert made[name][side]["runs"] == (3 if side == "a" else 2)
            digits = 1 if name == "samples" else 3
            for figure in ("mean", "sd"):
                assert f" {made[name][side][figure]:,.{digits}f} " in text
        section = text.split(f"{name.capitalize()} to target set")[1]
        shown = re.search(r"Welch's t = (\S+), (\S+) degrees of freedom, two-sided p = (\S+)", section)
        test = made[name]["test"]
        assert shown is not None
        assert [float(each) for each in shown.groups()] == pytest.approx([test["t"], test["df"], test["p"]], rel=5e-3)
        assert f"{test['low']:+,.{digits}f} to {test['high']:+,.{digits}f} {name}" in text
        assert f"a difference of {test['detectable']:,.{digits}f} {name}" in text
    for sentence in (*made["warnings"], *made["notes"]):
        assert sentence in text
    for setting in made["settings"]:
        assert f"{setting['key']}: {setting['a'][0]} in A, {setting['b'][0]} in B" in text
    assert made["settings"] and made["a"]["left_out"][0] in text and "A: one B: two" in text
    assert made["a"]["broken"] == [{"rule": "cache-clear", "files": ["a/result_0.txt"]}]


# The command


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sets")
    logs = runs_of([16, 17, 15, 16])
    logs[2].set("cache_clear", False)
    write_set(root / "a", logs)
    write_set(root / "b", runs_of([13, 14, 13], first=20, gbs=32))
    return root / "a", root / "b"


def test_the_command_compares_sets_that_break_rules(folders: tuple[Path, Path], capsys: Capture) -> None:
    found = command(capsys, "compare", *folders)
    assert (found.status, found.err) == (0, "")
    said = " ".join(found.out.split())
    assert said.startswith(f"A: {folders[0]} B: {folders[1]} B needs 16.7 % fewer samples than A (95 % interval ")
    assert "A breaks cache-clear (1 run); check-set says where" in said
    assert "\x1b" not in found.out


def test_the_command_in_a_process_of_its_own(folders: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["compare", *map(str, folders), "--format", "json", "--confidence", "0.9", "--ruleset", "6.0.0"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "compliance", *arguments],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    made = json.loads(done.stdout, parse_constant=pytest.fail)
    Draft202012Validator(SCHEMA).validate(made)
    assert (made["ruleset"], made["confidence"], made["samples"]["outcome"]) == ("6.0.0", 0.9, "fewer")
    assert list(tmp_path.iterdir()) == []


def test_the_command_judges_by_the_ruleset_asked_for(tmp_path: Path, capsys: Capture) -> None:
    logs = runs_of([16, 17], ruleset="6.0.0", disclosures=False)
    write_set(tmp_path / "a", logs)
    for ruleset, rules in (("6.0.0", []), ("6.1.0", ["record-required"])):
        found = command(capsys, "compare", tmp_path / "a", tmp_path / "a", "--format", "json", "--ruleset", ruleset)
        assert [each["rule"] for each in json.loads(found.out)["a"]["broken"]][:1] == rules


def test_a_difference_that_is_no_improvement_is_no_failure(folders: tuple[Path, Path], capsys: Capture) -> None:
    found = command(capsys, "compare", folders[1], folders[0])
    assert found.status == 0 and "more samples than A" in found.out


@pytest.mark.parametrize("form", ["text", "json"])
def test_too_few_runs_are_wrong_usage(folders: tuple[Path, Path], capsys: Capture, form: str) -> None:
    log = folders[1] / "result_0.txt"
    found = command(capsys, "compare", folders[0], log, "--format", form)
    assert (found.status, found.out) == (ExitCode.USAGE, "")
    assert found.err == f"error: B ({log}): 1 of 1 runs met the target; expected 2 or more in each set: add runs\n"


@pytest.mark.parametrize("confidence", ["95", "nan", "0", "1"])
def test_a_confidence_that_is_none(folders: tuple[Path, Path], capsys: Capture, confidence: str) -> None:
    found = command(capsys, "compare", *folders, "--confidence", confidence)
    assert (found.status, found.err) == (
        ExitCode.USAGE,
        f"error: confidence {confidence}: expected 0.5 to 0.9999; try 0.95\n",
    )


def test_unreadable_input(folders: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    whole = gzip.compress((folders[0] / "result_0.txt").read_bytes())
    (damaged / "result_0.txt.gz").write_bytes(whole[: len(whole) // 2])
    for wrong, why in ((tmp_path / "none", "no such file"), (damaged, "damaged gzip file")):
        found = command(capsys, "compare", folders[0], wrong)
        assert (found.status, found.out) == (ExitCode.UNREADABLE, "")
        assert why in found.err and found.err.count("\n") == 1


def test_the_command_is_listed_and_takes_two_sets(folders: tuple[Path, Path], capsys: Capture) -> None:
    assert "compare" in command(capsys, "--help").out
    assert command(capsys, "compare", folders[0]).status == ExitCode.USAGE


def test_colours_are_for_terminals() -> None:
    found = compared(runs_of([16, 17, 16]), runs_of([13, 12, 13], first=20))
    assert "\x1b[1;32mB needs" in comparison_text(found, colour=True)
    assert "\x1b" not in comparison_text(found)


def test_nothing_in_a_log_reaches_the_terminal_raw() -> None:
    b = runs_of([16, 17], first=20)
    for log in b:
        log.set("submission_platform", "\x1b[2J[bold]x")
    text = comparison_text(compared(runs_of([16, 17]), b))
    assert "\x1b" not in text and "[bold]x" in text


def test_scipy_is_imported_by_no_other_command() -> None:
    script = "import sys, compliance.cli, compliance.compare, compliance.render.comparison_text; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=PACKAGE.parent).returncode == 0


# Ten published reference runs


@pytest.mark.skipif(not REFERENCE_LOGS.is_dir(), reason="the published reference logs are not beside this checkout")
def test_halves_of_the_reference_runs(tmp_path: Path, capsys: Capture) -> None:
    logs = sorted(REFERENCE_LOGS.glob("*.gz"))
    for name, half in (("a", logs[:5]), ("b", logs[5:])):
        (tmp_path / name).mkdir()
        for log in half:
            shutil.copy(log, tmp_path / name)
    found = command(capsys, "compare", tmp_path / "a", tmp_path / "b", "--format", "json")
    made = json.loads(found.out, parse_constant=pytest.fail)
    Draft202012Validator(SCHEMA).validate(made)
    assert (found.status, len(logs)) == (0, 10)
    assert made["settings"] == [] and made["warnings"] == []
    assert (made["samples"]["outcome"], made["minutes"]["outcome"]) == ("not_told", "not_told")
    assert {"eval-size", "eval-after-target"} < {each["rule"] for each in made["b"]["broken"]}
    samples = [made["samples"][side] for side in ("a", "b")]
    # One run of the first half needs an evaluation more; the others all meet the target at the same one.
    assert [each["mean"] for each in samples] == [235_929.6, 233_472.0] and samples[1]["sd"] == 0
    whole = command(capsys, "compare", REFERENCE_LOGS, tmp_path / "a", "--format", "json")
    made = json.loads(whole.out)
    assert made["samples"]["olympic_a"] == 233_472
    assert made["minutes"]["olympic_a"] == pytest.approx(359.973, abs=5e-4)
    assert [warning.split(" of a run of A")[0] for warning in made["warnings"]] == [
        "5 runs of B have the seed",
        "5 runs of B have the evaluation losses",
    ]
