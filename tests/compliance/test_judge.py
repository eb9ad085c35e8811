"""What findings, runs and sets are made of: how a rule's problems, a log's records and ten runs become a report."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from compliance import check, cli
from compliance.check import Options, check_package, check_run, check_set, unreadable_report
from compliance.cli import ExitCode
from compliance.findings import Finding, OfficialResult, Severity, Status, Verdict
from compliance.json_values import finite_float, whole_number
from compliance.judge import judge_set, unverifiable_findings
from compliance.log_files import InputError, find_logs
from compliance.official import OfficialToolsError
from compliance.rcp import RcpDataError
from compliance.records import Log, Record
from compliance.rules.rule import ABSENT, Problem, Rule, quote_json, rule
from compliance.run import Machine, Run, common_eval_interval
from compliance.submission import read_submission
from tests.support.commands import command
from tests.support.judging import fired, judged, judged_set
from tests.support.made_logs import MadeLog, compliant_log, compliant_set, system_description, write_set, write_tree

Capture = pytest.CaptureFixture[str]

# ---------- one rule


def found_by(*problems: Problem, file: str | None = "x.txt") -> list[Finding]:
    @rule("test-rule", Severity.WARNING, "nowhere")
    def problematic(_: None) -> Iterator[Problem]:
        """What   it asks,
        on two lines.
        """
        yield from problems

    assert isinstance(problematic, Rule)
    assert problematic.description == "What it asks, on two lines."
    assert problematic.divisions == {"closed", "open"}
    return list(problematic.judge(None, file))


def test_a_problem_becomes_a_finding() -> None:
    plain, other = found_by(
        Problem("message", 3, expected=0, got=None), Problem("other", file="y.txt", severity=Severity.INFO)
    )
    assert plain == Finding("test-rule", Severity.WARNING, "message", "x.txt", 3, "0", "null", "nowhere")
    assert other == Finding("test-rule", Severity.INFO, "other", "y.txt", None, None, None, "nowhere")
    assert found_by(Problem("message"), file=None)[0].file is None


@pytest.mark.parametrize(("count", "more"), [(0, None), (1, None), (20, None), (21, 1), (50, 30)])
def test_past_twenty_problems_the_rest_is_counted(count: int, more: int | None) -> None:
    found = found_by(*(Problem(f"message {number}", number) for number in range(count)))
    assert [finding.line for finding in found[:20]] == list(range(min(count, 20)))
    assert [finding.message for finding in found[20:]] == (
        [f"{more} more findings of this kind are not listed"] if more else []
    )
    assert all(finding.file == "x.txt" and finding.severity is Severity.WARNING for finding in found)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x", '"x"'), (None, "null"), (True, "true"), (3.34, "3.34"), (math.nan, "NaN"), ([1, "a"], '[1, "a"]'),
        ("é\n", '"\\u00e9\\n"'), ("y" * 98, '"' + "y" * 98 + '"'), ("y" * 99, '"' + "y" * 96 + "..."),
        ({1, 2}, '"{1, 2}"'),
    ],
)  # fmt: skip
def test_a_value_is_quoted_as_json_on_one_line(value: object, shown: str) -> None:
    assert quote_json(value) == shown
    assert found_by(Problem("message", got=value))[0].got == shown
    assert found_by(Problem("message", got=ABSENT))[0].got is None


def test_what_no_log_proves_is_said_and_never_fails() -> None:
    found = unverifiable_findings()
    assert [finding.rule for finding in found] == [
        "unverifiable-model", "unverifiable-data", "unverifiable-cache", "unverifiable-optimizer",
    ]  # fmt: skip
    assert all(finding.severity is Severity.UNVERIFIABLE and finding.file is None for finding in found)


# ---------- one log, read as a run


@pytest.mark.parametrize(
    ("value", "real", "integer"),
    [
        (16, 16.0, 16), (16.0, 16.0, 16), (0, 0.0, 0), (-3, -3.0, -3), (16.5, 16.5, None), (1e300, 1e300, int(1e300)),
        (2**64 - 1, float(2**64), 2**64 - 1), (10**400, None, None), (math.nan, None, None), (-math.inf, None, None),
        (True, None, None), (False, None, None), ("16", None, None), (None, None, None), ([16], None, None),
    ],
    ids=lambda value: str(value)[:8],
)  # fmt: skip
def test_numbers_are_those_of_json(value: object, real: float | None, integer: int | None) -> None:
    assert finite_float(value) == real
    assert whole_number(value) == integer and type(whole_number(value)) in (int, type(None))


def run_of(*records: tuple[float, str, str, object, int | None, dict[str, Any]]) -> Run:
    """A run of such times, keys, events, values, ranks and metadata."""
    return Run(
        Log(
            "x.txt",
            [
                Record(line, rank, 1.79e12 + time_ms, event_type, key, value, metadata)
                for line, (time_ms, key, event_type, value, rank, metadata) in enumerate(records, 1)
            ],
        ),
        "6.1.0",
    )


@pytest.mark.parametrize(
    ("second", "distinct"),
    [
        ((0, "k", "P", 1, None, {}), False),
        ((1000, "k", "P", 1, None, {}), False),
        ((1001, "k", "P", 1, None, {}), True),
        ((-1000, "k", "P", 1, None, {}), False),
        ((-1001, "k", "P", 1, None, {}), True),
        ((0, "k", "P", 1, 3, {}), False),
        ((0, "k", "P", 1, None, {"file": "y", "lineno": 5}), False),
        ((0, "other", "P", 1, None, {}), True),
        ((0, "k", "END", 1, None, {}), True),
        ((0, "k", "P", 1.0, None, {}), True),
        ((0, "k", "P", "1", None, {}), True),
        ((0, "k", "P", 1, None, {"samples_count": 5}), True),
    ],
)
def test_a_record_says_something_new_or_the_same_again(
    second: tuple[float, str, str, object, int | None, dict[str, Any]], distinct: bool
) -> None:
    run = run_of((0, "k", "P", 1, None, {"file": "x", "lineno": 1}), second)
    assert len(run.records) == (2 if distinct else 1)


def test_a_record_is_compared_with_the_last_that_was_new() -> None:
    times = [0, 900, 1500, 2400, 2600]
    run = run_of(*((time, "k", "P", 1, None, {}) for time in times))
    assert [record.line for record in run.all("k")] == [1, 3, 5]


@pytest.mark.parametrize(("rank", "later_ms", "starts"), [(None, 0, 1), (None, 1, 2), (1, 1000, 1), (1, 1001, 2)])
def test_the_clock_starts_once_or_once_a_rank(rank: int | None, later_ms: int, starts: int) -> None:
    run = run_of((0, "run_start", "START", None, 0, {}), (later_ms, "run_start", "START", None, rank, {}))
    assert len(run.all("run_start")) == starts
    assert run.run_start is not None and run.run_start.line == 1


def test_the_first_record_of_a_key_counts() -> None:
    run = run_of((0, "seed", "P", 7, None, {}), (0, "seed", "P", 8, None, {}))
    first = run.first("seed")
    assert first is not None and (first.line, run.value("seed"), run.count("seed")) == (1, 7, 7)
    assert (run.first("k"), run.value("k"), run.count("k"), run.number("k"), list(run.all("k"))) == (None,) * 4 + ([],)


def test_evaluations_are_those_that_can_be_read() -> None:
    log = compliant_log(64)
    log.set("eval_accuracy", "low", 2)
    log.find("eval_accuracy", 3)["metadata"]["samples_count"] = "many"
    log.find("eval_accuracy", 4)["metadata"]["samples_count"] = 1.5
    log.set("eval_accuracy", -1.0, 5)
    found = judged(log)
    assert [each.samples // 12_288 for each in found.summary.evaluations] == [1, 2, *range(6, 26)]
    assert found.run.passing_evaluation is not None and found.run.passing_evaluation.samples == 25 * 12_288
    assert [each.line for each in found.summary.evaluations][:2] == [log.index("eval_accuracy", n) + 1 for n in (0, 1)]


def test_the_first_evaluation_that_passes_is_the_target_s() -> None:
    log = compliant_log(64).set("eval_accuracy", 0.0, 3).set("eval_accuracy", 3.34, 7).set("eval_accuracy", 3.1, 9)
    summary = judged(log).summary
    assert summary.samples_to_target == 8 * 12_288
    passed, start, stop = (
        log.find(key, n)["time_ms"] for key, n in (("eval_accuracy", 7), ("run_start", 0), ("run_stop", 0))
    )
    assert summary.minutes_to_target == pytest.approx((passed - start) / 60_000)
    assert summary.minutes == pytest.approx((stop - start) / 60_000)


# ---------- one run, judged and summed up


def test_the_summary_of_a_run() -> None:
    log = compliant_log(64, 4, learning_rate=1.2e-3, warmup_steps=200)
    log.set("submission_org", "An Organisation")
    summary = judged(log, "a name").summary
    losses = [record["value"] for record in log.all("eval_accuracy")]
    assert (summary.file, summary.system, summary.target) == ("a name", None, 3.34)
    assert (summary.learning_rate, summary.warmup_steps) == (1.2e-3, 200)
    assert (summary.first_eval_loss, summary.final_eval_loss) == (losses[0], losses[-1])
    assert summary.start_ms == log.find("run_start")["time_ms"]
    assert (summary.platform, summary.division, summary.organisation) == ("sys_1x8", "closed", "An Organisation")
    assert [each.loss for each in summary.evaluations] == losses
    assert [each.time_ms for each in summary.evaluations] == [each["time_ms"] for each in log.all("eval_accuracy")]


def test_the_summary_of_what_is_no_run() -> None:
    found = judged(b"nothing")
    assert fired(found.findings) == {"file-empty"}
    known = {name: value for name, value in dataclasses.asdict(found.summary).items() if value not in (None, ())}
    assert known.pop("train_loss") == known.pop("logged_learning_rates") == known.pop("expected_learning_rates")
    assert known == {"file": "result_0.txt", "status": Status.INVALID, "target": 3.34}


@pytest.mark.parametrize("value", [None, 5, ["closed"], {"a": 1}])
def test_names_that_are_no_words_are_none(value: object) -> None:
    log = compliant_log(64)
    for key in ("submission_org", "submission_platform", "submission_division"):
        log.set(key, value)
    summary = judged(log).summary
    assert (summary.platform, summary.division, summary.organisation) == (None, None, None)


def test_findings_name_the_file_and_status_follows_their_weight() -> None:
    warned = compliant_log(64).set("submission_status", "")
    assert [each.file for each in judged(warned, "a name").findings] == ["a name"]
    assert judged(warned).summary.status is Status.CONVERGED
    assert judged(compliant_log(64).set("cache_clear", False)).summary.status is Status.INVALID
    assert judged(compliant_log(64, converged=False)).summary.status is Status.NOT_CONVERGED
    assert judged(compliant_log(64, converged=False), in_set=False).summary.status is Status.INVALID


def test_a_success_whose_evaluations_cannot_be_read_did_not_converge() -> None:
    log = compliant_log(64)
    for record in log.all("eval_accuracy"):
        record["value"] = math.nan
    found = judged(log)
    assert fired(found.findings) == {"eval-loss"} and found.summary.status is Status.INVALID
    assert (found.summary.samples_to_target, found.summary.final_eval_loss) == (None, None)


def test_expected_learning_rates_are_those_of_the_reading_that_fits() -> None:
    for convention in ("after", "before"):
        summary = judged(compliant_log(16, convention=convention)).summary
        # The ends of the cosine differ by 1e-9 and more after some thousand steps.
        assert summary.expected_learning_rates.values == pytest.approx(summary.logged_learning_rates.values, rel=1e-13)
        assert summary.expected_learning_rates.samples == summary.logged_learning_rates.samples
    assert judged(compliant_log(64).set("global_batch_size", 0)).summary.expected_learning_rates.values == ()
    assert judged(compliant_log(64).set("opt_base_learning_rate", None)).summary.expected_learning_rates.values == ()


def test_curves_hold_what_can_be_drawn() -> None:
    log = compliant_log(64)
    for n, changes in enumerate(({"value": math.inf}, {"value": None}, {"value": "x"})):
        log.find("train_loss", n).update(changes)
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
    for record in records:
        record["metadata"].pop("lr", None)
    bare = judged(log).summary
    assert bare.logged_learning_rates.values == bare.expected_learning_rates.values == ()


@pytest.mark.parametrize(("count", "points"), [(999, 999), (1000, 1000), (1001, 501), (2000, 1000), (2001, 667)])
def test_a_curve_has_at_most_a_thousand_points(count: int, points: int) -> None:
    log = compliant_log(64)
    place = log.index("train_loss")
    some = log.find("train_loss")
    log.events = [each for each in log.events if each["key"] != "train_loss"]
    at = some["metadata"]
    log.events[place:place] = [
        {**some, "metadata": {**at, "samples_count": 64 * number}} for number in range(1, count + 1)
    ]
    summary = judged(log).summary
    assert len(summary.train_loss.samples) == points
    assert summary.train_loss.samples[0] == 64


def test_the_phases_of_a_run() -> None:
    log = compliant_log(64)
    names = {"init": "init", "training": "block", "evaluation": "eval"}
    expected = [
        (name, start["time_ms"], stop["time_ms"])
        for name, key in names.items()
        for start, stop in zip(log.all(f"{key}_start"), log.all(f"{key}_stop"), strict=True)
    ]
    phases = [(phase.name, phase.start_ms, phase.stop_ms) for phase in judged(log).summary.phases]
    assert sorted(phases) == sorted(expected)
    assert [start for _, start, _ in phases] == sorted(start for _, start, _ in expected)
    assert len(phases) == 1 + 25 + 25


def test_phases_that_do_not_pair_up() -> None:
    log = compliant_log(64)
    # The fourth block starts twice and so does not stop on its own, the second evaluation stops without a start.
    dropped = log.find("block_stop", 2)
    log.drop("block_stop", 2).drop("eval_start", 1)
    phases = judged(log).summary.phases
    assert len([phase for phase in phases if phase.name == "evaluation"]) == 24
    blocks = [phase for phase in phases if phase.name == "training"]
    assert len(blocks) == 24
    longest = max(blocks, key=lambda phase: phase.stop_ms - phase.start_ms)
    assert longest.start_ms < dropped["time_ms"] < longest.stop_ms


# ---------- several runs


def test_the_score_of_a_set() -> None:
    logs = compliant_set(64)
    result, _ = judged_set(logs)
    score = result.score
    assert score is not None and score.valid
    by_minutes = sorted(result.runs, key=lambda run: run.minutes or 0)
    assert score.dropped == (by_minutes[0].file, by_minutes[-1].file)
    assert score.window == tuple(f"result_{number}.txt" for number in range(10))
    for figure, each in (
        (score.olympic_minutes, [run.minutes for run in result.runs]),
        (score.olympic_minutes_to_target, [run.minutes_to_target for run in result.runs]),
        (score.olympic_samples, [run.samples_to_target for run in result.runs]),
    ):
        kept = sorted(value for value in each if value is not None)[1:-1]
        assert figure == pytest.approx(sum(kept) / 8)
    assert score.olympic_minutes != score.olympic_minutes_to_target
    assert result.rcp is not None and result.rcp.pruned.submission_mean == score.olympic_samples


def test_the_window_is_in_order_of_start_however_the_logs_are_named() -> None:
    logs = compliant_set(64)
    logs[2].drop("run_start")
    result, _ = judged_set(list(reversed(logs)))
    assert result.score is not None
    # result_7 has no start, and comes last.
    assert result.score.window == tuple(f"result_{number}.txt" for number in (9, 8, 6, 5, 4, 3, 2, 1, 0, 7))


def test_runs_without_a_start_are_in_no_window_of_more() -> None:
    logs = compliant_set(64, runs=11)
    logs[0].drop("run_start")
    result, _ = judged_set(logs)
    assert result.score is not None and not result.score.valid
    assert result.score.window == tuple(f"result_{number}.txt" for number in range(1, 11))
    logs[1].drop("run_start")
    result, _ = judged_set(logs)
    assert result.score is not None and len(result.score.window) == 11


@pytest.mark.parametrize(("count", "scored"), [(0, False), (1, False), (2, False), (3, True)])
def test_three_runs_have_figures(count: int, scored: bool) -> None:
    result, findings = judge_set(
        [judged(log, f"{n}") for n, log in enumerate(compliant_set(64)[:count])], "6.1.0", name="x"
    )
    assert fired(findings) >= {"set-count"}
    assert result.name == "x" and len(result.runs) == count
    assert (result.score is not None) is scored
    assert (result.variance is not None) is (count > 0)
    assert (result.rcp is not None) is (count > 0)
    if result.rcp is not None:
        assert (result.rcp.pruned.submission_mean is not None) is scored


def test_the_batch_size_of_a_set_is_that_of_most() -> None:
    logs = compliant_set(64)
    for number, size in ((0, 32), (1, 32), (2, -5), (3, 0), (4, None)):
        logs[number].set("global_batch_size", size)
    result, _ = judged_set(logs)
    assert result.rcp is not None and result.rcp.global_batch_size == 64
    for log in logs:
        log.set("global_batch_size", -5)
    result, _ = judged_set(logs)
    assert result.rcp is None
    assert result.variance is not None and result.variance.samples is not None
    assert result.variance.samples.quantum is None


def open_set(
    every: int, gbs: int = 16, steps: Sequence[int] = (19, 20, 21, 20, 19, 20, 21, 20, 20, 20)
) -> list[MadeLog]:
    """Runs of the open division, with an evaluation every so many samples, that take so many of them to the target."""
    wanted = [every * count for count in steps]
    return compliant_set(gbs, runs=len(wanted), samples_to_target=wanted, division="open", eval_every=every)


def stated_step(logs: Sequence[MadeLog]) -> tuple[int | None, str]:
    """The step that a judged set states, everywhere the same; and the sentence that says so, "" without one."""
    result, _ = judged_set(logs)
    assert result.variance is not None and result.variance.samples is not None
    assert result.variance.samples.quantum == result.eval_interval_samples
    return result.eval_interval_samples, result.variance.definition.partition("MLPerf has none.")[2].strip()


@pytest.mark.parametrize(("gbs", "step"), [(16, 12_288), (24, 12_288), (40, 12_320), (64, 12_288), (72, 12_312)])
@pytest.mark.parametrize("division", ["closed", "open"])
def test_samples_move_by_the_interval_of_the_rules(gbs: int, step: int, division: str) -> None:
    logs = compliant_set(gbs, division=division)
    found, sentence = stated_step(logs)
    assert found == step
    assert sentence.startswith(f"Samples move in steps of CEIL(12288/GBS) x GBS = {step:,}, which is ")


@pytest.mark.parametrize(("gbs", "every"), [(16, 96), (8, 40), (16, 12_304)])
def test_samples_of_an_open_set_move_by_the_interval_of_its_evaluations(gbs: int, every: int) -> None:
    logs = open_set(every, gbs)
    assert fired(judged_set(logs)[1]) == set()
    stated = f"Samples move in steps of {every:,}, the evaluation interval of these logs, which is 5.0 % of their mean"
    assert stated_step(logs) == (every, f"{stated}: their CV is quantised.")


def test_a_closed_set_that_evaluates_at_other_times_is_judged_by_the_interval_of_the_rules() -> None:
    logs = [log.set("submission_division", "closed") for log in open_set(96)]
    step, sentence = stated_step(logs)
    assert step == 12_288 and "CEIL(12288/GBS)" in sentence
    assert "eval-cadence" in fired(judged_set(logs)[1])


def without_evaluations(log: MadeLog) -> MadeLog:
    log.events = [record for record in log.events if not record["key"].startswith("eval_")]
    return log


def evaluated_at(log: MadeLog, samples: int, n: int) -> MadeLog:
    log.find("eval_accuracy", n)["metadata"]["samples_count"] = samples
    return log


UNDECIDED: dict[str, list[MadeLog]] = {
    "runs of two intervals": [*open_set(96, steps=[20] * 9), *open_set(112, steps=[20])],
    "one interval a multiple of the other": [*open_set(96, steps=[20] * 9), *open_set(192, steps=[20])],
    "closed runs of two intervals": [*compliant_set(16, runs=9), *compliant_set(40, runs=1)],
    "an evaluation off its own grid": [evaluated_at(open_set(96)[0], 200, 1), *open_set(96)[1:]],
    "first evaluations before training": [evaluated_at(log, 0, 0) for log in open_set(96)],
    "absurd": [evaluated_at(log, 10**12, 0) for log in open_set(96, steps=[1] * 10)],
    "absurd batches": [log.set("global_batch_size", 10**308) for log in compliant_set(16)],
}


@pytest.mark.parametrize("case", UNDECIDED)
def test_no_step_is_stated_where_the_runs_show_none(case: str) -> None:
    assert stated_step(UNDECIDED[case]) == (None, "")


def test_a_run_that_never_evaluated_leaves_the_step_known() -> None:
    logs = open_set(96)
    without_evaluations(logs[0])
    assert stated_step(logs)[0] == 96
    result, _ = judged_set([without_evaluations(log) for log in logs])
    assert result.eval_interval_samples is None and result.variance is not None and result.variance.samples is None
    assert common_eval_interval([]) is None


@pytest.mark.parametrize(("log", "step"), [(open_set(96, steps=[20])[0], 96), (compliant_log(40), 12_320)])
def test_one_run_alone_has_a_step(tmp_path: Path, log: MadeLog, step: int) -> None:
    (found,) = check_run(log.write(tmp_path / "result_0.txt"), Options(official=False)).sets
    assert found.eval_interval_samples == step


def test_a_run_that_passes_at_no_samples_has_no_samples_to_target() -> None:
    logs = compliant_set(64)
    for samples, counted in ((0, 9), (-64, 9), (1, 10)):
        logs[3] = compliant_log(64, 3).set("eval_accuracy", 3.0)
        logs[3].find("eval_accuracy")["metadata"]["samples_count"] = samples
        result, _ = judged_set(logs)
        assert result.variance is not None and result.variance.samples is not None
        assert result.variance.samples.runs == counted
        assert result.variance.minutes is not None and result.variance.minutes.runs == counted


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
    assert fired(findings) == set()
    assert fired(findings, Severity.INFO) >= {"set-not-converged"}
    assert result.score is not None and result.score.valid and result.score.dropped[1] == "result_3.txt"
    assert result.variance is not None and result.variance.minutes is not None
    assert result.variance.minutes.runs == 9


def test_a_set_of_any_ruleset_is_tested_by_its_own_points(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def remember(batch: int, mean: float | None, ruleset: str) -> None:
        asked.append((batch, mean, ruleset))

    monkeypatch.setattr("compliance.judge.rcp.check_convergence", remember)
    for ruleset in ("6.0.0", "6.1.0"):
        judge_set([judged(log) for log in compliant_set(64)[:3]], ruleset)
    assert [(batch, ruleset) for batch, _, ruleset in asked] == [(64, "6.0.0"), (64, "6.1.0")]


# ---------- the checks


OURS = Options(official=False)


def with_ours(**options: Any) -> Options:
    return dataclasses.replace(OURS, **options)


def rules(found: Any, *severities: Severity) -> set[str]:
    return fired(found.findings, *severities)


def test_the_options_are_the_rules_own() -> None:
    default = Options()
    assert (default.ruleset, default.runs, default.cv_limit, default.strict) == ("6.1.0", 10, 5.0, False)
    assert (default.official, default.system) == (True, None)


def test_one_log_is_checked_alone(tmp_path: Path) -> None:
    path = compliant_log(64, converged=False).write(tmp_path / "result_0.txt")
    report = check_run(path, OURS)
    assert (report.command, report.verdict, report.official) == ("check-run", Verdict.FAIL, None)
    assert rules(report) == {"run-not-converged"}
    assert len([each for each in report.findings if each.severity is Severity.UNVERIFIABLE]) == 4
    assert [run.file for run in report.sets[0].runs] == [str(path)]
    assert report.options["official"] is False and report.options["system"] is None
    assert set(report.tool) == {"compliance", "mlperf-logging", "python"}
    with pytest.raises(InputError, match="check-run takes one log, check-set a folder"):
        check_run(tmp_path, OURS)


def test_a_set_is_checked_as_asked(tmp_path: Path) -> None:
    write_set(tmp_path, compliant_set(64, runs=5))
    assert rules(check_set([tmp_path], OURS)) == {"set-count"}
    report = check_set([tmp_path], with_ours(runs=5))
    assert (report.verdict, rules(report)) == (Verdict.PASS, set())
    assert len([each for each in report.findings if each.severity is Severity.UNVERIFIABLE]) == 4
    assert rules(check_set([tmp_path], with_ours(runs=5, cv_limit=0.01))) == {"variance-limit"}
    other = compliant_log(64, 7).set("cache_clear", False).write(tmp_path / "result_5.txt")
    report = check_set([tmp_path], with_ours(runs=6))
    assert report.verdict is Verdict.FAIL
    assert [each.file for each in report.findings if each.rule == "cache-clear"] == [str(other)]


@pytest.mark.parametrize(("strict", "verdict"), [(False, Verdict.PASS), (True, Verdict.FAIL)])
def test_warnings_fail_when_strict_and_notes_never(tmp_path: Path, strict: bool, verdict: Verdict) -> None:
    logs = compliant_set(64, runs=4)
    for log in logs[3:]:
        log.find("run_stop")["metadata"]["status"] = "aborted"
    write_set(tmp_path, logs)
    options = with_ours(runs=4, strict=strict, cv_limit=100)
    assert check_set([tmp_path], options).verdict is Verdict.PASS  # with a note on the aborted run
    logs[0].find("run_stop")["time_ms"] += 61_000
    write_set(tmp_path, logs)
    assert check_set([tmp_path], options).verdict is verdict


def test_the_ruleset_is_that_of_the_options(tmp_path: Path) -> None:
    log = compliant_log(64, ruleset="6.0.0", disclosures=False).write(tmp_path / "result_0.txt")
    for ruleset, verdict in (("6.0.0", Verdict.PASS), ("6.1.0", Verdict.FAIL)):
        report = check_run(log, with_ours(ruleset=ruleset))
        assert (report.ruleset, report.verdict) == (ruleset, verdict)


def test_a_system_description_is_that_of_every_log(tmp_path: Path) -> None:
    write_set(tmp_path, compliant_set(64, runs=3))
    system = tmp_path / "sys.json"
    for accelerators, wrong in (("8", set()), ("16", {"batch-arithmetic"})):
        system.write_text(json.dumps(system_description(accelerators_per_node=accelerators)), encoding="utf-8")
        options = with_ours(runs=3, system=system)
        assert rules(check_run(tmp_path / "result_0.txt", options)) == wrong
        assert rules(check_set([tmp_path], options)) == wrong
        assert check_set([tmp_path], options).options["system"] == str(system)
    for text, words in (
        ('{\n"a":', r"sys\.json:2: "), ("[]", r"sys\.json:1: not a JSON object"),
        (json.dumps(system_description(number_of_nodes="many")), "number_of_nodes and accelerators_per_node must be"),
    ):  # fmt: skip
        system.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=words):
            check_set([tmp_path], with_ours(system=system))
    system.unlink()
    with pytest.raises(InputError, match=r"sys\.json: no such file"):
        check_set([tmp_path], with_ours(system=system))


def test_what_cannot_be_read_is_a_report_as_well() -> None:
    report = unreadable_report("check-set", with_ours(ruleset="6.0.0"), "x: no such file")
    assert (report.command, report.ruleset, report.verdict) == ("check-set", "6.0.0", Verdict.ERROR)
    assert [(each.rule, each.severity, each.message) for each in report.findings] == [
        ("input", Severity.ERROR, "x: no such file")
    ]


def test_a_tree_is_checked_with_its_own_system(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(64))
    report = check_package(root, OURS)
    assert (report.command, report.verdict, rules(report)) == ("check-package", Verdict.PASS, set())
    assert {run.system for run in report.sets[0].runs} == {"sys_1x8"} and "sys_1x8" in report.sets[0].name
    description = root / "systems" / "sys_1x8.json"
    description.write_text(json.dumps(system_description(accelerators_per_node="16")), encoding="utf-8")
    assert rules(check_package(root, OURS)) == {"batch-arithmetic"}
    assert rules(check_package(root, with_ours(cv_limit=0.01)), Severity.WARNING) == {"variance-limit"}


def test_a_tree_s_number_of_runs_is_said_once(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(64)[:9])
    assert rules(check_package(root, OURS)) == {"package-result-count"}
    assert rules(check_package(root, with_ours(runs=9))) == set()
    more = check_package(root, with_ours(runs=8))
    assert "set-count" in rules(more, Severity.INFO)  # which window counts, only the set's rule says


def test_logs_and_their_tree_agree(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", [log.set("submission_org", "Somebody Else") for log in compliant_set(64)])
    assert rules(check_package(root, OURS)) != set()
    with pytest.raises(InputError):
        check_package(tmp_path / "tree" / "missing", OURS)


def judged_as(logs: list[MadeLog], **options: Any) -> dict[tuple[str, str], str]:
    """Our verdicts, by official tool and what it is asked about."""
    runs = [judged(log, f"{n}") for n, log in enumerate(logs)]
    result, found = judge_set(runs, "6.1.0", **options)
    findings = [*(each for run in runs for each in run.findings), *found]
    ours = check._verdicts_on_files(runs) | check._verdicts_on_set(result, findings)
    return {key: each.verdict for key, each in ours.items()}


def test_our_verdicts_beside_the_official_ones() -> None:
    logs = compliant_set(64)
    assert set(judged_as(logs).values()) == {"pass"}
    assert set(judged_as(logs)) == {
        *(("compliance_checker", f"{n}") for n in range(10)),
        ("rcp_checker", "pruned"), ("rcp_checker", "full"), ("seed_checker", "seeds"),
    }  # fmt: skip
    assert ("rcp_checker", "a set pruned") in judged_as(logs, name="a set")
    fails = {
        "seed": ("seed_checker", "seeds"), "converge": ("rcp_checker", "pruned"), "log": ("compliance_checker", "3"),
    }  # fmt: skip
    seed = compliant_set(64)
    seed[3].set("seed", "x")
    verdicts = judged_as(seed)
    assert verdicts[fails["seed"]] == "fail" and verdicts[fails["converge"]] == "pass"
    assert verdicts[fails["log"]] == "fail"
    lost = compliant_set(64)
    lost[3] = compliant_log(64, 3, converged=False)
    verdicts = judged_as(lost)
    # Alone a run has to converge; in a set one may not.
    assert verdicts[fails["log"]] == "fail" and verdicts[fails["converge"]] == "pass"
    lost[4] = compliant_log(64, 4, converged=False)
    assert judged_as(lost)[fails["converge"]] == "fail"
    assert {tool for tool, _ in judged_as(compliant_set(64, division="open"))} == {"compliance_checker"}


@pytest.mark.parametrize(
    ("gbs", "steps", "pruned", "full"),
    [
        (32, [18] * 7 + [19] * 3, "pass", "fail"),  # faster than the full points allow alone
        (32, [17] * 10, "fail", "fail"),
        (32, [20] * 10, "pass", "pass"),
        (72, [30] * 10, "fail", "fail"),  # no points
    ],
)
def test_our_verdicts_on_convergence(gbs: int, steps: list[int], pruned: str, full: str) -> None:
    interval = -(-12_288 // gbs) * gbs
    logs = compliant_set(gbs, samples_to_target=[step * interval for step in steps])
    verdicts = judged_as(logs)
    assert (verdicts["rcp_checker", "pruned"], verdicts["rcp_checker", "full"]) == (pruned, full)


class PassingTools:
    """Stands for the official tools: they pass whatever they are asked about, and it remembers what that was."""

    def __init__(self, ruleset: str, timeout_s: float) -> None:
        self.options = (ruleset, timeout_s)
        self.asked: list[tuple[str, str]] = []

    def __enter__(self) -> PassingTools:
        return self

    def __exit__(self, *_: object) -> None:
        self.asked.append(("closed", ""))

    def check_files(self, files: dict[str, Path]) -> None:
        self.asked += [("compliance_checker", name) for name in files]

    def check_set(self, files: dict[str, Path], name: str = "") -> None:
        assert files
        self.asked += [("rcp_checker", f"{name} {part}".strip()) for part in ("pruned", "full")]
        self.asked.append(("seed_checker", f"{name} seeds".strip()))

    def check_system(self, name: str, path: Path) -> None:
        assert path.is_file()
        self.asked.append(("system_desc_checker", name))

    def check_tree(self, name: str, root: Path) -> None:
        assert root.is_dir()
        self.asked.append(("package_checker", name))

    def collect(self) -> tuple[OfficialResult, ...]:
        return tuple(OfficialResult(tool, subject, "pass", (), 0.0) for tool, subject in self.asked)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> list[PassingTools]:
    """The official tools that were opened."""
    opened: list[PassingTools] = []

    def open_tools(ruleset: str, timeout_s: float) -> PassingTools:
        opened.append(PassingTools(ruleset, timeout_s))
        return opened[-1]

    monkeypatch.setattr(check, "OfficialTools", open_tools)
    return opened


SET_CHECKS = [("rcp_checker", "pruned"), ("rcp_checker", "full"), ("seed_checker", "seeds")]


def test_the_official_tools_are_asked_about_all_that_we_judge(tmp_path: Path, tools: list[PassingTools]) -> None:
    paths = write_set(tmp_path / "logs", compliant_set(64))
    files = [("compliance_checker", str(path)) for path in paths]
    root = write_tree(tmp_path / "tree", compliant_set(64))
    in_tree = [("compliance_checker", str(log)) for log in find_logs([root / "results/sys_1x8/gpt_oss_20b"])]
    options = Options(ruleset="6.0.0", official_timeout=7.0)
    reports = [check_run(paths[3], options), check_set([tmp_path / "logs"], options), check_package(root, options)]
    folder = reports[2].sets[0].name
    asked = [
        [files[3]],
        [*SET_CHECKS, *files],
        [
            *((tool, f"{folder} {part}") for tool, part in SET_CHECKS),
            *in_tree,
            ("system_desc_checker", str(read_submission(root).path("systems/sys_1x8.json"))),
            ("package_checker", str(root)),
        ],
    ]
    for report, opened, expected in zip(reports, tools, asked, strict=True):
        assert sorted(opened.asked[:-1]) == sorted(expected) and opened.asked[-1] == ("closed", "")
        assert opened.options == ("6.0.0", 7.0)
        assert report.official is not None and report.official.divergences == ()
        assert [(each.tool, each.subject) for each in report.official.results] == opened.asked[:-1]


def test_what_the_official_tools_pass_and_we_do_not_is_named(tmp_path: Path, tools: list[PassingTools]) -> None:
    logs = compliant_set(64)
    logs[3].set("cache_clear", False)
    for number in (4, 5):
        logs[number].set("seed", "x")
    root = write_tree(tmp_path / "tree", logs)
    folder = root / "results/sys_1x8/gpt_oss_20b"
    wrong = [str(folder / f"result_{number}.txt") for number in (3, 4, 5)]
    alone, together, tree = check_run(Path(wrong[0])), check_set([folder]), check_package(root)
    assert alone.official is not None and together.official is not None and tree.official is not None
    assert [each.subject for each in alone.official.divergences] == wrong[:1]
    assert [each.subject for each in together.official.divergences] == ["seeds", *wrong]
    assert {each.subject for each in tree.official.divergences} == {f"{tree.sets[0].name} seeds", *wrong, str(root)}
    assert len(tools) == 3


def test_in_the_open_division_tests_of_the_closed_one_are_left_out(tmp_path: Path, tools: list[PassingTools]) -> None:
    paths = write_set(tmp_path, compliant_set(64, division="open"))
    report = check_set([tmp_path])
    assert report.official is not None
    assert [(each.tool, each.subject) for each in report.official.results] == [
        ("compliance_checker", str(path)) for path in paths
    ]
    assert set(SET_CHECKS) < set(tools[0].asked)


def test_the_official_tools_need_not_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(check, "version", nowhere)
    report = check_run(compliant_log(64).write(tmp_path / "result_0.txt"), OURS)
    assert report.verdict is Verdict.PASS and report.tool["mlperf-logging"] == "not installed"


def test_the_exit_statuses_are_those_that_scripts_rely_on() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "PASS": 0, "VIOLATION": 1, "USAGE": 2, "UNREADABLE": 3, "INTERNAL": 4, "INTERRUPTED": 130,
    }  # fmt: skip


def test_three_runs_are_the_fewest(tmp_path: Path, capsys: Capture) -> None:
    write_set(tmp_path, compliant_set(64, runs=3))
    assert command(capsys, "check-set", tmp_path, "--no-official", "--runs", 3).status == ExitCode.PASS
    assert command(capsys, "check-set", tmp_path, "--no-official", "--runs", 2).status == ExitCode.USAGE


def test_our_verdicts_on_a_tree(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(64, runs=3))
    tree = read_submission(root)
    file = tree.path("systems/sys_1x8.json")
    about = Finding("x", Severity.ERROR, "message", file, None, None, None, "")
    for findings, package, system in (
        ([], "pass", "pass"),
        ([about], "fail", "fail"),
        ([dataclasses.replace(about, file="another")], "fail", "pass"),
        ([dataclasses.replace(about, severity=Severity.WARNING)], "pass", "pass"),
    ):
        ours = check._verdicts_on_tree(tree, findings)
        assert ours["package_checker", str(root)].verdict == package
        assert ours["system_desc_checker", file].verdict == system


def test_the_machine_s_description_is_named() -> None:
    (found,) = judged(compliant_log(32), machine=Machine(16, "systems/x.json")).findings
    assert found.expected == "64" and "(16 accelerators by systems/x.json)" in found.message


# ---------- what the command line passes on


def packaging(folder: Path, logs: list[MadeLog]) -> list[object]:
    """The arguments of `package` for these logs, named against the order of their starts."""
    write_set(folder / "logs", list(reversed(logs)))
    (folder / "sys_1x8.json").write_text(json.dumps(system_description()), encoding="utf-8")
    (folder / "code").mkdir()
    (folder / "code/train.py").write_text("seed = 1\n", encoding="utf-8")
    parts = {"--logs": "logs", "--system": "sys_1x8.json", "--code": "code", "--out": "tree"}
    return ["package", "--no-official", *(each for name, part in parts.items() for each in (name, folder / part))]


def test_a_package_is_in_order_of_start_and_of_as_many_runs_as_asked(tmp_path: Path, capsys: Capture) -> None:
    logs = compliant_set(64, runs=4)
    found = command(capsys, *packaging(tmp_path, logs), "--runs", 4)
    assert found.status == ExitCode.PASS, found
    packed = [tmp_path / f"tree/results/sys_1x8/gpt_oss_20b/result_{number}.txt" for number in range(4)]
    assert [path.read_text(encoding="utf-8") for path in packed] == [log.text() for log in logs]


def test_a_package_is_scaled_only_when_asked(tmp_path: Path, capsys: Capture) -> None:
    logs = compliant_set(16, samples_to_target=[15 * 12_288] * 5 + [16 * 12_288] * 5)
    arguments = packaging(tmp_path, logs)
    assert command(capsys, *arguments).status == ExitCode.PASS
    assert list((tmp_path / "tree").rglob("scaling.json")) == []
    assert command(capsys, *arguments[:-1], tmp_path / "other", "--write-scaling").status == ExitCode.PASS
    assert len(list((tmp_path / "other").rglob("scaling.json"))) == 1


def test_a_package_of_a_set_with_warnings_is_refused_when_strict(tmp_path: Path, capsys: Capture) -> None:
    logs = compliant_set(64)
    logs[3].find("run_stop")["time_ms"] += 61_000
    found = command(capsys, *packaging(tmp_path, logs), "--strict")
    assert found.status == ExitCode.VIOLATION and not (tmp_path / "tree").exists()


def test_a_tree_is_checked_with_the_limit_that_is_asked_for(tmp_path: Path, capsys: Capture) -> None:
    root = write_tree(tmp_path, compliant_set(64))
    asked = ("check-package", root, "--no-official", "--strict", "--cv-limit")
    assert command(capsys, *asked, 50).status == ExitCode.PASS
    assert command(capsys, *asked, 0.01).status == ExitCode.VIOLATION


@pytest.mark.parametrize("name", ["r.htm", "r.HTML", "r.MD"])
def test_a_report_is_of_the_kind_that_its_name_ends_in(tmp_path: Path, capsys: Capture, name: str) -> None:
    write_set(tmp_path / "logs", compliant_set(64, runs=3))
    (tmp_path / "logs/results").mkdir()  # which makes no tree of it
    out = tmp_path / name
    assert command(capsys, "report", tmp_path / "logs", "--no-official", "--runs", 3, "--out", out).status == 0
    assert out.read_text(encoding="utf-8").startswith("#" if "MD" in name else "<!")


def test_a_terminal_has_colour_unless_it_asks_for_none(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compliant_log(64).write(tmp_path / "result_0.txt")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "60")

    def shown() -> str:
        return command(capsys, "check-run", log, "--no-official").out

    piped = shown()
    assert "\x1b[" not in piped and 60 < max(map(len, piped.splitlines())) <= 120
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b[" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown()
    assert "\x1b[" not in plain and max(map(len, plain.splitlines())) <= 60


def test_what_an_output_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", newline="\n"))
    cli._print("a\u00e9\n")
    sys.stdout.flush()
    assert raw.getvalue() == b"a\\xe9\n"


@pytest.mark.parametrize("error", [OfficialToolsError("not installed"), RcpDataError("not as expected")])
def test_what_is_missing_beside_us_is_2_and_a_line(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "check_run", broken)
    found = command(capsys, "check-run", tmp_path / "x")
    assert (found.status, found.err) == (ExitCode.USAGE, f"error: {error}\n")


def test_options_reach_what_they_are_for(tmp_path: Path, capsys: Capture) -> None:
    assert json.loads(command(capsys, "plan", "--gbs", 32, "--ruleset", "6.0.0").out)["ruleset"] == "6.0.0"
    log = compliant_log(64).write(tmp_path / "result_0.txt")
    assert command(capsys, "check-run", log, "--official-timeout", 0.5).status == ExitCode.USAGE
    listed = command(capsys, "rules").out
    assert "hyperparameter-fixed (error, closed division only)" in listed
    assert "open-division (error, open division only)" in listed and "eval-cadence (error)" in listed
