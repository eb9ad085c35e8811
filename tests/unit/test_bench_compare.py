"""The comparison with baselines: order of trials, attempts, gate, table, and the README's predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.gpu import compare
from benchmarks.gpu.baselines import BASELINES, Attempt, attempts
from benchmarks.gpu.compare import Session
from benchmarks.gpu.results import Comparison, Request, Trial
from benchmarks.gpu.table import markdown
from benchmarks.gpu.trial import GateError, gate, is_out_of_memory, run_trial
from gptoss20b.model.size import flops_per_token
from gptoss20b.tools.bench.result import BenchResult, Gemm, Outcome, Parts, Spread
from gptoss20b.tools.bench.scenarios import configure
from tests.support.guides import read_guide, table_rows
from tests.support.paths import ROOT

TEXT = read_guide(ROOT / "docs/gpu-benchmarks.md")
PREDICTIONS = table_rows(TEXT, "predictions")
NORMS = {"query": 0.1, "router": 0.5}


def result(seconds: float, **more: Any) -> BenchResult:
    """Return a result of an H200 with this step, and 0.05 s less without the optimizer."""
    spread = Spread(median=seconds, p10=seconds, p90=seconds, steps=20)
    without = Spread(median=seconds - 0.05, p10=seconds - 0.05, p90=seconds, steps=20)
    flops = 22.864e9 * 16_384 / 1e12
    filled: dict[str, Any] = {
        "scenario": "S1", "system": "NVIDIA H200", "backend": "torch", "variant": "reference", "precision": "bf16",
        "recompute": "none", "compile_mode": "kernels", "micro_batch_size": 2, "sequences_per_step": 2,
        "sequence_length": 8192, "step_seconds": spread, "step_without_optimizer_seconds": without,
        "tokens_per_second": 16_384 / seconds, "tflops_per_second": flops / seconds, "flops_per_token": 22.864e9,
        "mfu": flops / seconds / 990, "mfu_without_optimizer": flops / without.median / 990, "peak_tflops": 990.0,
        "peak_note": "", "gemm": Gemm(size=8192, dtype="bfloat16", tflops=700.0), "gemm_tflops": 700.0,
        "fraction_of_gemm": flops / seconds / 700, "peak_memory_bytes": 100 * 2**30,
        "device_memory_bytes": 139 * 2**30,
        "parts_seconds": Parts(attention=0.2, experts=0.4, router_dispatch=0.1, loss=0.1, optimizer=0.05, other=0.01),
        "profiled_seconds": 0.86, "routing": None, "loss": 11.8, "grad_norm": 1.25, "norms": NORMS,
        "optimizer": "transformer_engine FusedAdam",
        "versions": {"python": "3.12.3", "torch": "2.13.0", "transformer-engine": None}, "git_commit": "abc",
        "date": "2030-01-02 03:04:05 UTC",
    }  # fmt: skip
    return BenchResult(**(filled | more))


VERSIONS = {"torch": "2.13.0", "transformer-engine": "2.9", "triton": None}
# Seconds of each baseline's step in the runs below, which have no Transformer Engine.
SECONDS = {
    "ours": 0.8, "megatron_local": 3.2, "ours_openai": 1.0, "hugging_face_compiled": 1.3, "hugging_face": 1.5,
}  # fmt: skip


# --- the gate


EXPECTED = Outcome(11.8, 1.25, NORMS)


@pytest.mark.parametrize(("loss", "norm", "query"), [(11.8, 1.25, 0.1), (11.81, 1.25, 0.1), (11.8, 1.23, 0.1015)])
def test_the_gate_passes_small_differences(loss: float, norm: float, query: float) -> None:
    gate(Outcome(loss, norm, NORMS | {"query": query}), EXPECTED, "bf16")


NAN = float("nan")


@pytest.mark.parametrize(
    ("loss", "norm", "norms", "named"),
    [
        (11.82, 1.25, NORMS, "loss"),
        (11.8, 1.28, NORMS, "gradient norm"),
        (NAN, 1.25, NORMS, "loss"),
        (11.8, NAN, NORMS, "gradient norm"),
        (11.8, 1.25, NORMS | {"query": 0.103}, "gradient norm of query"),
        (11.8, 1.25, {"query": 0.1}, "gradient norm of router"),
        (11.8, 1.25, NORMS | {"sinks": 0.01}, "gradient norm of sinks"),
    ],
)
def test_the_gate_stops_large_differences(loss: float, norm: float, norms: dict[str, float], named: str) -> None:
    with pytest.raises(GateError, match=f"^{named}: got [^;]*$"):
        gate(Outcome(loss, norm, norms), EXPECTED, "bf16")


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN Error: CUDNN_STATUS_ALLOC_FAILED", True),
        (
            "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nFailed to CUDA calloc async 4 bytes",
            True,
        ),
        ("NCCL error: ncclUnhandledCudaError\nCuda failure 2 'out of memory'", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUBLAS_STATUS_NOT_INITIALIZED", False),
    ],
)
def test_out_of_memory_is_recognised_in_any_library(text: str, full: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) == full
    outer = RuntimeError("the kernel could not be made")
    outer.__cause__ = RuntimeError(text)
    assert is_out_of_memory(outer) == full


def test_torch_s_own_error_is_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("whatever it says"))


def test_the_whole_reason_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Request) -> BenchResult:
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr("benchmarks.gpu.trial.run_baseline", fail)
    request = Request(
        baseline="ours", scenario="tiny", micro_batch_size=1, sequences=1, warmup=1, steps=1, limit=1, expected=None
    )
    found = run_trial(request, 1)
    assert (found.status, found.reason) == ("failed", "ValueError: first line\nsecond line")


# --- attempts to fit


def test_recomputation_comes_before_smaller_micro_batches_and_of_whole_layers_last() -> None:
    tried = attempts(BASELINES["ours"], 2)
    assert tried == [Attempt(2), Attempt(2, "moe_act"), Attempt(1), Attempt(1, "moe_act")]
    assert attempts(BASELINES["transformer_engine"], 2) == tried
    assert attempts(BASELINES["hugging_face"], 2) == [Attempt(2), Attempt(1)]
    assert attempts(BASELINES["hugging_face"], 1) == [Attempt(1)]
    assert attempts(BASELINES["megatron_local"], 2) == [Attempt(2), Attempt(1), Attempt(1, "layers")]


# --- the order of trials


class Machine:
    """Stands in for the processes: answers each request by baseline, and records it."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.environments: list[dict[str, str]] = []
        self.seconds = dict(SECONDS)
        self.too_large: set[tuple[str, int, str | None]] = set()

    def run(self, command: list[Any], env: dict[str, str], **_: Any) -> None:
        request = Request.model_validate_json(Path(command[3]).read_text())
        self.requests.append(request)
        self.environments.append(env)
        name, attempt = request.baseline, (request.baseline, request.micro_batch_size, env.get("RECOMPUTE"))
        trial = Trial(baseline=name, number=int(command[5]), status="not available", reason="not installed")
        if attempt in self.too_large:
            trial = trial.model_copy(update={"status": "out of memory"})
        elif name in self.seconds:
            found = result(self.seconds[name], micro_batch_size=request.micro_batch_size)
            found = found.model_copy(update={"recompute": env.get("RECOMPUTE", "none")})
            trial = Trial(baseline=name, number=trial.number, status="measured", result=found)
        Path(command[4]).write_text(trial.model_dump_json())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr("benchmarks.gpu.compare.subprocess.run", made.run)
    for name in ("RECOMPUTE", "COMPILE"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def session(machine: Machine, tmp_path: Path) -> Session:
    return Session(tmp_path, Comparison(scenario="S1", sequences=2, warmup=5, steps=20, versions=VERSIONS, trials=[]))


def read_results(folder: Path) -> Comparison:
    return Comparison.model_validate_json((folder / "results.json").read_bytes())


def trials_of(session: Session) -> list[tuple[str, int]]:
    return [(trial.baseline, trial.number) for trial in session.comparison.trials]


def test_the_best_baseline_and_ours_are_timed_abba(session: Session, machine: Machine, tmp_path: Path) -> None:
    session.first_trials(list(BASELINES))
    session.second_trials()
    assert trials_of(session) == [
        *((name, 1) for name in BASELINES),
        ("hugging_face_compiled", 2),
        ("ours_openai", 2),
    ]
    assert read_results(tmp_path) == session.comparison
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "results.json"]
    assert (tmp_path / "logs" / "ours-1.log").exists()
    # Ours has nothing to be compared with. Every baseline and every second trial has to reproduce it.
    asked = {request.baseline: request.expected for request in machine.requests[:6]}
    assert asked == {name: None if each.is_ours else EXPECTED for name, each in BASELINES.items()}
    assert all(request.expected == EXPECTED for request in machine.requests[6:])


