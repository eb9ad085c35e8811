"""Summaries of runs and figures of sets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from compliance.check import Options, check_run
from compliance.findings import Severity, Status
from compliance.judge import judge_set
from compliance.run import common_eval_interval
from tests.support.judging import Change, drop_rates, fired, judged, judged_after, judged_set, set_value
from tests.support.made_logs import MadeLog, compliant_log, compliant_set

INTERVAL = 12_288

# --- one run


def test_the_summary_of_a_run() -> None:
    log = compliant_log(64, 4, learning_rate=1.2e-3, warmup_steps=200)
    log.set("submission_org", "An Organisation")
    summary = judged(log, "a name").summary
    evaluations = log.all("eval_accuracy")
    losses = [record["value"] for record in evaluations]
    start, stop, passed = log.find("run_start"), log.find("run_stop"), evaluations[-1]
    assert (summary.file, summary.system, summary.target) == ("a name", None, 3.34)
    assert (summary.seed, summary.global_batch_size) == (log.find("seed")["value"], 64)
    assert (summary.learning_rate, summary.warmup_steps) == (1.2e-3, 200)
    assert (summary.first_eval_loss, summary.final_eval_loss) == (losses[0], losses[-1])
    assert summary.start_ms == start["time_ms"]
    assert summary.samples_to_target == stop["metadata"]["samples_count"]
    assert summary.minutes == pytest.approx((stop["time_ms"] - start["time_ms"]) / 60_000)
    assert summary.minutes_to_target == pytest.approx((passed["time_ms"] - start["time_ms"]) / 60_000)
    assert (summary.platform, summary.division, summary.organisation) == ("sys_1x8", "closed", "An Organisation")
    assert [(each.loss, each.time_ms, each.samples) for each in summary.evaluations] == [
        (each["value"], each["time_ms"], each["metadata"]["samples_count"]) for each in evaluations
    ]


def test_the_first_evaluation_that_passes_meets_the_target() -> None:
    log = compliant_log(64).set("eval_accuracy", 0.0, 3).set("eval_accuracy", 3.34, 7).set("eval_accuracy", 3.1, 9)
    summary = judged(log).summary
    assert summary.samples_to_target == 8 * INTERVAL
    milliseconds = log.find("eval_accuracy", 7)["time_ms"] - log.find("run_start")["time_ms"]
    assert summary.minutes_to_target == pytest.approx(milliseconds / 60_000)


def test_the_summary_of_a_file_without_records() -> None:
    found = judged(b"nothing")
    assert fired(found.findings) == {"file-empty"}
    known = {name: value for name, value in dataclasses.asdict(found.summary).items() if value not in (None, (), {})}
    assert known.pop("train_loss") == known.pop("logged_learning_rates") == known.pop("expected_learning_rates")
    assert known == {"file": "result_0.txt", "status": Status.INVALID, "target": 3.34}


@pytest.mark.parametrize("value", [None, 5, ["closed"], {"a": 1}])
def test_names_that_are_no_text_are_none(value: object) -> None:
    log = compliant_log(64)
    for key in ("submission_org", "submission_platform", "submission_division"):
        log.set(key, value)
    summary = judged(log).summary
    assert (summary.platform, summary.division, summary.organisation) == (None, None, None)


def test_a_success_without_readable_evaluations_is_invalid() -> None:
    log = compliant_log(64)
    for record in log.all("eval_accuracy"):
        record["value"] = math.nan
    found = judged(log)
    assert fired(found.findings) == {"eval-loss"} and found.summary.status is Status.INVALID
    assert (found.summary.samples_to_target, found.summary.final_eval_loss) == (None, None)


@pytest.mark.parametrize("convention", ["after", "before"])
def test_expected_rates_follow_the_reading_that_fits(convention: str) -> None:
    summary = judged(compliant_log(16, convention=convention)).summary
    # The ends of the cosine differ by 1e-9 and more after some thousand steps.
    assert summary.expected_learning_rates.values == pytest.approx(summary.logged_learning_rates.values, rel=1e-13)
    assert summary.expected_learning_rates.samples == summary.logged_learning_rates.samples


@pytest.mark.parametrize("change", [set_value("global_batch_size", 0), set_value("opt_base_learning_rate", None)])
def test_without_a_schedule_no_rates_are_expected(change: Change) -> None:
    assert judged_after(change, gbs=64).summary.expected_learning_rates.values == ()


def test_curves_hold_finite_values_only() -> None:
    log = compliant_log(64)
    for n, value in enumerate((math.inf, None, "x")):
        log.set("train_loss", value, n)
    log.find("train_loss", 3)["metadata"].pop("lr")
    log.find("train_loss", 4)["metadata"]["lr"] = "x"
    log.find("train_loss", 5)["metadata"].pop("samples_count")
    log.find("train_loss", 6)["metadata"]["samples_count"] = math.nan
    summary = judged(log).summary
    records = log.all("train_loss")
    losses = [each for n, each in enumerate(records) if n not in (0, 1, 2, 5, 6)]
    rates = [each for n, each in enumerate(records) if n not in (3, 4, 5, 6)]
    assert list(summary.train_loss.values) == [each["value"] for each in losses]
    assert list(summary.train_loss.samples) == [each["metadata"]["samples_count"] for each in losses]
    assert list(summary.logged_learning_rates.values) == [each["metadata"]["lr"] for each in rates]
    assert len(summary.expected_learning_rates.values) == len(rates)
    bare = judged(drop_rates(log)).summary
    assert bare.logged_learning_rates.values == bare.expected_learning_rates.values == ()


@pytest.mark.parametrize(("count", "points"), [(999, 999), (1000, 1000), (1001, 501), (2000, 1000), (2001, 667)])
def test_a_curve_has_at_most_a_thousand_points(count: int, points: int) -> None:
    log = compliant_log(64)
    place, loss = log.index("train_loss"), log.find("train_loss")
    log.events = [each for each in log.events if each["key"] != "train_loss"]
    log.events[place:place] = [
        {**loss, "metadata": {**loss["metadata"], "samples_count": 64 * number}} for number in range(1, count + 1)
    ]
    summary = judged(log).summary
    assert len(summary.train_loss.samples) == points
    assert summary.train_loss.samples[0] == 64


def test_the_phases_of_a_run() -> None:
    log = compliant_log(64)
    expected = [
        (name, start["time_ms"], stop["time_ms"])
        for name, key in {"init": "init", "training": "block", "evaluation": "eval"}.items()
        for start, stop in zip(log.all(f"{key}_start"), log.all(f"{key}_stop"), strict=True)
    ]
    phases = [(phase.name, phase.start_ms, phase.stop_ms) for phase in judged(log).summary.phases]
    assert sorted(phases) == sorted(expected)
    assert [start for _, start, _ in phases] == sorted(start for _, start, _ in expected)
    assert len(phases) == 1 + 25 + 25


def test_phases_without_a_matching_start_or_stop() -> None:
    log = compliant_log(64)
    # The third block has no stop and lasts until that of the fourth. The second evaluation has no start.
    dropped = log.find("block_stop", 2)
    log.drop("block_stop", 2).drop("eval_start", 1)
    phases = judged(log).summary.phases
    blocks = [phase for phase in phases if phase.name == "training"]
    assert (len(blocks), len([phase for phase in phases if phase.name == "evaluation"])) == (24, 24)
    longest = max(blocks, key=lambda phase: phase.stop_ms - phase.start_ms)
    assert longest.start_ms < dropped["time_ms"] < longest.stop_ms


# --- several runs


def test_the_score_of_a_set() -> None:
    result, _ = judged_set(compliant_set(64))
    score = result.score
    assert score is not None and score.valid
    by_minutes = sorted(result.runs, key=lambda run: run.minutes or 0)
    assert score.dropped == (by_minutes[0].file, by_minutes[-1].file)
    assert score.window == tuple(f"result_{number}.txt" for number in range(10))
    for figure, values in (
        (score.olympic_minutes, [run.minutes for run in result.runs]),
        (score.olympic_minutes_to_target, [run.minutes_to_target for run in result.runs]),
        (score.olympic_samples, [run.samples_to_target for run in result.runs]),
    ):
        kept = sorted(value for value in values if value is not None)[1:-1]
        assert figure == pytest.approx(sum(kept) / 8)
    assert score.olympic_minutes != score.olympic_minutes_to_target
    assert result.rcp is not None and result.rcp.pruned.submission_mean == score.olympic_samples


def test_the_window_is_in_order_of_start_whatever_the_files_are_named() -> None:
    logs = compliant_set(64)
    logs[2].drop("run_start")
    result, _ = judged_set(list(reversed(logs)))
    assert result.score is not None
    # result_7 has no start, and comes last.
    assert result.score.window == tuple(f"result_{number}.txt" for number in (9, 8, 6, 5, 4, 3, 2, 1, 0, 7))


def test_of_more_runs_only_those_with_a_start_are_in_a_window() -> None:
    logs = compliant_set(64, runs=11)
    logs[0].drop("run_start")
    result, _ = judged_set(logs)
    assert result.score is not None and not result.score.valid
    assert result.score.window == tuple(f"result_{number}.txt" for number in range(1, 11))
    logs[1].drop("run_start")
    result, _ = judged_set(logs)
    assert result.score is not None and len(result.score.window) == 11


@pytest.mark.parametrize(("count", "is_scored"), [(0, False), (1, False), (2, False), (3, True)])
def test_three_runs_have_figures(count: int, is_scored: bool) -> None:
    runs = [judged(log, f"{n}") for n, log in enumerate(compliant_set(64)[:count])]
    assert fired(judge_set(runs, "6.1.0")[1]) >= {"set-count"}
    result, findings = judge_set(runs, "6.1.0", name="x")
    assert "set-count" not in fired(findings)  # a rule on trees reports it
    assert result.name == "x" and len(result.runs) == count
    assert (result.score is not None) is is_scored
    assert (result.variance is not None) is (result.rcp is not None) is (count > 0)
    if result.rcp is not None:
        assert (result.rcp.pruned.submission_mean is not None) is is_scored


def test_the_batch_size_of_a_set_is_the_most_common_one() -> None:
    logs = compliant_set(64)
    for number, size in ((0, 32), (1, 32), (2, -5), (3, 0), (4, None)):
        logs[number].set("global_batch_size", size)
    result, _ = judged_set(logs)
    assert result.rcp is not None and result.rcp.global_batch_size == 64
    result, _ = judged_set([log.set("global_batch_size", -5) for log in logs])
    assert result.rcp is None
    assert result.variance is not None and result.variance.samples is not None
    assert result.variance.samples.quantum is None


# --- the interval of evaluations


def open_set(
    interval: int, gbs: int = 16, evaluations: Sequence[int] = (19, 20, 21, 20, 19, 20, 21, 20, 20, 20)
) -> list[MadeLog]:
    """Make runs of the open division with this interval, each with a number of evaluations."""
    samples = [interval * count for count in evaluations]
    return compliant_set(gbs, runs=len(samples), samples_to_target=samples, division="open", eval_every=interval)


def interval_of(logs: Sequence[MadeLog]) -> tuple[int | None, str]:
    """Return the interval of a judged set and the definition of its variance."""
    result, _ = judged_set(logs)
    assert result.variance is not None and result.variance.samples is not None
    assert result.variance.samples.quantum == result.eval_interval_samples
    return result.eval_interval_samples, result.variance.definition


@pytest.mark.parametrize(("gbs", "interval"), [(16, 12_288), (24, 12_288), (40, 12_320), (64, 12_288), (72, 12_312)])
@pytest.mark.parametrize("division", ["closed", "open"])
def test_samples_move_by_the_interval_of_the_rules(gbs: int, interval: int, division: str) -> None:
    found, definition = interval_of(compliant_set(gbs, division=division))
    assert found == interval
    assert f"CEIL(12288/GBS) x GBS = {interval:,}" in definition


@pytest.mark.parametrize(("gbs", "interval"), [(16, 96), (8, 40), (16, 12_304)])
def test_samples_of_an_open_set_move_by_the_interval_of_its_evaluations(gbs: int, interval: int) -> None:
    logs = open_set(interval, gbs)
    assert fired(judged_set(logs)[1]) == set()
    found, definition = interval_of(logs)
    assert found == interval and f"{interval:,}" in definition and "CEIL" not in definition


def test_a_closed_set_with_other_evaluations_is_judged_by_the_interval_of_the_rules() -> None:
    logs = [log.set("submission_division", "closed") for log in open_set(96)]
    found, definition = interval_of(logs)
    assert found == INTERVAL and "CEIL(12288/GBS)" in definition
    assert "eval-cadence" in fired(judged_set(logs)[1])


def evaluated_at(log: MadeLog, samples: int, n: int) -> MadeLog:
    log.find("eval_accuracy", n)["metadata"]["samples_count"] = samples
    return log


UNDECIDED: dict[str, list[MadeLog]] = {
    "runs of two intervals": [*open_set(96, evaluations=[20] * 9), *open_set(112, evaluations=[20])],
    "one interval a multiple of the other": [*open_set(96, evaluations=[20] * 9), *open_set(192, evaluations=[20])],
    "closed runs of two intervals": [*compliant_set(16, runs=9), *compliant_set(40, runs=1)],
    "an evaluation off its own grid": [evaluated_at(open_set(96)[0], 200, 1), *open_set(96)[1:]],
    "first evaluations before training": [evaluated_at(log, 0, 0) for log in open_set(96)],
    "implausible interval": [evaluated_at(log, 10**12, 0) for log in open_set(96, evaluations=[1] * 10)],
    "implausible batches": [log.set("global_batch_size", 10**308) for log in compliant_set(16)],
}


@pytest.mark.parametrize("case", UNDECIDED)
def test_runs_without_a_common_interval(case: str) -> None:
    assert interval_of(UNDECIDED[case])[0] is None


def test_a_run_without_evaluations_does_not_change_the_interval() -> None:
    def drop_evaluations(log: MadeLog) -> MadeLog:
        log.events = [record for record in log.events if not record["key"].startswith("eval_")]
        return log

    logs = open_set(96)
    drop_evaluations(logs[0])
    assert interval_of(logs)[0] == 96
    result, _ = judged_set([drop_evaluations(log) for log in logs])
    assert result.eval_interval_samples is None and result.variance is not None and result.variance.samples is None
    assert common_eval_interval([]) is None


@pytest.mark.parametrize(("log", "interval"), [(open_set(96, evaluations=[20])[0], 96), (compliant_log(40), 12_320)])
def test_one_run_alone_has_an_interval(tmp_path: Path, log: MadeLog, interval: int) -> None:
    (found,) = check_run(log.write(tmp_path / "result_0.txt"), Options(official=False)).sets
    assert found.eval_interval_samples == interval


# --- runs that do not count


@pytest.mark.parametrize(("samples", "counted"), [(0, 9), (-64, 9), (1, 10)])
def test_a_pass_at_no_samples_is_no_convergence(samples: int, counted: int) -> None:
    logs = compliant_set(64)
    logs[3] = evaluated_at(compliant_log(64, 3).set("eval_accuracy", 3.0), samples, 0)
    result, _ = judged_set(logs)
    assert result.variance is not None and result.variance.samples is not None
    assert result.variance.minutes is not None
    assert result.variance.samples.runs == result.variance.minutes.runs == counted


def test_one_open_run_leaves_a_set_without_reference_points() -> None:
    logs = compliant_set(64)
    logs[3].set("submission_division", "open")
    assert judged_set(logs)[0].rcp is None
    logs[3].set("submission_division", "else")
    assert judged_set(logs)[0].rcp is not None


def test_an_aborted_run_that_passed_is_the_slowest() -> None:
    logs = compliant_set(64)
    logs[3].find("run_stop")["metadata"]["status"] = "aborted"
    result, findings = judged_set(logs)
    assert fired(findings) == {"aborted-pass"} == fired(findings, Severity.WARNING)
    assert fired(findings, Severity.INFO) >= {"set-not-converged"}
    assert result.score is not None and result.score.valid and result.score.dropped[1] == "result_3.txt"
    assert result.variance is not None and result.variance.minutes is not None
    assert result.variance.minutes.runs == 9


def test_the_ruleset_selects_the_reference_points(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def remember(batch: int, mean: float | None, ruleset: str) -> None:
        calls.append((batch, ruleset))

    monkeypatch.setattr("compliance.judge.rcp.check_convergence", remember)
    for ruleset in ("6.0.0", "6.1.0"):
        judge_set([judged(log) for log in compliant_set(64)[:3]], ruleset)
    assert calls == [(64, "6.0.0"), (64, "6.1.0")]
