"""The ten published reference runs at GBS 32: real runs that are not a compliant result."""

from __future__ import annotations

import numpy as np
import pytest

from compliance.check import Options, check_set
from compliance.findings import Report, Severity, Status
from compliance.log_files import read_log
from compliance.rules.evaluations import logged_schedule
from compliance.run import Run
from compliance.schedule import Comparison
from tests.support.judging import fired
from tests.support.paths import REFERENCE_LOGS

pytestmark = pytest.mark.skipif(not REFERENCE_LOGS.is_dir(), reason="the published reference logs are not here")


@pytest.fixture(scope="module", params=["6.0.0", "6.1.0"])
def report(request: pytest.FixtureRequest) -> Report:
    return check_set([REFERENCE_LOGS], Options(ruleset=request.param, official=False))


def test_the_violations_of_every_run(report: Report) -> None:
    errors = {"submission-benchmark", "eval-after-target", "eval-size"}
    if report.ruleset == "6.1.0":
        errors |= {"hyperparameter-end-rate", "record-required"}  # 4e-5, and the nine disclosures that 6.1.0 added
    assert len(report.sets[0].runs) == 10
    for run in report.sets[0].runs:
        found = [finding for finding in report.findings if finding.file == run.file]
        assert run.status is Status.INVALID
        assert fired(found, Severity.ERROR) == errors
        # An empty submission_status, and run_stop minutes late.
        assert fired(found, Severity.WARNING) == {"submission-identity", "clock-stop-late"}


def test_run_stop_is_128_to_150_seconds_late(report: Report) -> None:
    late = [float(finding.got or 0) for finding in report.findings if finding.rule == "clock-stop-late"]
    assert len(late) == 10
    assert (round(min(late)), max(late)) == (128, 149.4)


def test_the_first_passing_evaluations(report: Report) -> None:
    score = report.sets[0].score
    assert score is not None and not score.valid and score.olympic_minutes is None
    assert score.olympic_samples == 233_472
    assert score.olympic_minutes_to_target == pytest.approx(359.973, abs=5e-4)
    assert all(run.final_eval_loss is not None and run.final_eval_loss < 3.29 for run in report.sets[0].runs)
    rcp = report.sets[0].rcp
    assert rcp is not None and rcp.pruned.passed and rcp.full.passed


def test_their_learning_rates_are_the_schedule_to_the_last_bit() -> None:
    for path in sorted(REFERENCE_LOGS.glob("*.gz")):
        run = Run(read_log(path), "6.0.0")
        schedule = logged_schedule(run)
        assert schedule is not None
        logged = np.asarray(run.log.train_losses.learning_rates)
        comparison = Comparison(schedule, 32, np.asarray(run.log.train_losses.samples), logged)
        assert len(logged) > 8000
        # numpy's cosine may differ from the C library's in the last bit.
        np.testing.assert_allclose(comparison.expected(), logged, rtol=4e-16)
