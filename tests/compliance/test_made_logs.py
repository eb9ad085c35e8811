"""Synthetic logs: accepted by the official checkers, in mllog's format, ordered as our own, with real rates."""

from __future__ import annotations

import gzip
import json
import logging
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from mlperf_logging.compliance_checker import mlp_compliance
from mlperf_logging.mllog.mllog import MLLogger
from mlperf_logging.package_checker import package_checker
from mlperf_logging.rcp_checker import rcp_checker

from gptoss20b import mlperf_log
from gptoss20b.config import resolve, settings
from tests.support.made_logs import (
    DISCLOSURES,
    END,
    RCP_MEANS,
    START,
    MadeLog,
    RunPlan,
    compliant_log,
    compliant_set,
    event,
    hyperparameters,
    long_log,
    system_description,
    write_tree,
)
from tests.support.paths import REFERENCE_LOGS

SIZES = (16, 24, 32, 48, 64)
RULESETS = ("6.0.0", "6.1.0")
PUBLISHED = REFERENCE_LOGS / "run_3.log.gz"
every_size = pytest.mark.parametrize("gbs", SIZES)
every_ruleset = pytest.mark.parametrize("ruleset", RULESETS)


# --- the official checkers


def accepted(path: Path, ruleset: str) -> bool:
    """Return the compliance checker's verdict on one file, with warnings as errors."""
    # A list of the module: an aborted check would leave its rest to the next.
    mlp_compliance.enqueued_configs.clear()
    checker = mlp_compliance.make_checker("training", ruleset, quiet=False, werror=True)
    verdict, *_ = mlp_compliance.main(str(path), f"training_{ruleset}/common.yaml", checker)
    assert isinstance(verdict, bool)
    return verdict


