"""The comparison with peers: who runs when and how, what is kept, the gate, the table, and the README's predictions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import compare
from benchmarks.gpu.compare import README, Session
from benchmarks.gpu.contestants import CONTESTANTS, Attempt, attempts, kept_scores
from benchmarks.gpu.records import Expected, Request, Turn
from benchmarks.gpu.results import Comparison, read, write
from benchmarks.gpu.table import BEGIN, END, markdown, rewrite
from benchmarks.gpu.turn import GateError, gate
from gptoss20b.bench.result import BenchResult, Gemm, Parts, Spread
from gptoss20b.bench.scenarios import configure
from gptoss20b.bench.subject import Outcome
from gptoss20b.model.size import flops_per_token


def result(seconds: float, **more: Any) -> BenchResult:
    """Of an H200 that takes this long for a step, and 0.05 s less without the optimizer."""
    spread = Spread(median=seconds, p10=seconds, p90=seconds, steps=20)
    without = Spread(median=seconds - 0.05, p10=seconds - 0.05, p90=seconds, steps=20)
    flops = 22.864e9 * 16_384 / 1e12
    filled: dict[str, Any] = {
        "scenario": "S1", "system": "NVIDIA H200", "backend": "torch", "variant": "reference", "precision": "bf16",
        "recompute": "none", "compiled": "kernels", "micro_batch_size": 2, "sequences_per_step": 2,
        "sequence_length": 8192, "step_seconds": spread, "step_without_optimizer_seconds": without,
        "tokens_per_second": 16_384 / seconds, "tflops_per_second": flops / seconds, "flops_per_token": 22.864e9,
        "mfu": flops / seconds / 990, "mfu_without_optimizer": flops / without.median / 990, "peak_tflops": 990.0,
        "peak_note": "", "gemm": Gemm(size=8192, dtype="bfloat16", tflops=700.0), "gemm_tflops": 700.0,
        "fraction_of_gemm": flops / seconds / 700, "peak_memory_bytes": 100 * 2**30,
        "device_memory_bytes": 139 * 2**30,
        "parts_seconds": Parts(attention=0.2, experts=0.4, router_dispatch=0.1, loss=0.1, optimizer=0.05, other=0.01),
        "profiled_seconds": 0.86, "routing": None, "loss": 11.8, "grad_norm": 1.25,
        "versions": {"python": "3.12.3", "torch": "2.13.0", "transformer-engine": None}, "git_commit": "abc",
        "date": "2030-01-02 03:04:05 UTC",
    }  # fmt: skip
    return BenchResult(**(filled | more))


EMPTY = Comparison(scenario="S1", sequences=2, warmup=5, steps=20, git_commit="abc", turns=[])
# Seconds of each contestant's step in the made runs below; no Transformer Engine there.
SECONDS = {
    "ours": 0.8, "megatron_local": 3.2, "ours_openai": 1.0, "hugging_face_compiled": 1.3, "hugging_face": 1.5,
}  # fmt: skip


# --- the gate


@pytest.mark.parametrize(("loss", "norm"), [(11.8, 1.25), (11.9, 1.25), (11.8, 1.2376)])
def test_the_gate_lets_through_what_is_close(loss: float, norm: float) -> None:
    gate(Outcome(loss, norm), Expected(loss=11.8, grad_norm=1.25, tolerance=1e-2))


@pytest.mark.parametrize(
    ("loss", "norm", "named"),
    [(11.93, 1.25, "loss"), (11.8, 1.27, "grad_norm"), (float("nan"), 1.25, "loss"), (11.8, float("nan"), "grad_norm")],
)
def test_the_gate_stops_what_is_not(loss: float, norm: float, named: str) -> None:
    with pytest.raises(GateError, match=f"^{named}: got"):
        gate(Outcome(loss, norm), Expected(loss=11.8, grad_norm=1.25, tolerance=1e-2))


# --- ways to fit


def test_ours_recomputes_before_it_takes_one_sequence_at_a_time() -> None:
    ways = attempts(CONTESTANTS["ours"], "S1", 2, 139 * 2**30)
    assert ways == [Attempt(2), Attempt(2, "moe_act"), Attempt(1), Attempt(1, "moe_act")]
    assert attempts(CONTESTANTS["hugging_face"], "S1", 2, 139 * 2**30) == [Attempt(2), Attempt(1)]
    assert attempts(CONTESTANTS["hugging_face"], "S1", 1, 139 * 2**30) == [Attempt(1)]


def test_the_local_spec_is_not_tried_where_its_scores_cannot_fit() -> None:
    # By hand: 64 heads x 8,192 x 8,192 x 2 bytes are 8 GiB a layer.
    assert kept_scores("S1", 1) == 24 * 8 * 2**30
    local = CONTESTANTS["megatron_local"]
    assert attempts(local, "S1", 2, 139 * 2**30) == [Attempt(1, "layers")]
    everything = [Attempt(2), Attempt(1), Attempt(1, "layers")]
    assert attempts(local, "S3", 2, 139 * 2**30) == everything
    assert attempts(local, "S1", 2, None) == everything


# --- the order of turns


class Machine:
    """Stands in for the processes: answers each request by contestant, and remembers them."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.environments: list[dict[str, str]] = []
        self.seconds = dict(SECONDS)
        self.too_large: set[tuple[str, int, str | None]] = set()
        self.hangs: set[str] = set()

    def run(self, command: list[Any], env: dict[str, str], timeout: float, **_: Any) -> None:
        request = Request.model_validate_json(Path(command[3]).read_text())
        self.requests.append(request)
        self.environments.append(env)
        if request.contestant in self.hangs:
            raise subprocess.TimeoutExpired("turn", timeout)
        name, way = request.contestant, (request.contestant, request.micro_batch_size, env.get("RECOMPUTE"))
        turn = Turn(contestant=name, number=int(command[5]), status="not available", reason="not installed")
        if way in self.too_large:
            turn = turn.model_copy(update={"status": "out of memory"})
        elif name in self.seconds:
            found = result(self.seconds[name], micro_batch_size=request.micro_batch_size)
            found = found.model_copy(update={"recompute": env.get("RECOMPUTE", "none")})
            turn = Turn(contestant=name, number=turn.number, status="measured", result=found)
        Path(command[4]).write_text(turn.model_dump_json())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(compare.subprocess, "run", made.run)
    for name in ("RECOMPUTE", "COMPILE"):
        monkeypatch.delenv(name, raising=False)
    return made


