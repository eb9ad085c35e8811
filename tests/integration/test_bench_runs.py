"""`bench` and the comparison with baselines on the smallest scenario: every back end, end to end, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.results import Comparison, Trial
from gptoss20b.tools.bench.norms import KINDS
from gptoss20b.tools.bench.result import BenchResult, Parts
from tests.support.paths import ROOT
from tests.support.ranks import NO_GPU, run_ranks

PARTS = list(Parts.model_fields)


@pytest.fixture(scope="module")
def back_ends() -> dict[str, BenchResult]:
    found: dict[str, BenchResult]
    (found,) = run_ranks("bench_jobs.by_back_end", 1)
    return found


def assert_whole(found: BenchResult) -> None:
    assert found.parts_seconds is not None
    assert found.profiled_seconds is not None
    seconds = dict(found.parts_seconds)
    assert sum(seconds.values()) == pytest.approx(found.profiled_seconds)
    optional = {"optimizer"} if found.step_seconds is None else set()
    assert {name for name in PARTS if seconds[name] > 0} >= set(PARTS) - optional
    # A profiled step is slower than a timed one, and all of it was attributed.
    assert found.profiled_seconds > 0.3 * found.step_without_optimizer_seconds.p10
    step = found.step_seconds or found.step_without_optimizer_seconds
    assert found.tokens_per_second == pytest.approx(2 * 192 / step.median)
    assert found.tflops_per_second == pytest.approx(found.tokens_per_second * found.flops_per_token / 1e12)
    assert found.fraction_of_gemm == pytest.approx(found.tflops_per_second / found.gemm_tflops)
    assert (found.mfu, found.peak_tflops) == (None, None)
    assert "'CPU" in found.peak_note
    assert found.routing is not None
    assert 1 < found.routing.max_over_mean <= found.routing.worst_layer < 8
    assert found.peak_memory_bytes > 1e8


def test_the_command_prints_and_keeps_its_result(tmp_path: Path, back_ends: dict[str, BenchResult]) -> None:
    (done,) = run_ranks("bench_jobs.by_command", 1, out=str(tmp_path / "tiny.json"))
    assert done["codes"] == (0, 2, 2), done["error"]
    assert done["unchanged"]
    assert "BACKEND: got transformer_engine" in done["missing"]
    found = BenchResult.model_validate_json(done["json"])
    assert_whole(found)
    assert (found.scenario, found.backend, found.precision) == ("tiny", "torch", "fp32")
    assert found.step_seconds and found.step_seconds.steps == 2
    assert f"{found.tokens_per_second:,.0f}" in done["shown"]
    local = back_ends["megatron_local"]
    assert (found.loss, found.grad_norm) == pytest.approx((local.loss, local.grad_norm), rel=1e-5)
    assert found.norms == pytest.approx(local.norms, rel=1e-4)
    assert found.norms.keys() == KINDS.keys() - {"sinks"}
    assert found.optimizer == local.optimizer == "torch AdamW"


def test_all_back_ends_compute_the_same(back_ends: dict[str, BenchResult]) -> None:
    for found in back_ends.values():
        assert_whole(found)
    local, one_by_one, alone = (back_ends[name] for name in ("megatron_local", "one by one", "forward and backward"))
    for found in (one_by_one, alone):
        assert (found.loss, found.grad_norm) == pytest.approx((local.loss, local.grad_norm), rel=1e-5)
        assert found.routing == local.routing
        assert found.norms == pytest.approx(local.norms, rel=1e-4)
    assert (one_by_one.micro_batch_size, one_by_one.sequences_per_step) == (1, 2)
    assert alone.step_seconds is None
    assert alone.parts_seconds is not None and alone.parts_seconds.optimizer == 0
    assert back_ends["openai"].loss != pytest.approx(local.loss, rel=1e-4)


def test_every_timed_step_does_the_same_work() -> None:
    (found,) = run_ranks("bench_jobs.unchanged_by_steps", 1)
    before = found["ours"][0]
    for outcomes in found.values():
        for outcome in outcomes:
            assert (outcome.loss, outcome.grad_norm) == pytest.approx((before.loss, before.grad_norm), rel=1e-5)
            assert outcome.norms == pytest.approx(before.norms, rel=1e-4)
            assert outcome.norms.keys() == KINDS.keys()


def test_hugging_face_passes_the_gate_and_a_changed_weight_does_not() -> None:
    trials: dict[str, Trial]
    (trials,) = run_ranks("bench_jobs.gated", 1)
    equal, perturbed = trials["equal"], trials["perturbed"]
    assert (equal.status, equal.reason) == ("measured", "")
    assert equal.result
    assert (equal.result.backend, equal.result.variant) == ("hugging_face", "openai")
    assert equal.result.parts_seconds is None
    assert (perturbed.status, perturbed.result) == ("refused", None)
    assert "gradient norm" in perturbed.reason


def test_the_gate_in_bf16_tells_equal_baselines_from_mutants() -> None:
    (messages,) = run_ranks("bench_jobs.gated_in_bf16", 1)
    passed = {name for name, message in messages.items() if not message}
    assert passed == {"reference equal", "openai equal"}, messages
    assert messages.keys() - passed == {"reference without windows", "openai without windows", "openai without sinks"}
    assert "gradient norm of sinks" in messages["openai without sinks"]


@pytest.mark.slow
def test_a_comparison_of_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.compare", "--scenario", "tiny", "--only", "hugging_face"]
    command += ["--warmup", "1", "--steps", "3", "--out", str(tmp_path / "out")]
    environment = os.environ | NO_GPU | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = Comparison.model_validate_json((tmp_path / "out/results.json").read_bytes())
    trials = [(trial.baseline, trial.number, trial.status) for trial in kept.trials]
    assert trials == [
        ("ours_openai", 1, "measured"), ("hugging_face", 1, "measured"),
        ("hugging_face", 2, "measured"), ("ours_openai", 2, "measured"),
    ]  # fmt: skip
    assert "| Hugging Face | 2 | 2 |" in done.stdout
