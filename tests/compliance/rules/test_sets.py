"""Each rule on sets fires, alone, on a set that breaks it; the compliant sets break none."""

from __future__ import annotations

import json
import math

import pytest

from compliance.findings import Severity, Status
from compliance.rules import SET_RULES
from tests.support.judging import fired, judged_set
from tests.support.made_logs import MadeLog, compliant_log, compliant_set

ERROR, INFO = Severity.ERROR, Severity.INFO


@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
@pytest.mark.parametrize("gbs", [16, 24, 32, 48, 64])
def test_a_compliant_set_breaks_none_and_has_a_score(gbs: int, ruleset: str) -> None:
    result, findings = judged_set(compliant_set(gbs, ruleset=ruleset), ruleset=ruleset)
    assert findings == []
    assert result.score is not None and result.score.valid
    minutes = sorted(run.minutes for run in result.runs if run.minutes is not None)
    assert result.score.olympic_minutes == pytest.approx(sum(minutes[1:-1]) / 8)
    assert result.score.normalized_minutes == result.score.olympic_minutes
    assert result.rcp is not None and result.rcp.pruned.passed
    assert result.variance is not None and result.variance.samples is not None and result.variance.minutes is not None
    assert 0 < result.variance.samples.cv_percent < 5
    assert 0 < result.variance.minutes.cv_percent < 5


def test_too_few_runs() -> None:
    result, findings = judged_set(compliant_set(16)[:9])
    assert fired(findings, ERROR) == {"set-count"}
    assert [(each.expected, each.got) for each in findings] == [("10", "9")]
    assert result.score is not None and not result.score.valid


def test_another_number_of_runs_may_be_asked_for() -> None:
    result, findings = judged_set(compliant_set(16)[:5], required_runs=5)
    assert findings == []
    assert result.score is not None and result.score.valid


def test_of_more_runs_the_median_window_counts() -> None:
    logs = compliant_set(16, runs=12)
    for number, log in enumerate(logs):
        # Minutes grow with the start: the middle one of the three windows is the median.
        log.shift(log.index("train_loss", 0), number * 60_000)
    result, findings = judged_set(list(reversed(logs)))
    assert fired(findings) == set()
    assert fired(findings, INFO) == {"set-count"}
    assert result.score is not None
    # Given in reverse, so result_10 is the second to start.
    assert result.score.window == tuple(f"result_{number}.txt" for number in range(10, 0, -1))
    assert "result_10.txt to result_1.txt" in next(each.message for each in findings if each.rule == "set-count")


@pytest.mark.parametrize(
    ("lost", "first", "missed"),
    [
        ((), 1, 0),
        ((0,), 1, 0),
        ((5,), 1, 1),
        ((0, 11), 1, 0),  # in no window together
        ((0, 1), 1, 1),  # the first window has no score, and is the slowest
        ((10, 11), 1, 1),
        ((4, 5), 0, 2),  # no window has a score
        ((2, 9), 0, 2),
    ],
    ids=str,
)
def test_of_more_runs_those_of_the_window_must_converge(lost: tuple[int, ...], first: int, missed: int) -> None:
    result, findings = judged_set([compliant_log(64, run, converged=run not in lost) for run in range(12)])
    assert result.score is not None
    assert result.score.window == tuple(f"result_{run}.txt" for run in range(first, first + 10))
    assert result.score.valid is (missed < 2)
    said = [(each.severity, each.got) for each in findings if each.rule == "set-not-converged"]
    assert said == {0: [], 1: [(INFO, None)], 2: [(ERROR, "2")]}[missed]
    assert result.variance is not None and result.variance.samples is not None
    assert result.variance.samples.runs == 10 - missed
    assert (result.rcp is not None and result.rcp.pruned.submission_mean is not None) is (missed < 2)


def test_another_number_of_runs_has_windows_as_well() -> None:
    result, findings = judged_set(compliant_set(64)[:7], required_runs=5)
    assert fired(findings) == set() and fired(findings, INFO) == {"set-count"}
    assert result.score is not None and result.score.valid and len(result.score.window) == 5


