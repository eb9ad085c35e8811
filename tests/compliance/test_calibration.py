"""Logs in the forms of published submissions: what a check says of them, and nothing more."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from mlperf_logging.benchmark_meta import get_result_file_counts

from compliance import benchmark
from compliance.check import Options, check_package, check_run, check_set
from compliance.documents import report_document, to_json
from compliance.findings import Severity
from compliance.judge import judge_run
from compliance.log_files import read_log
from compliance.rcp import full_points
from compliance.render.report_file import report_file
from compliance.render.text import text_report
from compliance.rules import ALL_RULES
from compliance.rules.rule import OFFICIAL
from tests.support.judging import judged_set
from tests.support.made_logs import MadeLog, compliant_set, long_log, write_tree
from tests.support.paths import REAL_SHAPES

ERROR = Severity.ERROR
DERIVED, SYSTEM = REAL_SHAPES / "derived_stack" / "ExampleSystems", "X8_ngc26.04_nemo"
needs_shapes = pytest.mark.skipif(not REAL_SHAPES.is_dir(), reason="the logs in published forms are not here")


def test_one_log_of_another_benchmark_is_one_finding() -> None:
    logs = compliant_set(16)
    logs[4].set("submission_benchmark", "llama31_8b").set("global_batch_size", 32).drop("seed").drop("run_stop")
    result, findings = judged_set(logs)
    assert [(each.rule, each.severity, each.file) for each in findings] == [
        ("submission-benchmark", ERROR, "result_4.txt")
    ]
    assert "llama31_8b" in findings[0].message and "gpt_oss_20b" in findings[0].message
    assert len(result.runs) == 10 and result.score is not None and not result.score.valid
    assert frozenset(get_result_file_counts("training")) == {*benchmark.OTHERS, benchmark.NAME}


@needs_shapes
def test_another_cadence_is_one_error_of_a_log_and_of_a_set() -> None:
    report = check_set([REAL_SHAPES / "floor_cadence_gbs36"], Options(ruleset="6.0.0", official=False))
    (finding,) = (each for each in report.findings if each.rule == "eval-cadence")
    assert "evaluates every 341 steps, FLOOR = 12,276 samples; the rules say CEIL, 342 steps" in finding.message
    assert (finding.severity, finding.file, finding.got) == (ERROR, None, "12276")
    (accepted,) = (each for each in report.findings if each.rule == "set-cadence")
    assert "had the cadence been accepted, the score would be 82.554 minutes" in accepted.message
    assert [run.status for run in report.sets[0].runs] == ["invalid"] * 10
    log = check_run(REAL_SHAPES / "floor_cadence_gbs36" / "result_3.txt", Options(ruleset="6.0.0", official=False))
    assert [each.rule for each in log.findings if each.severity is ERROR] == ["eval-cadence"]


@needs_shapes
@pytest.mark.parametrize("ruleset", benchmark.RULESETS)
def test_a_published_set_passes_but_for_the_disclosures_of_6_1(ruleset: str) -> None:
    report = check_set([DERIVED / "results" / SYSTEM / benchmark.NAME], Options(ruleset=ruleset))
    errors = [each for each in report.findings if each.severity is ERROR]
    score = report.sets[0].score
    assert report.official is not None and report.official.divergences == () and score is not None
    # The full RCP test fails and does not decide.
    assert [each.verdict for each in report.official.results if not each.decides] == ["fail"]
    if ruleset == "6.1.0":
        assert (report.verdict, report.official.verdict) == ("fail", "fail")
        assert {each.rule for each in errors} == {"record-required"}
        assert all(each.message.endswith(", ".join(benchmark.DISCLOSURE)) for each in errors)
    else:
        assert (report.verdict, report.official.verdict, errors) == ("pass", "pass", [])
        assert (score.normalized_minutes, score.normalization) == (85.15519323521282, 1.0315091210613598)


def test_a_failing_tree_has_no_score(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", compliant_set(16))
    assert check_package(root, Options(official=False)).verdict == "pass"
    for file in (root / "benchmarks").rglob("README.md"):
        file.unlink()
    report = check_package(root, Options(official=False))
    assert (report.verdict, {each.rule for each in report.findings if each.severity is ERROR}) == (
        "fail",
        {"package-code"},
    )
    assert "No score" in text_report(report)
    assert '"normalized_minutes": null' in to_json(report_document(report)) and "No score" in report_file(
        report, "html"
    )


@needs_shapes
@pytest.mark.parametrize("factor", [1.0315091210613598, 1.0])
def test_a_shipped_factor_is_compared(tmp_path: Path, factor: float) -> None:
    root = tmp_path / "tree"
    shutil.copytree(DERIVED, root)
    (root / "results" / SYSTEM / benchmark.NAME / "scaling.json").write_text(json.dumps({"scaling_factor": factor}))
    report = check_package(root, Options(ruleset="6.0.0", official=False))
    (finding,) = (each for each in report.findings if each.rule == "package-scaling")
    assert finding.severity == (ERROR if factor == 1 else "info")


def short_evaluation(logs: list[MadeLog]) -> None:
    logs[2].find("eval_stop", 1)["time_ms"] = logs[2].find("eval_start", 1)["time_ms"] + 9_000
    logs[2].find("eval_accuracy", 1)["time_ms"] = logs[2].find("eval_start", 1)["time_ms"] + 9_000


def hidden_block(logs: list[MadeLog]) -> None:
    """Start the clock a second before the end of the first block."""
    log = logs[3]
    late = int(log.find("block_stop")["time_ms"]) - 1000
    for index in range(log.index("run_start"), log.index("block_stop")):
        log.events[index]["time_ms"] = max(late, int(log.events[index]["time_ms"]))


def slow_steps(logs: list[MadeLog]) -> None:
    """Log twice the time that the steps of a block took."""
    log = logs[6]
    seconds = (log.find("block_stop")["time_ms"] - log.find("block_start")["time_ms"]) / 1000
    log.find("tracked_stats")["value"] = {"train_step_time": 2 * seconds / (12_288 / 16)}


def equal_loss(logs: list[MadeLog]) -> None:
    logs[2].set("eval_accuracy", logs[5].find("eval_accuracy", 3)["value"], 3)


@pytest.mark.parametrize(
    ("rule", "change", "file"),
    [
        ("set-overlap", lambda logs: logs[4].shift(0, -9 * 3_600_000), None),
        ("eval-duration", short_evaluation, "result_2.txt"),
        ("block-duration", hidden_block, "result_3.txt"),
        ("step-time", slow_steps, "result_6.txt"),
        ("set-pace", lambda logs: logs[7].shift(logs[7].index("train_loss", 9), 5 * 3_600_000), "result_7.txt"),
        ("eval-equal", equal_loss, "result_5.txt"),
    ],
)
def test_what_is_implausible_is_a_warning(
    rule: str, change: Callable[[list[MadeLog]], object], file: str | None
) -> None:
    logs = compliant_set(16)
    change(logs)
    found = [each for each in judged_set(logs, cv_limit=90)[1] if each.rule != "variance-limit"]
    assert [(each.rule, each.severity, each.file) for each in found] == [(rule, "warning", file)]


@pytest.mark.parametrize(("longer", "warns"), [(0, True), (1, False)])
def test_an_rcp_margin_of_one_evaluation_is_a_warning(longer: int, warns: bool) -> None:
    samples = [196_608] * (4 + longer) + [184_320] * (6 - longer)
    found = judged_set(compliant_set(16, samples_to_target=samples), cv_limit=90)[1]
    assert [each.rule for each in found if each.severity == "warning"] == (["rcp-margin"] if warns else [])


@needs_shapes
def test_tracked_stats_give_curves_and_speed(tmp_path: Path) -> None:
    logs = [DERIVED / "results" / SYSTEM / benchmark.NAME / f"result_{number}.txt" for number in range(3)]
    report = check_set(logs, Options(ruleset="6.0.0", runs=3, official=False))
    run = report.sets[0].runs[0]
    assert list(run.train_loss.samples[:3]) == [0, 3072, 6144] and run.train_loss.values[0] == 5.09654
    assert run.tracked == {"step_s": 0.5605, "validation_s": 7.24}
    page = report_file(report, "html")
    assert "Logged s per step" in page and "42.82" in page  # 24 sequences / 0.5605 s
    assert "No learning rate: no train_loss record has one." in page


def test_a_judged_log_keeps_less_than_100_kib(tmp_path: Path) -> None:
    path = long_log(tmp_path / "result_0.txt")
    judge_run(read_log(path), "6.1.0")
    tracemalloc.start()
    kept = [judge_run(read_log(path), "6.1.0") for _ in range(4)]
    bytes_kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bytes_kept / len(kept) < 100 << 10


def test_an_error_cites_mlperf_and_our_judgement_warns() -> None:
    public = ("training rules, ", "MLPerf submission rules, ", "training_policies, ", OFFICIAL)
    errors = {rule.id: rule.citation for rule in ALL_RULES if rule.severity is ERROR}
    assert {name for name, citation in errors.items() if not citation.startswith(public)} == set()
    assert {name for name, citation in errors.items() if "this project" in citation or "Megatron" in citation} <= {
        "schedule-rate"  # cites the rule on hyperparameters first
    }


def test_official_checks_name_their_rules_and_rcp_missing_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = {part: {rule.id for rule in ALL_RULES if part in rule.official} for part in ("pruned", "full", "seeds")}
    assert tied["seeds"] == {"seed", "set-seed"} and tied["full"] == {"set-not-converged", "rcp-missing"}
    assert tied["pruned"] == tied["full"] | {"rcp-pruned"}
    monkeypatch.setattr("compliance.rules.sets.full_points", lambda ruleset: full_points(ruleset)[1:2])
    assert [each.expected for each in judged_set(compliant_set(128))[1] if each.rule == "rcp-missing"] == ["32 to 32"]
