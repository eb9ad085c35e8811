"""Logs in the forms of published submissions: what a check says of them, and nothing more."""

from __future__ import annotations

import pytest
from mlperf_logging.benchmark_meta import get_result_file_counts

from compliance import benchmark
from compliance.check import Options, check_run, check_set
from compliance.findings import Severity
from tests.support.judging import judged_set
from tests.support.made_logs import compliant_set
from tests.support.paths import REAL_SHAPES

ERROR = Severity.ERROR
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