def test_baselines_are_compared_with_ours_of_their_architecture(session: Session, machine: Machine) -> None:
    session.first_trials(list(BASELINES))
    found = session.comparison
    assert found.times_ours("megatron_local") == pytest.approx(4.0)
    assert found.times_ours("hugging_face") == pytest.approx(1.5)
    assert found.times_ours("transformer_engine") is None
    assert found.best_baseline() == "hugging_face_compiled"
    machine.seconds |= {"hugging_face_compiled": 2.3, "ours_openai": 2.0}
    session.second_trials()
    # By hand: (1.3 + 2.3) / 2 over (1.0 + 2.0) / 2. That is more than the other's 1.5 / 1.5, and changes nothing.
    assert session.comparison.times_ours("hugging_face_compiled") == pytest.approx(1.2)
    assert session.comparison.best_baseline() == "hugging_face_compiled"


def test_the_limit_of_timed_steps_leaves_hugging_face_twenty(session: Session, machine: Machine) -> None:
    session.run_trial("ours", 1)
    (request,) = machine.requests
    slowest = 1.5 * sum(float(row[4]) for row in PREDICTIONS) / 1000  # predicted of Hugging Face, not compiled
    assert request.limit // slowest >= request.steps == 20


def test_baselines_without_ours_are_not_run(session: Session, machine: Machine) -> None:
    del machine.seconds["ours"]
    session.first_trials(["ours", "megatron_local"])
    assert trials_of(session) == [("ours", 1)]


