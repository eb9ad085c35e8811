"""Rules on sets of runs: each fires alone on a set that breaks it."""

from __future__ import annotations

import json
import math

import pytest

from compliance.findings import Finding, Severity, Status
from compliance.rules import sets
from tests.support.judging import drop_all, fired, judged_set, repeat, rule_ids
from tests.support.made_logs import MadeLog, compliant_log, compliant_set

ERROR, INFO = Severity.ERROR, Severity.INFO


@pytest.mark.parametrize("ruleset", ["6.0.0", "6.1.0"])
@pytest.mark.parametrize("gbs", [16, 24, 32, 48, 64])
def test_a_compliant_set_breaks_no_rule_and_has_a_score(gbs: int, ruleset: str) -> None:
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


def test_the_required_number_of_runs() -> None:
    result, findings = judged_set(compliant_set(16)[:9])
    assert fired(findings, ERROR) == {"set-count"}
    assert [(each.expected, each.got) for each in findings] == [("10", "9")]
    assert result.score is not None and not result.score.valid
    result, findings = judged_set(compliant_set(16)[:5], required_runs=5)
    assert findings == []
    assert result.score is not None and result.score.valid
    result, findings = judged_set(compliant_set(64)[:7], required_runs=5)
    assert fired(findings) == set() and fired(findings, INFO) == {"set-count"}
    assert result.score is not None and result.score.valid and len(result.score.window) == 5


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


@pytest.mark.slow
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


def test_an_invalid_run_outside_the_window_makes_the_set_invalid() -> None:
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
def test_settings_that_differ(key: str, value: object) -> None:
    logs = compliant_set(16)
    logs[3].set(key, value)
    _, findings = judged_set(logs)
    (finding,) = (each for each in findings if each.rule == "set-alike")
    assert (finding.file, finding.line, finding.severity) == ("result_3.txt", logs[3].index(key) + 1, ERROR)
    assert finding.expected == json.dumps(logs[4].find(key)["value"])


@pytest.mark.parametrize(("key", "value"), [("submission_platform", "sys_2x8"), ("submission_division", "open")])
def test_a_differing_run_breaks_no_other_rule(key: str, value: object) -> None:
    logs = compliant_set(16)
    logs[7].set(key, value)
    assert fired(judged_set(logs)[1]) == {"set-alike"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_samples", 999),
        ("seed", 999),
        ("config_filename", "config_other.sh"),
        ("opt_gradient_clip_norm", 1),  # 1.0 in the other runs
        ("target_accuracy", None),  # not logged
        ("eval_tokens_sha256", None),
    ],
)
def test_settings_that_may_differ(key: str, value: object) -> None:
    logs = compliant_set(16)
    if value is None:
        logs[3].drop(key)
    else:
        logs[3].set(key, value)
    assert judged_set(logs)[1] == []


@pytest.mark.parametrize("gbs", [16.0, 64.0])
def test_a_batch_size_may_be_written_as_a_float(gbs: float) -> None:
    result, findings = judged_set([log.set("global_batch_size", gbs) for log in compliant_set(int(gbs))])
    assert findings == []
    assert result.rcp is not None and result.rcp.global_batch_size == int(gbs)


@pytest.mark.parametrize("number", [5, 8])
def test_a_repeated_seed_is_that_of_the_first_run(number: int) -> None:
    logs = compliant_set(16)
    for repeated in {5, number}:
        logs[repeated].set("seed", logs[1].find("seed")["value"])
    findings = judged_set(logs)[1]
    assert fired(findings) == {"set-seed"}
    assert [each.file for each in findings] == [f"result_{repeated}.txt" for repeated in sorted({5, number})]
    assert all("result_1.txt" in each.message for each in findings)
    assert {each.got for each in findings} == {str(logs[1].find("seed")["value"])}


def test_seeds_of_64_bits_are_compared_to_the_last_bit() -> None:
    logs = compliant_set(16)
    for number, log in enumerate(logs):
        log.set("seed", 2**64 - 1 - number)  # equal as floats
    result, findings = judged_set(logs)
    assert findings == []
    assert [run.seed for run in result.runs] == [2**64 - 1 - number for number in range(10)]
    logs[7].set("seed", 2**64 - 1 - 3)
    assert [(each.rule, each.file) for each in judged_set(logs)[1]] == [("set-seed", "result_7.txt")]


def test_a_seed_that_another_line_of_source_logs_is_a_warning() -> None:
    logs = compliant_set(16)
    logs[7].set("seed", str(logs[1].find("seed")["value"])).find("seed")["metadata"]["lineno"] = 3
    assert [(each.rule, each.severity) for each in judged_set(logs)[1]] == [("set-seed", Severity.WARNING)]