def test_an_invalid_run_outside_the_window_is_invalid_all_the_same() -> None:
    logs = compliant_set(16, runs=12)
    for number in (0, 11):  # in no window together
        logs[number].set("cache_clear", False)
    result, findings = judged_set(logs)
    assert [each.file for each in findings if each.rule == "set-invalid-run"] == ["result_0.txt", "result_11.txt"]
    assert result.score is not None and not result.score.valid


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("opt_base_learning_rate", 4.1e-4),
        ("global_batch_size", 32),
        ("lowest_numerical_precision_in_linear", "fp8"),
        ("submission_org", "Somebody Else"),
        ("submission_platform", "sys_2x8"),
        ("submission_status", "cloud"),
        ("expert_parallelism", 4),
        ("eval_tokens_sha256", "0" * 64),
        ("micro_batch_size", 1),
    ],
)
def test_runs_that_differ(key: str, value: object) -> None:
    logs = compliant_set(16)
    logs[3].set(key, value)
    _, findings = judged_set(logs)
    (found,) = (each for each in findings if each.rule == "set-alike")
    assert (found.file, found.line, found.severity) == ("result_3.txt", logs[3].index(key) + 1, ERROR)
    assert found.expected == json.dumps(logs[4].find(key)["value"])


@pytest.mark.parametrize(("key", "value"), [("train_samples", 999), ("seed", 999)])
def test_what_runs_may_differ_in(key: str, value: object) -> None:
    logs = compliant_set(16)
    logs[3].set(key, value)
    assert judged_set(logs)[1] == []


def test_what_one_run_does_not_say_is_no_difference() -> None:
    logs = compliant_set(16)
    logs[3].drop("target_accuracy").drop("eval_tokens_sha256")
    assert judged_set(logs)[1] == []


@pytest.mark.parametrize("gbs", [16.0, 64.0])
def test_a_batch_size_with_a_point_is_that_batch_size(gbs: float) -> None:
    result, findings = judged_set([log.set("global_batch_size", gbs) for log in compliant_set(int(gbs))])
    assert findings == []
    assert result.rcp is not None and result.rcp.global_batch_size == int(gbs)


def test_the_configurations_name_and_the_spelling_of_a_number_may_differ() -> None:
    logs = compliant_set(16)
    logs[3].set("config_filename", "config_other.sh").set("opt_gradient_clip_norm", 1)
    assert judged_set(logs)[1] == []


def test_only_that_a_run_differs_is_one_finding() -> None:
    logs = compliant_set(16)
    logs[7].set("submission_platform", "sys_2x8")
    assert fired(judged_set(logs)[1]) == {"set-alike"}


def test_a_division_of_its_own_is_a_difference() -> None:
    logs = compliant_set(16)
    logs[2].set("submission_division", "open")
    assert fired(judged_set(logs)[1]) == {"set-alike"}


def test_a_repeated_seed() -> None:
    logs = compliant_set(16)
    logs[5].set("seed", logs[1].find("seed")["value"])
    _, findings = judged_set(logs)
    assert fired(findings) == {"set-seed"}
    assert [(each.file, each.got) for each in findings] == [("result_5.txt", str(logs[1].find("seed")["value"]))]


def test_seeds_of_64_bits_differ_in_the_last() -> None:
    logs = compliant_set(16)
    for number, log in enumerate(logs):
        log.set("seed", 2**64 - 1 - number)  # as a float, all of them are one
    result, findings = judged_set(logs)
    assert findings == []
    assert [run.seed for run in result.runs] == [2**64 - 1 - number for number in range(10)]
    logs[7].set("seed", 2**64 - 1 - 3)
    assert [(each.rule, each.file) for each in judged_set(logs)[1]] == [("set-seed", "result_7.txt")]


def test_a_seed_repeated_by_many_is_that_of_the_first() -> None:
    logs = compliant_set(16)
    for number in (3, 5, 8):
        logs[number].set("seed", 7)
    found = [(each.file, each.message) for each in judged_set(logs)[1]]
    assert found == [(f"result_{number}.txt", "the seed is that of result_3.txt") for number in (5, 8)]