def test_the_attempt_that_fits_is_used_for_the_second_trial(session: Session, machine: Machine) -> None:
    machine.too_large = {("hugging_face", 2, "none"), ("ours_openai", 2, None)}
    session.first_trials(["ours_openai", "hugging_face"])
    session.second_trials()
    tried = [
        (request.baseline, request.micro_batch_size, env.get("RECOMPUTE"))
        for request, env in zip(machine.requests, machine.environments, strict=True)
    ]
    assert tried == [
        ("ours_openai", 2, None), ("ours_openai", 2, "moe_act"),
        ("hugging_face", 2, "none"), ("hugging_face", 1, "none"),
        ("hugging_face", 1, "none"), ("ours_openai", 2, "moe_act"),
    ]  # fmt: skip
    assert all(request.sequences == 2 for request in machine.requests)


def test_a_process_that_ends_without_an_outcome_has_failed(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.compare.subprocess.run", lambda *_, **__: None)
    session.first_trials(["ours"])
    (trial,) = session.comparison.trials
    assert trial.status == "failed"
    assert trial.reason.endswith("ours-1.log")


# --- the table


def test_the_table_has_every_baseline(session: Session, machine: Machine) -> None:
    machine.too_large = {("megatron_local", 2, None), ("megatron_local", 1, None)}
    session.first_trials(list(BASELINES))
    text = markdown(session.comparison)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    table = {row[0]: row for row in rows}
    assert {each.title for each in BASELINES.values()} <= table.keys()
    assert len({len(row) for row in rows[:8]}) == 1
    assert table["ours"][3:5] == ["0.8000 (0.8000 to 0.8000; 20)", "0.7500 (0.7500 to 0.8000; 20)"]
    assert table["Hugging Face"][-1] == "1.50"
    assert table["Megatron-Core, local spec"][2] == "1, RECOMPUTE=layers"
    assert table["Megatron-Core, Transformer Engine spec"][2] == "not available: not installed"
    # By hand: 374.6 TFLOP in 0.8 s and 0.75 s of 990 TFLOP/s.
    assert table["ours"][7:9] == ["47.3%", "50.5%"]
    assert table["ours"][10] == "transformer_engine FusedAdam" and "transformer-engine 2.9" in text
    for fact in ("NVIDIA H200", "2030-01-02", "commit abc", "torch 2.13.0", "experts 400.0"):
        assert fact in text


def test_ratios_are_of_all_trials_and_the_recomputation_is_named(session: Session, machine: Machine) -> None:
    machine.too_large = {("ours", 2, None)}
    session.first_trials(["ours", "megatron_local"])
    machine.seconds |= {"ours": 1.0, "megatron_local": 3.6}
    session.second_trials()
    lines = markdown(session.comparison).splitlines()
    # By hand: (3.2 + 3.6) / (0.8 + 1.0).
    assert [line[-8:] for line in lines if line.startswith("| Megatron-Core, local spec ")] == ["| 3.78 |"] * 2
    assert sum("| 2, RECOMPUTE=moe_act |" in line for line in lines) == 2


# --- the command


def test_one_command_runs_and_prints_the_table_and_never_overwrites_results(machine: Machine, tmp_path: Path) -> None:
    machine.seconds |= {"transformer_engine": 0.9}
    app = typer.Typer()
    app.command()(compare.main)
    runner = CliRunner(env={"COLUMNS": "1000", "TERM": "dumb"})
    done = runner.invoke(app, ["--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert len(machine.requests) == 8
    assert done.output.endswith(markdown(read_results(tmp_path / "out")) + "\n")
    again = runner.invoke(app, ["--out", str(tmp_path / "out"), "--only", "ours"])
    assert again.exit_code == 2 and "Name another folder" in again.stderr
    assert len(machine.requests) == 8


# --- the README


def test_each_prediction_is_work_over_rate() -> None:
    unit = {"TFLOP/s": 1e3, "TB/s": 1.0, "kernels/ms": 1.0}  # of TFLOP, GB and kernels, to milliseconds
    timed = [row for row in PREDICTIONS if row[3] != "-"]
    assert len(timed) >= 13
    for part, what, work, rate, milliseconds in timed:
        number, per = rate.split()
        predicted = float(work.split()[0]) / float(number) * unit[per]
        assert float(milliseconds) == pytest.approx(predicted, abs=0.06), (part, what)


def test_the_predictions_have_all_the_work_and_add_up() -> None:
    config = configure("S1", "reference", "torch", on_gpu=True)
    total = flops_per_token(config) * 16_384 / 1e12
    assert sum(float(row[2].split()[0]) for row in PREDICTIONS if "TFLOP" in row[2]) == pytest.approx(total, abs=0.1)
    assert {row[0].replace(" ", "_") for row in PREDICTIONS} == set(Parts.model_fields)
    seconds = {"with": sum(float(row[4]) for row in PREDICTIONS) / 1e3}
    optimizer = sum(float(row[4]) for row in PREDICTIONS if row[0] == "optimizer" and "zeroing" not in row[1])
    seconds["without"] = seconds["with"] - optimizer / 1e3
    expected = [
        [f"{name} optimizer", f"{1e3 * seconds[name]:.1f}", f"{100 * total / seconds[name] / 990:.1f}"]
        for name in ("without", "with")
    ]
    assert table_rows(TEXT, "predicted steps") == expected


def test_the_readme_has_the_baselines_and_claims_no_measurement_that_was_not_made() -> None:
    assert [row[0].strip("`") for row in table_rows(TEXT, "baselines")] == list(BASELINES)
    assert f"{flops_per_token(configure('S1', 'reference', 'torch', True)) / 1e9:.3f} GFLOP" in TEXT
    block = TEXT.split("## Measured")[1].split("##")[0]
    assert "Not measured" in block or "Recorded on" in block