def took(session: Session) -> list[tuple[str, int]]:
    return [(turn.contestant, turn.number) for turn in session.comparison.turns]


def test_the_best_peer_and_ours_are_timed_abba(machine: Machine, tmp_path: Path) -> None:
    session = Session(tmp_path, EMPTY, 600)
    session.first_turns(list(CONTESTANTS))
    session.second_turns()
    assert took(session) == [
        *((name, 1) for name in CONTESTANTS),
        ("hugging_face_compiled", 2),
        ("ours_openai", 2),
    ]
    assert read(tmp_path) == session.comparison
    # Ours has nothing to be compared with; every peer, and every second turn, has to compute what ours did.
    expected = Expected(loss=11.8, grad_norm=1.25, tolerance=1e-2)
    asked = {request.contestant: request.expected for request in machine.requests[:6]}
    assert asked == {name: None if each.ours else expected for name, each in CONTESTANTS.items()}
    assert all(request.expected == expected for request in machine.requests[6:])


def test_peers_are_compared_with_ours_of_their_architecture(tmp_path: Path, machine: Machine) -> None:
    session = Session(tmp_path, EMPTY, 600)
    session.first_turns(list(CONTESTANTS))
    found = session.comparison
    assert found.times_ours("megatron_local") == pytest.approx(4.0)
    assert found.times_ours("hugging_face") == pytest.approx(1.5)
    assert found.times_ours("transformer_engine") is None
    assert found.best_peer() == "hugging_face_compiled"
    machine.seconds |= {"hugging_face_compiled": 2.3, "ours_openai": 2.0}
    session.second_turns()
    # By hand: (1.3 + 2.3) / 2 over (1.0 + 2.0) / 2. That is more than the other's 1.5 / 1.5, and changes nothing.
    assert session.comparison.times_ours("hugging_face_compiled") == pytest.approx(1.2)
    assert session.comparison.best_peer() == "hugging_face_compiled"


