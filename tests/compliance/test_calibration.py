"""Logs in the forms of published submissions: what a check says of them, and nothing more."""

from __future__ import annotations

import pytest
from mlperf_logging.benchmark_meta import get_result_file_counts

from compliance import benchmark
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