def test_the_second_seed_of_a_run_counts_as_well() -> None:
    logs = compliant_set(16)
    logs[5].insert_after("seed", 0, {**logs[5].find("seed"), "value": logs[1].find("seed")["value"]})
    findings = judged_set(logs)[1]
    assert fired(findings) == {"record-conflict", "set-seed"}


def test_seeds_that_are_no_integers_are_not_compared() -> None:
    logs = compliant_set(16)
    for number in (3, 5):
        logs[number].set("seed", "random")
    assert fired(judged_set(logs)[1]) == {"seed"}


def test_one_seed_logged_twice_in_one_run_is_legal() -> None:
    logs = compliant_set(16)
    logs[5].insert_after("seed", 0, dict(logs[5].find("seed")))
    again = logs[6].copy().find("seed")
    again["metadata"]["local_rank"] = 1
    logs[6].insert_after("seed", 0, again)
    assert judged_set(logs)[1] == []


def test_a_copy_under_another_seed() -> None:
    logs = compliant_set(16)
    logs[4] = logs[1].copy().set("seed", 999).shift(0, 36_000_000)
    _, findings = judged_set(logs)
    assert fired(findings) == {"set-copy"}
    assert [each.file for each in findings if each.rule == "set-copy"] == ["result_4.txt"]


def test_each_copy_is_named_with_the_first() -> None:
    logs = compliant_set(16)
    for number in (4, 6):
        logs[number] = logs[1].copy().set("seed", 999 + number).shift(0, number * 36_000_000)
    found = [(each.file, each.message) for each in judged_set(logs)[1] if each.rule == "set-copy"]
    message = "the evaluation losses are those of result_1.txt: one is a copy"
    assert found == [("result_4.txt", message), ("result_6.txt", message)]


def test_a_copy_whose_training_losses_were_touched_up() -> None:
    logs = compliant_set(16)
    copy = logs[1].copy().set("seed", 999).shift(0, 36_000_000)
    logs[4] = copy.set("train_loss", copy.find("train_loss", 2)["value"] + 1e-6, 2)
    assert fired(judged_set(logs)[1]) == {"set-copy"}


def test_runs_without_losses_are_no_copies() -> None:
    logs = compliant_set(16)
    for log in logs:
        log.events[:] = [record for record in log.events if record["key"] != "train_loss"]
    assert fired(judged_set(logs)[1]) == set()
    for log in logs:
        log.events[:] = [record for record in log.events if record["key"] != "eval_accuracy"]
    assert fired(judged_set(logs)[1]) == {"record-required", "eval-cadence"}


def test_a_copy_whose_evaluations_were_touched_up() -> None:
    logs = compliant_set(16)
    copy = logs[1].copy().set("seed", 999).shift(0, 36_000_000)
    logs[4] = copy.set("eval_accuracy", copy.find("eval_accuracy", 2)["value"] + 1e-6, 2)
    assert fired(judged_set(logs)[1]) == {"set-copy"}


def test_one_run_that_did_not_converge_is_the_slowest() -> None:
    logs = compliant_set(16)
    logs[6] = compliant_log(16, 6, converged=False)
    result, findings = judged_set(logs)
    assert fired(findings) == set()
    assert "set-not-converged" in fired(findings, INFO)
    assert result.runs[6].status is Status.NOT_CONVERGED
    assert result.score is not None and result.score.valid
    assert result.score.dropped[1] == "result_6.txt"
    minutes = sorted(run.minutes or math.nan for number, run in enumerate(result.runs) if number != 6)
    assert result.score.olympic_minutes == pytest.approx(sum(minutes[1:]) / 8)
    assert result.variance is not None and result.variance.samples is not None
    assert result.variance.samples.runs == 9