def package_report(root: Path, ruleset: str, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the package checker's log on a tree: system description, every log, seeds and RCPs."""
    caplog.clear()
    mlp_compliance.enqueued_configs.clear()
    with caplog.at_level(logging.INFO):
        package_checker.check_training_package(
            str(root), "training", ruleset, quiet=False, werror=True, rcp_bypass=False, rcp_bert_train_samples=False,
            seed_checker_bypass=False, log_output="nowhere",
        )  # fmt: skip
    return list(caplog.records)


def complaints(report: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in report if record.levelno >= logging.WARNING]


def found_no_errors(report: list[logging.LogRecord]) -> bool:
    return any("PACKAGE CHECKER FOUND NO ERRORS" in record.getMessage() for record in report)


@every_ruleset
@every_size
def test_a_set_and_its_tree_pass_the_official_checkers(
    gbs: int, ruleset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_tree(tmp_path, compliant_set(gbs, ruleset=ruleset))
    results = root / "results" / "sys_1x8" / "gpt_oss_20b"
    report = package_report(root, ruleset, caplog)
    assert found_no_errors(report)
    assert complaints(report) == []
    assert [path.name for path in sorted(results.iterdir())] == [f"result_{run}.txt" for run in range(10)]
    for rcp_pass in ("pruned_rcps", "full_rcps"):
        passed, message, normalization = rcp_checker.check_directory(
            str(results), "training", ruleset, verbose=False, bert_train_samples=False, rcp_pass=rcp_pass
        )
        exact = gbs in RCP_MEANS and (gbs, rcp_pass) != (32, "pruned_rcps")
        assert (passed, message) == (True, "RCP found" if exact else "RCP Interpolation")
        assert normalization == 1.0


@every_ruleset
def test_open_division_passes_the_official_checkers(
    ruleset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logs = compliant_set(16, ruleset=ruleset, division="open")
    assert {log.find("submission_division")["value"] for log in logs} == {"open"}
    report = package_report(
        write_tree(tmp_path, logs, description=system_description(division="open")), ruleset, caplog
    )
    assert found_no_errors(report)
    assert complaints(report) == []


@pytest.mark.parametrize("division", ["closed", "open"])
@pytest.mark.parametrize("convention", ["after", "before"])
@every_ruleset
def test_either_convention_passes_the_compliance_checker(
    ruleset: str, convention: str, division: str, tmp_path: Path
) -> None:
    log = compliant_log(24, ruleset=ruleset, convention=convention, division=division)
    assert accepted(log.write(tmp_path / "result_0.txt"), ruleset)


def test_the_checkers_refuse_what_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logs = compliant_set()
    assert not accepted(compliant_log().set("max_sequence_length", 4096).write(tmp_path / "log"), "6.1.0")
    assert not accepted(compliant_log().drop("init_stop").write(tmp_path / "log"), "6.1.0")
    wrong_system = write_tree(tmp_path / "system", logs, description=system_description(status="Sold out"))
    assert not found_no_errors(package_report(wrong_system, "6.1.0", caplog))
    same_seed = write_tree(tmp_path / "seed", [logs[0].copy(), *logs[:9]])
    assert any("seed" in text for text in complaints(package_report(same_seed, "6.1.0", caplog)))
    too_fast = write_tree(tmp_path / "fast", compliant_set(samples_to_target=[184_320] * 10))
    assert complaints(package_report(too_fast, "6.1.0", caplog)) == ["RCP Test Failed: RCP found"]


def test_only_ruleset_6_0_does_without_the_disclosures(tmp_path: Path) -> None:
    log = compliant_log(ruleset="6.0.0", disclosures=False)
    assert {record["key"] for record in compliant_log().events} - {record["key"] for record in log.events} == set(
        DISCLOSURES
    )
    log.write(tmp_path / "result_0.txt")
    assert accepted(tmp_path / "result_0.txt", "6.0.0")
    assert not accepted(tmp_path / "result_0.txt", "6.1.0")


# --- written as mllog writes, in the order of our own logs


class Lines(logging.Handler):
    """Collects the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:  # not the warning that file and lineno are given
            self.lines.append(record.getMessage())


def rewritten(log: MadeLog) -> str:
    """Return the log's records as the real mllog writes them."""
    logger, lines = logging.Logger("mllog"), Lines()
    logger.addHandler(lines)
    writer = MLLogger(logger=logger)
    methods = {START: writer.start, END: writer.end, "POINT_IN_TIME": writer.event}
    for record in log.events:
        methods[record["event_type"]](
            key=record["key"], value=record["value"], metadata=record["metadata"], time_ms=record["time_ms"]
        )
    return "".join(f"{text}\n" for text in lines.lines)


@pytest.mark.parametrize("converged", [True, False])
def test_the_text_is_what_mllog_writes(converged: bool) -> None:
    log = compliant_log(32, converged=converged)
    log.set("submission_org", 'Fünf "Häuser"\n').set("eval_accuracy", float("nan")).set("train_loss", 1e-07)
    log.insert_after("seed", 0, event("nested", {"a": [1, None, True]}, 5, {"epoch_num": 1.5}))
    assert log.text() == rewritten(log)


@pytest.fixture
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings():
        for prefix in ("", "MLPERF_", "MLLOG_"):
            monkeypatch.delenv(prefix + name, raising=False)


def shape(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return everything except times, values and numbers of samples."""
    return [(*record, record["event_type"], record["key"], *record["metadata"]) for record in records]


@pytest.mark.usefixtures("_no_settings")
@pytest.mark.parametrize("converged", [True, False])
def test_the_order_is_that_of_our_own_log(tmp_path: Path, converged: bool) -> None:
    config, path = resolve(), tmp_path / "own.txt"
    own = mlperf_log.RunLog(path, echo=lambda _: None)
    own.init_start(config)
    own.describe(config, seed=1)
    own.run_start()
    own.data_opened("0" * 64)
    for end in (12_288, 24_576):
        own.block_start(end - 12_288)
        own.train_loss(end, 3.4, 4e-4)
        own.block_stop(end, 11.0)
        own.eval_start(end)
        own.eval_stop(end, 3.3)
    own.run_stop(converged, None if converged else "target not reached")
    own.close()
    made = compliant_log(16, samples_to_target=24_576, steps_between_train_loss=768, converged=converged)
    made.drop("train_loss")  # of the first step
    assert shape(made.events) == shape(
        [json.loads(text.removeprefix(":::MLLOG ")) for text in path.read_text().splitlines()]
    )


@pytest.mark.usefixtures("_no_settings")
@pytest.mark.parametrize(("gbs", "micro_batch"), [(16, 2), (24, 1), (32, 2), (48, 2), (64, 2)])
def test_a_run_describes_itself_as_our_own_runs_do(gbs: int, micro_batch: int) -> None:
    log = compliant_log(gbs)
    made = {
        record["key"]: record["value"] for record in log.events[log.index("init_start") + 1 : log.index("init_stop")]
    }
    given = {
        "GLOBAL_BATCH_SIZE": gbs,
        "MICRO_BATCH_SIZE": micro_batch,
        "LEARNING_RATE": made["opt_base_learning_rate"],
        "WARMUP_STEPS": made["opt_learning_rate_warmup_steps"],
        "DGXSYSTEM": "sys_1x8",
        "SUBMISSION_ORG": "Example Laboratory",
    }
    config = resolve({name: str(value) for name, value in given.items()})
    ours = mlperf_log.hyperparameters(config, made["seed"])
    assert made == ours
    assert list(made) == list(ours)


# --- learning rates


def rates(log: MadeLog) -> dict[int, float]:
    return {record["metadata"]["samples_count"]: record["metadata"]["lr"] for record in log.all("train_loss")}


@pytest.fixture
def like_published() -> dict[int, float]:
    log = compliant_log(
        32, convention="before", end_learning_rate=4e-5, samples_to_target=282_624, steps_between_train_loss=1
    )
    return rates(log)


def test_rates_before_are_those_of_the_published_logs(like_published: dict[int, float]) -> None:
    published = {0: 6.25e-06, 4032: 0.0007937500000000001, 4096: 0.0007999999999986973, 282_592: 0.0007999013050031815}
    assert {samples: like_published[samples] for samples in published} == published


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"no published log at {PUBLISHED}")
def test_rates_before_are_those_of_a_whole_published_log(like_published: dict[int, float]) -> None:
    with gzip.open(PUBLISHED, "rt") as file:
        texts = [text[text.index("{") :] for text in file if '"train_loss"' in text]
    assert len(texts) == 8832
    assert like_published == rates(MadeLog([json.loads(text) for text in texts]))


@pytest.mark.parametrize(
    ("gbs", "expected"),
    [
        # From Megatron-Core's scheduler.
        (16, {1: 0.0, 64: 0.000196875, 129: 4e-4, 130: 0.00039999999999938305, 12288: 0.00039990879231057574}),
        (64, {1: 0.0, 96: 0.0004947916666666667, 193: 1e-3, 194: 0.0009999999999984574, 4800: 0.0009999672591526614}),
    ],
)  # fmt: skip
def test_rates_after_are_those_of_our_own_logs(gbs: int, expected: dict[int, float]) -> None:
    seen = rates(compliant_log(gbs, steps_between_train_loss=1))
    assert {step: seen[step * gbs] for step in expected} == expected


def test_the_rates_follow_what_the_log_says() -> None:
    log = compliant_log(
        16, learning_rate=1e-3, end_learning_rate=5e-4, warmup_steps=1_199_000, samples_to_target=12_288
    )
    logged = {key: log.find(f"opt_{key}")["value"] for key in ("base_learning_rate", "end_learning_rate")}
    assert logged == {"base_learning_rate": 1e-3, "end_learning_rate": 5e-4}
    assert log.find("opt_learning_rate_warmup_steps")["value"] == 1_199_000
    assert log.find("opt_learning_rate_decay_steps")["value"] == 1000
    assert rates(log)[12_288] == 1e-3 * 767 / 1_199_000
    assert rates(compliant_log(16, warmup_steps=0, samples_to_target=12_288))[16] == 0.0


# --- runs

ENDS = [*((gbs, None) for gbs in (8, *SIZES, 104, 4096)), (16, 12_288), (16, 24_576), (16, 700 * 12_288), (40, 12_320)]


@pytest.mark.parametrize(("gbs", "samples"), ENDS)
@pytest.mark.parametrize("converged", [True, False])
def test_a_run_evaluates_on_the_grid_until_the_first_pass(gbs: int, samples: int | None, converged: bool) -> None:
    log = compliant_log(gbs, samples_to_target=samples, converged=converged)
    interval = {104: 12_376, 40: 12_320}.get(gbs, 12_288)
    evaluations = log.all("eval_accuracy")
    counts = [record["metadata"]["samples_count"] for record in evaluations]
    assert counts == list(range(interval, counts[-1] + 1, interval))
    assert samples in (None, counts[-1])
    for key in ("block_stop", "eval_start", "eval_stop"):
        assert [record["metadata"]["samples_count"] for record in log.all(key)] == counts
    assert [record["metadata"]["samples_count"] for record in log.all("block_start")] == [0, *counts[:-1]]
    losses = [record["value"] for record in evaluations]
    assert all(loss > 3.34 for loss in losses[:-1])
    assert (losses[-1] <= 3.34) == converged
    stop = {key: value for key, value in log.find("run_stop")["metadata"].items() if key not in ("file", "lineno")}
    aborted = {"status": "aborted", "reason": "target not reached"}
    assert stop == {"samples_count": counts[-1]} | ({"status": "success"} if converged else aborted)


def test_train_losses_of_the_first_step_and_at_an_interval() -> None:
    log = compliant_log(16, steps_between_train_loss=100, samples_to_target=12_288)
    assert list(rates(log)) == [16 * step for step in (1, 100, 200, 300, 400, 500, 600, 700)]
    before = compliant_log(16, steps_between_train_loss=100, samples_to_target=12_288, convention="before")
    assert list(rates(before)) == [samples - 16 for samples in rates(log)]


@pytest.mark.parametrize(
    ("gbs", "rate", "warmup"),
    [(8, 4e-4, 128), (16, 4e-4, 128), (24, 5e-4, 256), (32, 8e-4, 128), (48, 9e-4, 160), (64, 1e-3, 192)],
)
def test_the_tuning_is_the_published_one(gbs: int, rate: float, warmup: int) -> None:
    logged = hyperparameters(RunPlan(gbs=gbs), seed=1)
    assert (logged["opt_base_learning_rate"], logged["opt_learning_rate_warmup_steps"]) == (rate, warmup)


# --- sets


@every_size
def test_runs_of_a_set_differ_and_do_not_overlap(gbs: int) -> None:
    logs = compliant_set(gbs)
    for key in ("seed", "train_loss", "eval_accuracy"):
        assert len({log.find(key)["value"] for log in logs}) == len(logs) == 10
    spans = [(log.events[0]["time_ms"], log.events[-1]["time_ms"]) for log in logs]
    assert all(stop < start for (_, stop), (start, _) in pairwise(spans))
    assert [log.text() for log in compliant_set(gbs)] == [log.text() for log in logs]


@pytest.mark.parametrize(("gbs", "rcp"), [(16, 194_560), (24, 214_698), (32, 234_837), (48, 267_946), (64, 301_056)])
def test_a_set_is_about_as_slow_as_the_reference_and_varies_less_than_5_percent(gbs: int, rcp: int) -> None:
    logs = compliant_set(gbs)
    samples = [log.find("run_stop")["metadata"]["samples_count"] for log in logs]
    minutes = [(log.find("run_stop")["time_ms"] - log.find("run_start")["time_ms"]) / 60_000 for log in logs]
    assert 0 <= mean(sorted(samples)[1:-1]) - rcp < 8000
    assert samples != sorted(samples)
    assert len(set(minutes)) == 10
    for figures in (samples, minutes):
        assert 0.005 < stdev(figures) / mean(figures) < 0.05


# --- long logs


def test_a_long_log_has_every_step_and_is_the_log_it_says(tmp_path: Path) -> None:
    path = long_log(tmp_path / "result_0.txt", 1000, run=4, gbs=32)
    made = compliant_log(32, 4, samples_to_target=36_864, steps_between_train_loss=1)
    assert path.read_text() == made.text()
    assert len(made.all("train_loss")) == 1152


def test_ten_long_logs_make_the_benchmark_s_set(tmp_path: Path) -> None:
    paths = [long_log(tmp_path / f"result_{run}.txt", run=run) for run in range(10)]
    assert [path.read_text().count('"train_loss"') for path in paths] == [13_056] * 10
    assert accepted(paths[9], "6.1.0")
    verdict = rcp_checker.check_directory(
        str(tmp_path), "training", "6.1.0", verbose=False, bert_train_samples=False, rcp_pass="full_rcps"
    )
    assert verdict == (True, "RCP found", 1.0)