def test_what_was_finished_is_kept_and_not_run_again(machine: Machine, tmp_path: Path) -> None:
    machine.hangs = {"ours_openai"}
    session = Session(tmp_path, EMPTY, 600)
    with pytest.raises(compare.OutOfTimeError, match="ours_openai did not finish turn 1"):
        session.first_turns(list(CONTESTANTS))
    kept = read(tmp_path)
    assert [turn.contestant for turn in kept.turns] == list(CONTESTANTS)[:3]
    machine.hangs, machine.requests = set(), []
    session = Session(tmp_path, kept, 600)
    session.first_turns(list(CONTESTANTS))
    assert [request.contestant for request in machine.requests] == list(CONTESTANTS)[3:]


def test_nothing_is_begun_when_the_time_is_over(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(compare.OutOfTimeError, match="ours has not had turn 1"):
        Session(tmp_path, EMPTY, 1).first_turns(["ours"])
    assert not machine.requests


def test_peers_without_ours_are_not_run(machine: Machine, tmp_path: Path) -> None:
    del machine.seconds["ours"]
    session = Session(tmp_path, EMPTY, 600)
    session.first_turns(["ours", "megatron_local"])
    assert took(session) == [("ours", 1)]


def test_what_does_not_fit_is_tried_otherwise_and_stays_so(machine: Machine, tmp_path: Path) -> None:
    machine.too_large = {("hugging_face", 2, "none"), ("ours_openai", 2, None)}
    session = Session(tmp_path, EMPTY, 600)
    session.first_turns(["ours_openai", "hugging_face"])
    session.second_turns()
    ways = [
        (request.contestant, request.micro_batch_size, env.get("RECOMPUTE"))
        for request, env in zip(machine.requests, machine.environments, strict=True)
    ]
    assert ways == [
        ("ours_openai", 2, None), ("ours_openai", 2, "moe_act"),
        ("hugging_face", 2, "none"), ("hugging_face", 1, "none"),
        ("hugging_face", 1, "none"), ("ours_openai", 2, "moe_act"),
    ]  # fmt: skip
    assert all(request.sequences == 2 for request in machine.requests)


def test_a_process_that_ends_without_a_word_has_failed(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare.subprocess, "run", lambda *_, **__: None)
    session = Session(tmp_path, EMPTY, 600)
    session.first_turns(["ours"])
    (turn,) = session.comparison.turns
    assert turn.status == "failed"
    assert turn.reason.endswith("ours-1.log")


# --- the table


def filled(tmp_path: Path) -> Comparison:
    session = Session(tmp_path, EMPTY, 600)
    session.first_turns(list(CONTESTANTS))
    return session.comparison


@pytest.mark.usefixtures("machine")
def test_the_table_has_every_contestant_and_the_targets(tmp_path: Path) -> None:
    text = markdown(filled(tmp_path))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    table = {row[0]: row for row in rows}
    assert {each.title for each in CONTESTANTS.values()} <= table.keys()
    assert len({len(row) for row in rows[:8]}) == 1
    assert table["Hugging Face"][-1] == "1.50"
    assert table["Megatron-Core, local spec"][2] == "1, RECOMPUTE=layers"
    assert table["Megatron-Core, Transformer Engine spec"][2] == "not available: not installed"
    # By hand: 374.6 TFLOP in 0.8 s and 0.75 s of 990 TFLOP/s.
    assert table["ours"][7:9] == ["47.3%", "50.5%"]
    assert table["MFU with it"][1:] == ["at least 0.42", "0.473", "met"]
    assert table["times Hugging Face's best"][1:] == ["at least 1.25", "1.3", "met"]
    assert "times Megatron-Core with Transformer Engine" not in table
    for fact in ("NVIDIA H200", "2030-01-02", "commit abc", "torch 2.13.0", "experts 400.0"):
        assert fact in text


@pytest.mark.usefixtures("machine")
def test_a_missed_target_is_called_so(tmp_path: Path, machine: Machine) -> None:
    machine.seconds["megatron_local"] = 1.9
    assert "| times Megatron-Core's local spec | at least 2.5 | 2.37 | missed |" in markdown(filled(tmp_path))


@pytest.mark.usefixtures("machine")
def test_the_readme_is_rewritten_between_its_markers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "README.md"
    before = README.read_text()
    copy.write_text(before)
    write(tmp_path, filled(tmp_path))
    monkeypatch.setattr(compare, "README", copy)
    for _ in range(2):
        compare.main(out=tmp_path, readme=True)
        after = copy.read_text()
        assert after.split(BEGIN)[0] == before.split(BEGIN)[0]
        assert after.split(END)[1] == before.split(END)[1]
        assert after.split(BEGIN)[1].split(END)[0] == "\n" + markdown(read(tmp_path))


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_readme_without_its_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(text)
    with pytest.raises(ValueError, match="expected one line"):
        rewrite(copy, "new\n")
    assert copy.read_text() == text


# --- what the README says

TEXT = README.read_text()


def predictions() -> list[list[str]]:
    section = TEXT.split("<!-- predictions: checked by a test -->")[1].split("<!-- /predictions -->")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.strip().splitlines()[2:]]