def test_a_run_may_log_several_seeds() -> None:
    logs = compliant_set(16)
    repeat(logs[5], "seed")
    repeat(logs[6], "seed", local_rank=1)
    assert judged_set(logs)[1] == []
    repeat(logs[5], "seed", value=logs[1].find("seed")["value"])
    assert fired(judged_set(logs)[1]) == {"record-conflict", "set-seed"}


def test_invalid_seeds_are_not_compared() -> None:
    logs = compliant_set(16)
    for number in (3, 5):
        logs[number].set("seed", "random")
    assert fired(judged_set(logs)[1]) == {"seed"}


def copy_with_another_seed(log: MadeLog, number: int) -> MadeLog:
    return log.copy().set("seed", 999 + number).shift(0, number * 36_000_000)


def test_copies_name_the_first_run() -> None:
    logs = compliant_set(16)
    for number in (4, 6):
        logs[number] = copy_with_another_seed(logs[1], number)
    findings = judged_set(logs)[1]
    assert fired(findings) == {"set-copy"}
    assert [each.file for each in findings if each.rule == "set-copy"] == ["result_4.txt", "result_6.txt"]
    assert all("result_1.txt" in each.message for each in findings if each.rule == "set-copy")


@pytest.mark.parametrize("key", ["train_loss", "eval_accuracy"])
def test_a_copy_with_one_changed_loss_is_found(key: str) -> None:
    logs = compliant_set(16)
    logs[4] = copy_with_another_seed(logs[1], 4)
    logs[4].find(key, 2)["value"] += 1e-6
    assert fired(judged_set(logs)[1], ERROR) == {"set-copy"}


def test_runs_without_losses_are_no_copies() -> None:
    logs = [drop_all(log, "train_loss") for log in compliant_set(16)]
    assert fired(judged_set(logs)[1]) == set()
    logs = [drop_all(log, "eval_accuracy") for log in logs]
    assert fired(judged_set(logs)[1]) == {"record-required", "eval-cadence"}


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


def test_variance_above_the_limit_is_a_warning() -> None:
    logs = compliant_set(16)
    _, before = judged_set(logs)
    assert before == []
    slow_down(logs[0], 80)
    result, findings = judged_set(logs)
    assert fired(findings, Severity.WARNING) == {"variance-limit"} and fired(findings, ERROR) == set()
    (finding,) = (each for each in findings if each.rule == "variance-limit")
    assert "minutes" in finding.message and "steps" not in finding.message
    assert finding.expected == "<= 5 %" and "this project" in finding.citation
    assert result.variance is not None and result.variance.minutes is not None
    assert finding.got == str(round(result.variance.minutes.cv_percent, 3))
    assert fired(judged_set(logs, cv_limit=result.variance.minutes.cv_percent)[1]) == set()


VARYING = [20, 24, 24, 24, 24, 25, 25, 25, 28, 29]


def sample_variance(logs: list[MadeLog]) -> Finding:
    (finding,) = (
        each for each in judged_set(logs)[1] if each.rule == "variance-limit" and "samples of 10" in each.message
    )
    return finding


def test_the_variance_of_samples_is_reported_with_their_quantum() -> None:
    logs = set_with(64, VARYING)
    variance = judged_set(logs)[0].variance
    assert variance is not None and variance.samples is not None
    finding = sample_variance(logs)
    assert "12,288, 4.0 %" in finding.message
    assert finding.got == str(round(variance.samples.cv_percent, 3))
    logs = compliant_set(16, samples_to_target=[96 * step for step in VARYING], division="open", eval_every=96)
    assert "96, 4.0 %" in sample_variance(logs).message
    logs[0] = compliant_log(16, 0, samples_to_target=20 * 112, division="open", eval_every=112)
    assert "steps" not in sample_variance(logs).message


def set_with(gbs: int, steps: list[int]) -> list[MadeLog]:
    """Return ten runs that converge at these evaluations, counted from 1."""
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
def test_above_the_largest_point_no_point_applies(gbs: int) -> None:
    result, findings = judged_set(compliant_set(gbs, learning_rate=1e-3, warmup_steps=192))
    assert fired(findings, ERROR) == {"rcp-missing"}
    assert [(each.expected, each.got) for each in findings if each.rule == "rcp-missing"] == [("16 to 64", str(gbs))]
    assert result.score is not None and not result.score.valid and result.score.normalized_minutes is None


def test_below_the_smallest_point_the_smallest_applies() -> None:
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


def test_every_rule_is_tested() -> None:
    assert rule_ids(sets) == {
        "set-count", "set-alike", "set-seed", "set-copy", "set-invalid-run", "set-not-converged", "variance-limit",
        "rcp-missing", "rcp-pruned", "rcp-full", "rcp-normalization", "set-cadence",
    }  # fmt: skip
