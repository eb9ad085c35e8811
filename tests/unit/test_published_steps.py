"""The back-test: no run is predicted from what it was calibrated or fitted on, and its facts are the published ones."""

from __future__ import annotations

import gzip
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.published_steps import (
    COUNTS,
    IMBALANCE_FIT,
    PUBLISHED,
    PublishedRun,
    efficiency_from_step,
    fit_efficiency,
    largest_errors,
    predict,
    predictions,
)
from gptoss20b.config import resolve
from gptoss20b.config.checks import check_config
from gptoss20b.config.tree import Parallel
from gptoss20b.model.size import count_parameters
from gptoss20b.tools.estimate.assumptions import Assumptions, EstimateError
from gptoss20b.tools.estimate.report import BACKTEST_ERRORS
from tests.support.paths import REFERENCE_LOGS

RUNS = {run.name: run for run in PUBLISHED}
EVERY = tuple(predictions())


def test_the_command_prints_the_largest_errors() -> None:
    assert largest_errors() == pytest.approx(BACKTEST_ERRORS)
    # The limits that docs/performance-model.md names. Its tables of errors are held by test_performance_model_guide.
    assert BACKTEST_ERRORS["like_worst"] < 0.07 and BACKTEST_ERRORS["worst"] < 0.30


def test_nothing_is_tested_on_what_it_was_calibrated_or_fitted_on() -> None:
    for each in EVERY:
        calibrated, predicted = each.calibrated, each.predicted
        assert calibrated is not predicted and calibrated.kind == predicted.kind
        assert not (predicted.name in IMBALANCE_FIT and (calibrated.splits_sequences or predicted.splits_sequences))
        assert predict(calibrated, predicted) == each


def test_a_prediction_does_not_see_the_step_that_it_predicts() -> None:
    for each in EVERY[:5]:
        other = replace(each.predicted, step_seconds=9.0)
        assert predict(each.calibrated, other).seconds == each.seconds


def test_a_run_calibrated_on_itself_is_exact() -> None:
    for run in PUBLISHED:
        assert predict(run, run).error == pytest.approx(0, abs=1e-9)
        assert 0.1 < fit_efficiency(run) < 0.6


@pytest.mark.parametrize("efficiency", [0.05, 0.4, 0.95])
@pytest.mark.parametrize("run", PUBLISHED, ids=lambda run: run.name)
def test_a_step_gives_an_efficiency_that_gives_the_step(run: PublishedRun, efficiency: float) -> None:
    """Not always the same one: where communication outlasts the work, faster work exposes more of it."""
    seconds = run.model.step_time(efficiency).seconds
    found = efficiency_from_step(seconds, run.model)
    assert found < efficiency * (1 + 1e-6)
    assert run.model.step_time(found).seconds == pytest.approx(seconds)
    if run.config.parallel.expert == 8:  # little to reduce
        assert found == pytest.approx(efficiency)


def test_a_step_that_is_too_short() -> None:
    with pytest.raises(EstimateError, match=r"0\.01"):
        efficiency_from_step(0.01, PUBLISHED[0].model)


def test_the_default_imbalance_is_what_the_fit_gives() -> None:
    """The factor at which 8 GB200 predict 72: between the steps at 1.55 and 1.65."""
    calibrated, fitted = (RUNS[name] for name in IMBALANCE_FIT)

    def seconds(imbalance: float) -> float:
        run = replace(fitted, assumptions=replace(fitted.assumptions, imbalance=imbalance))
        return run.model.step_time(fit_efficiency(calibrated)).seconds

    assert seconds(1.55) < fitted.step_seconds < seconds(1.65)
    assert Assumptions().imbalance == 1.6


def test_layouts_of_published_runs_are_ones_that_train_takes() -> None:
    for run in PUBLISHED:
        config = run.config
        # The reference's runs evaluated 2,048 sequences at GBS 32, which is not for a submission to do.
        assert [each for each in check_config(config) if each.variables[0] != "EVAL_SAMPLES"] == []
        assert config.accumulation_steps * config.parallel.data * run.micro_batch == run.gbs


def test_the_counts_are_those_of_the_modules() -> None:
    assert count_parameters(resolve({})) == COUNTS


@pytest.mark.skipif(not REFERENCE_LOGS.is_dir(), reason="the published reference logs are not beside this checkout")
def test_the_reference_at_gbs_32_is_what_its_logs_say() -> None:
    steps, evaluations = zip(*map(medians, sorted(REFERENCE_LOGS.glob("*.log.gz"))), strict=True)
    run = RUNS["reference, GBS 32"]
    assert len(steps) == 10
    assert round(statistics.median(steps), 3) == run.step_seconds
    assert round(statistics.median(evaluations), 1) == run.evaluation_seconds
    # Runs of one configuration differ by more than the model's error on their median.
    assert abs(predict(RUNS["reference, GBS 16"], run).error) < 0.02 < (max(steps) - min(steps)) / 2 / run.step_seconds
    assert run.config.parallel == Parallel(nodes=1, gpus_per_node=8, expert=8)


def medians(log: Path) -> tuple[float, float]:
    """Seconds of a step in the middle block, and of the middle evaluation."""
    steps, evaluations, begun = [], [], (0, 0)
    for line in gzip.decompress(log.read_bytes()).decode().splitlines():
        if ":::MLLOG" not in line:
            continue
        record = json.loads(line.split(":::MLLOG ")[1])
        when, samples = record["time_ms"] / 1e3, record["metadata"].get("samples_count")
        if record["key"] in ("block_start", "eval_start"):
            begun = when, samples
        elif record["key"] == "block_stop":
            steps.append((when - begun[0]) / (samples - begun[1]) * 32)
        elif record["key"] == "eval_stop":
            evaluations.append(when - begun[0])
    return statistics.median(steps), statistics.median(evaluations)