def test_each_prediction_is_work_over_rate() -> None:
    unit = {"TFLOP/s": 1e3, "TB/s": 1.0, "kernels/ms": 1.0}  # of TFLOP, GB and kernels, to milliseconds
    timed = [row for row in predictions() if row[3] != "-"]
    assert len(timed) >= 13
    for part, what, work, rate, milliseconds in timed:
        number, per = rate.split()
        predicted = float(work.split()[0]) / float(number) * unit[per]
        assert float(milliseconds) == pytest.approx(predicted, abs=0.06), (part, what)


def test_the_predictions_have_all_the_work_and_add_up() -> None:
    config = configure("S1", "reference", "torch", on_gpu=True)
    total = flops_per_token(config) * 16_384 / 1e12
    assert sum(float(row[2].split()[0]) for row in predictions() if "TFLOP" in row[2]) == pytest.approx(total, abs=0.1)
    assert {row[0].replace(" ", "_") for row in predictions()} == set(Parts.model_fields)
    with_optimizer = sum(float(row[4]) for row in predictions())
    optimizer = sum(float(row[4]) for row in predictions() if row[0] == "optimizer")
    said = re.search(r"That is ([\d.]+) ms .*, ([\d.]+) % MFU.*?, and ([\d.]+) ms with it, ([\d.]+) %", TEXT, re.DOTALL)
    assert said
    milliseconds = [with_optimizer - optimizer, with_optimizer]
    assert [float(said[1]), float(said[3])] == pytest.approx(milliseconds, abs=0.01)
    assert [float(said[2]), float(said[4])] == pytest.approx([1e5 * total / ms / 990 for ms in milliseconds], abs=0.06)


def test_the_readme_names_the_contestants_and_claims_no_measurement_that_was_not_made() -> None:
    table = TEXT.split("## Contestants")[1].split("##")[0]
    assert re.findall(r"^\| `(\w+)` ", table, re.MULTILINE) == list(CONTESTANTS)
    assert f"{22.864e9 / 1e9:.3f} GFLOP" in TEXT
    assert flops_per_token(configure("S1", "reference", "torch", True)) == pytest.approx(22.864e9, rel=1e-4)
    block = TEXT.split(BEGIN)[1].split(END)[0]
    assert "Not measured yet: no GPU was at hand" in block or "Recorded on" in block
