"""Whole runs: log, determinism, and no access to the data before the clock runs."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compliance.judge import judge_run
from compliance.log_files import read_log
from compliance.telemetry import read_telemetry
from gptoss20b.result import read_result
from tests.support import local_runs
from tests.support.fake_nvml import pynvml
from tests.support.paths import ROOT
from tests.support.ranks import NO_GPU, run_ranks


def launch(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run two ranks on the CPU under our torchrun, which sees a made-up node of two GPUs."""
    inherited = {name: value for name, value in os.environ.items() if name not in NO_GPU}
    command = [sys.executable, "-m", "gptoss20b.launch", "--standalone", "--nproc_per_node=2", "--no-python", "env"]
    ranks = [*(f"{name}={value}" for name, value in NO_GPU.items()), sys.executable, "-m", "gptoss20b", "train"]
    return subprocess.run(
        [*command, *ranks],
        env=inherited | variables | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests/support/fake_nvml")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def records(logdir: Path) -> list[dict[str, Any]]:
    return local_runs.records(logdir / "result_0.txt")


def values(logdir: Path, key: str) -> list[Any]:
    return local_runs.values(logdir / "result_0.txt", key)


@pytest.fixture(scope="module")
def quick(tiny: dict[str, str]) -> dict[str, str]:
    return tiny | {
        "DGXNGPU": "2",
        "EXPERT_PARALLEL": "2",
        "GLOBAL_BATCH_SIZE": "4",
        "EVAL_INTERVAL_SAMPLES": "10",
        "WARMUP_STEPS": "2",
        "LEARNING_RATE": "1e-2",
        "MAX_STEPS": "9",
        "TARGET_LOSS": "0.5",
        "SEED": "11",
    }


@pytest.fixture(scope="module")
def runs(quick: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run once under torchrun. Run the others on forked ranks, which saves seconds of imports."""
    folder = tmp_path_factory.mktemp("runs")
    for name, change in {
        "first": {},
        "again": {},
        "other seed": {"SEED": "12"},
        "no warm-up": {"WARMUP_PASSES": "0"},
    }.items():
        for code, output in run_ranks("train", 2, variables=quick | change | {"LOGDIR": str(folder / name)}):
            assert code == 3, output
    telemetry = {"TELEMETRY": "1", "TELEMETRY_INTERVAL": "0.1"}
    done = launch(quick | telemetry | {"TARGET_LOSS": "5.3", "LOGDIR": str(folder / "converging")})
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "converging" / "stdout").write_text(done.stdout)
    (folder / "converging" / "stderr").write_text(done.stderr)
    return {path.name: path for path in folder.iterdir()}


def test_one_seed_gives_bit_identical_losses(runs: dict[str, Path]) -> None:
    assert len(values(runs["first"], "train_loss")) == 9
    for key in ("train_loss", "eval_accuracy"):
        losses = values(runs["first"], key)
        assert values(runs["again"], key) == losses
        # torchrun starts new interpreters, with other hash seeds. This run ended earlier.
        start = values(runs["converging"], key)
        assert start
        assert start == losses[: len(start)]


def test_telemetry_covers_the_run(runs: dict[str, Path]) -> None:
    with (runs["converging"] / "telemetry.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    logged = [record["time_ms"] for record in records(runs["converging"]) if record["key"] in ("run_start", "run_stop")]
    times = [int(row["time_ms"]) for row in rows]
    assert min(times) < min(logged) < max(logged) < max(times) + 1000
    gpus = {(row["gpu"], row["uuid"], row["sm_clock_mhz"], row["throttle_reasons"]) for row in rows}
    assert gpus == {(str(gpu), uuid, "1980", "sw_power_cap") for gpu, uuid in enumerate(pynvml.UUIDS)}
    summary = judge_run(read_log(runs["converging"] / "result_0.txt"), "6.1.0").summary
    measured, warnings = read_telemetry([summary])
    seconds = (max(logged) - min(logged)) / 1000
    for gpu in measured[summary.file].gpus:
        assert gpu.throttled_seconds == {"sw_power_cap": pytest.approx(seconds, abs=0.5)}
        assert gpu.joules and gpu.joules > 600 * (seconds - 0.5)
    assert warnings == []


def test_two_seeds_differ_in_losses_and_agree_on_the_evaluated_tokens(runs: dict[str, Path]) -> None:
    assert values(runs["first"], "train_loss") != values(runs["other seed"], "train_loss")
    assert values(runs["first"], "eval_tokens_sha256") == values(runs["other seed"], "eval_tokens_sha256")
    assert len(values(runs["first"], "eval_tokens_sha256")[0]) == 64


def test_the_warm_up_changes_nothing(runs: dict[str, Path]) -> None:
    for key in ("train_loss", "eval_accuracy"):
        assert values(runs["first"], key) == values(runs["no warm-up"], key)


def test_the_timeline_is_the_benchmarks(runs: dict[str, Path]) -> None:
    keys = [record["key"] for record in records(runs["first"])]
    assert keys[:2] == ["cache_clear", "init_start"]
    start = keys.index("init_stop")
    assert keys[start : start + 4] == ["init_stop", "run_start", "eval_tokens_sha256", "block_start"]
    evaluation = ["tracked_stats", "block_stop", "eval_start", "eval_accuracy", "eval_stop"]
    block = ["train_loss"] * 3
    expected = [*block, *evaluation, "block_start", *block, *evaluation, "block_start", *block, *evaluation, "run_stop"]
    assert keys[start + 4 :] == expected
    times = [record["time_ms"] for record in records(runs["first"])]
    assert times == sorted(times)


def test_evaluations_come_every_ceil_of_the_interval(runs: dict[str, Path]) -> None:
    counts = [r["metadata"]["samples_count"] for r in records(runs["first"]) if r["key"] == "eval_accuracy"]
    assert counts == [12, 24, 36]  # CEIL(10 / 4) = 3 steps of 4


def test_the_learning_rate_in_the_log_is_the_one_used(runs: dict[str, Path]) -> None:
    rates = [r["metadata"]["lr"] for r in records(runs["first"]) if r["key"] == "train_loss"]
    assert rates[:3] == [0.0, 0.005, 0.01]  # warm-up over two steps, first update at 0
    assert rates[3] < 0.01


def test_stdout_and_file_hold_the_same_records_from_one_rank(runs: dict[str, Path]) -> None:
    printed = [line for line in (runs["converging"] / "stdout").read_text().splitlines() if line]
    assert printed == (runs["converging"] / "result_0.txt").read_text().splitlines()


def test_progress_and_result_are_on_stderr(runs: dict[str, Path]) -> None:
    text = (runs["converging"] / "stderr").read_text()
    assert "12 samples | loss" in text
    assert "tokens/s" in text
    last = text.strip().splitlines()[-1]
    assert last.startswith("success: ")
    assert last.endswith("converging/result_0.txt")


def test_a_run_stops_at_the_first_evaluation_that_passes(runs: dict[str, Path]) -> None:
    losses = values(runs["converging"], "eval_accuracy")
    assert losses[-1] <= 5.3
    assert all(loss > 5.3 for loss in losses[:-1])
    stop = records(runs["converging"])[-1]
    assert (stop["key"], stop["metadata"]["status"]) == ("run_stop", "success")
    assert stop["metadata"]["samples_count"] == 12 * len(losses)


def test_an_unreached_target_is_an_aborted_run_with_its_reason(runs: dict[str, Path]) -> None:
    stop = records(runs["first"])[-1]
    assert stop["metadata"]["status"] == "aborted"
    assert stop["metadata"]["reason"] == "target 0.5 not reached in 9 steps"
    assert read_result(runs["first"]).exit_code == 3


def test_config_json_describes_the_whole_run(runs: dict[str, Path]) -> None:
    metadata = json.loads((runs["first"] / "config.json").read_text())
    for key in ("eval_tokens_sha256", "git_commit"):
        assert metadata[key]
        assert metadata[key] == values(runs["first"], key)[0]
    assert metadata["seed"] == 11
    assert (metadata["total_parameters"], metadata["active_parameters"]) == (255_360, 140_672)
    assert metadata["config"]["free"]["global_batch_size"] == 4
    assert metadata["versions"]["megatron-core"]


def test_a_result_is_never_overwritten(runs: dict[str, Path], quick: dict[str, str]) -> None:
    before = (runs["first"] / "result_0.txt").read_bytes()
    ((code, output),) = run_ranks(
        "train", 1, variables=quick | {"DGXNGPU": "1", "EXPERT_PARALLEL": "1", "LOGDIR": str(runs["first"])}
    )
    assert code == 2
    assert "results are never overwritten" in output
    assert (runs["first"] / "result_0.txt").read_bytes() == before


def test_nothing_touches_the_data_before_run_start(tiny: dict[str, str], tmp_path: Path) -> None:
    variables = tiny | {"MAX_STEPS": "3", "LOGDIR": str(tmp_path / "log"), "EVAL_INTERVAL_SAMPLES": "16"}
    outcome = run_ranks("opens_data_only_after_run_start", 1, variables=variables)[0]
    assert outcome["code"] == 3
    assert outcome["events"][0] == "run_start"
    assert outcome["events"].count("run_start") == 1
    assert "data" in outcome["events"], "the watch must see the data being opened"