def test_two_runs_that_did_not_converge_make_no_result() -> None:
    logs = compliant_set(16)
    for number in (2, 6):
        logs[number] = compliant_log(16, number, converged=False)
    result, findings = judged_set(logs)
    assert fired(findings, ERROR) == {"set-not-converged"}
    assert result.score is not None and not result.score.valid and result.score.olympic_minutes is None
    assert result.rcp is not None and result.rcp.pruned.submission_mean is None


def test_an_invalid_run_is_not_dropped_as_the_slowest() -> None:
    logs = compliant_set(16)
    logs[6].set("cache_clear", False)
    result, findings = judged_set(logs)
    assert fired(findings) == {"cache-clear"}
    assert [each.file for each in findings if each.rule == "set-invalid-run"] == ["result_6.txt"]
    assert result.runs[6].status is Status.INVALID
    assert result.score is not None and not result.score.valid and result.score.olympic_minutes is None


def test_an_invalid_run_that_did_not_converge_is_invalid() -> None:
    logs = compliant_set(16)
    logs[6] = compliant_log(16, 6, converged=False).set("cache_clear", False)
    result, _ = judged_set(logs)
    assert result.runs[6].status is Status.INVALID
    assert result.score is not None and not result.score.valid


def slow_down(log: MadeLog, minutes: float) -> MadeLog:
    return log.shift(log.index("train_loss", 5), int(minutes * 60_000))


def test_the_limit_on_variance_is_a_warning_of_this_project() -> None:
    logs = compliant_set(16)
    _, before = judged_set(logs)
    assert before == []
    slow_down(logs[0], 200)
    result, findings = judged_set(logs)
    assert fired(findings, Severity.WARNING) == {"variance-limit"} and fired(findings, ERROR) == set()
    (finding,) = (each for each in findings if each.rule == "variance-limit")
    assert "the minutes of 10 runs" in finding.message and "ddof 1" in finding.message
    assert "steps" not in finding.message and finding.expected == "<= 5 %"
    assert "not a rule of MLPerf" in finding.citation
    assert result.variance is not None and result.variance.minutes is not None
    assert finding.got == str(round(result.variance.minutes.cv_percent, 3))
    assert fired(judged_set(logs, cv_limit=result.variance.minutes.cv_percent + 0.01)[1]) == set()
    assert fired(judged_set(logs, cv_limit=result.variance.minutes.cv_percent)[1]) == set()


def test_samples_that_vary_are_said_beside_their_quantum() -> None:
    logs = set_with(64, [20, 24, 24, 24, 24, 25, 25, 25, 28, 29])
    result, findings = judged_set(logs)
    assert result.variance is not None and result.variance.samples is not None
    found = [each for each in findings if each.rule == "variance-limit" and "the samples of 10" in each.message]
    assert len(found) == 1
    assert "steps of 12,288, 4.0 % of the mean" in found[0].message
    assert found[0].got == str(round(result.variance.samples.cv_percent, 3))


def test_samples_of_an_open_set_that_vary_are_said_beside_its_own_quantum() -> None:
    steps = [20, 24, 24, 24, 24, 25, 25, 25, 28, 29]
    logs = compliant_set(16, samples_to_target=[96 * step for step in steps], division="open", eval_every=96)
    (found,) = (each for each in judged_set(logs)[1] if "the samples of 10" in each.message)
    assert found.message.endswith("(ddof 1); samples move in steps of 96, 4.0 % of the mean")
    logs[0] = compliant_log(16, 0, samples_to_target=20 * 112, division="open", eval_every=112)
    (found,) = (each for each in judged_set(logs)[1] if "the samples of 10" in each.message)
    assert found.message.endswith("(ddof 1)")


def set_with(gbs: int, steps: list[int]) -> list[MadeLog]:
    """Ten runs that converge at these evaluations, counted from 1."""
    interval = -(-12_288 // gbs) * gbs
    return compliant_set(gbs, samples_to_target=[step * interval for step in steps])


# Eight of ten count. At GBS 64, 290304 is 23.625 evaluations of 12288 and 291840 is 23.75; at 32, 222720 is 18.125 and
# 224256 is 18.25.
EDGES = [
    (64, [23, 23, 23, 23, 24, 24, 24, 24, 24, 24], 290_304.0, False),
    (64, [23, 23, 23, 24, 24, 24, 24, 24, 24, 24], 291_840.0, True),
    (32, [18, 18, 18, 18, 18, 18, 18, 18, 19, 19], 222_720.0, False),
    (32, [18, 18, 18, 18, 18, 18, 18, 19, 19, 19], 224_256.0, True),
]


@pytest.mark.parametrize(("gbs", "steps", "mean", "passes"), EDGES)
def test_the_edges_of_the_convergence_test(gbs: int, steps: list[int], mean: float, passes: bool) -> None:
    result, findings = judged_set(set_with(gbs, steps))
    assert result.rcp is not None
    assert result.rcp.pruned.submission_mean == mean
    assert fired(findings, ERROR) == (set() if passes else {"rcp-pruned"})
    assert result.score is not None and result.score.valid is passes
    if passes:
        factor = result.rcp.pruned.normalization
        assert factor is not None and factor > 1
        assert result.score.normalized_minutes == pytest.approx((result.score.olympic_minutes or 0) * factor)
        assert "rcp-normalization" in fired(findings, INFO)
    assert ("rcp-normalization" in fired(findings, INFO)) is passes
    assert ("rcp-full" in fired(findings, INFO)) is (gbs == 32 and passes)
    pruned = result.rcp.pruned
    for each in findings:
        if each.rule == "rcp-normalization":
            assert f"by {pruned.normalization:.6f}: RCP mean {pruned.mean:.1f} / {mean:.1f}" in each.message
        elif each.rule in ("rcp-pruned", "rcp-full"):
            least = pruned.minimum if each.rule == "rcp-pruned" else result.rcp.full.minimum
            assert (each.expected, each.got) == (f">= {least:.6f} samples", str(mean))


@pytest.mark.parametrize("gbs", [72, 128])
def test_above_the_largest_point_there_is_no_test(gbs: int) -> None:
    result, findings = judged_set(compliant_set(gbs, learning_rate=1e-3, warmup_steps=192))
    assert fired(findings, ERROR) == {"rcp-missing"}
    assert [(each.expected, each.got) for each in findings if each.rule == "rcp-missing"] == [("16 to 64", str(gbs))]
    assert result.score is not None and not result.score.valid and result.score.normalized_minutes is None


def test_below_the_smallest_point_that_one_applies() -> None:
    interval = 12_288
    slow = compliant_set(8, samples_to_target=[16 * interval] * 5 + [17 * interval] * 5)
    assert fired(judged_set(slow)[1], ERROR) == set()
    fast = compliant_set(8, samples_to_target=[14 * interval] * 5 + [15 * interval] * 5)
    findings = judged_set(fast)[1]
    assert fired(findings, ERROR) == {"rcp-missing"}
    (found,) = (each for each in findings if each.rule == "rcp-missing")
    assert (found.expected, found.got) == (">= 188719.167249", str(14.5 * interval))


def test_below_the_smallest_point_a_set_without_a_mean_is_not_tested() -> None:
    logs = compliant_set(8, samples_to_target=[16 * 12_288] * 10)
    for number in (2, 6):
        logs[number] = compliant_log(8, number, converged=False)
    assert fired(judged_set(logs)[1], ERROR) == {"set-not-converged"}


def test_the_open_division_has_no_reference_points() -> None:
    result, findings = judged_set(compliant_set(128, division="open", learning_rate=1e-3, warmup_steps=192))
    assert fired(findings) == set()
    assert result.rcp is None
    assert result.score is not None and result.score.valid
    assert result.score.normalized_minutes == result.score.olympic_minutes


def test_every_rule_on_sets_is_tested_here() -> None:
    tested = {
        "set-count", "set-alike", "set-seed", "set-copy", "set-invalid-run", "set-not-converged", "variance-limit",
        "rcp-missing", "rcp-pruned", "rcp-full", "rcp-normalization",
    }  # fmt: skip
    assert {rule.id for rule in SET_RULES} == tested
