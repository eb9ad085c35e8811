"""What a rank does to time scenarios, and to compare baselines, in one process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from benchmarks.gpu.compare import TOLERANCE
from benchmarks.gpu.hugging_face import HuggingFace
from benchmarks.gpu.records import Expected, Request
from benchmarks.gpu.trial import GateError, gate, run_trial
from gptoss20b.cli import app
from gptoss20b.config import Config
from gptoss20b.process_groups import distributed_session, read_rank
from gptoss20b.tools.bench.measure import Timing, time_scenario
from gptoss20b.tools.bench.result import as_dict
from gptoss20b.tools.bench.scenarios import SCENARIOS, configure
from gptoss20b.tools.bench.workload import ForwardBackward, Outcome, TrainStep

QUICK = Timing(warmup=1, steps=2)
CPU = torch.device("cpu")


def _run_alone() -> None:
    """As a user does, without a launcher."""
    import os

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    warnings.simplefilter("ignore")


def by_command(out: str) -> dict[str, Any]:
    """Time the torch back end by the command; then give it the same file again."""
    _run_alone()
    arguments = ["bench", "--scenario", "tiny", "--warmup", "1", "--steps", "2", "--out", out]
    first = CliRunner().invoke(app, arguments)
    text = Path(out).read_text() if Path(out).exists() else ""
    again = CliRunner().invoke(app, arguments)
    refused = CliRunner().invoke(app, ["bench", "--scenario", "tiny", "--backend", "transformer_engine"])
    return {
        "codes": (first.exit_code, again.exit_code, refused.exit_code),
        "error": repr(first.exception),
        "shown": first.stdout,
        "json": text,
        "unchanged": text == Path(out).read_text() if text else False,
        "refused": refused.stderr,
    }


def by_back_end() -> dict[str, dict[str, Any]]:
    """Megatron-Core's local spec, ours in two micro batches, and ours without gradient buffers."""
    _run_alone()
    found = {
        "megatron_local": as_dict(time_scenario("tiny", "megatron_local", "reference", QUICK)),
        "one by one": as_dict(time_scenario("tiny", "torch", "reference", QUICK, 1, 2)),
        "openai": as_dict(time_scenario("tiny", "torch", "openai", QUICK)),
    }
    has_optimizer = SCENARIOS["tiny"].has_optimizer
    object.__setattr__(SCENARIOS["tiny"], "has_optimizer", False)
    found["bare"] = as_dict(time_scenario("tiny", "torch", "reference", QUICK))
    object.__setattr__(SCENARIOS["tiny"], "has_optimizer", has_optimizer)
    return found


def unchanged_by_steps() -> dict[str, list[Outcome]]:
    """The first outcome of ours and of Hugging Face's, and the one after steps with the optimizer."""
    _run_alone()
    config = configure("tiny", "openai", "torch", on_gpu=False)
    found = {}
    with distributed_session(config, read_rank(config)):
        for name, workload in (
            ("ours", TrainStep(config, "torch", CPU)),
            ("bare", ForwardBackward(config, "torch", CPU)),
            ("hugging_face", HuggingFace(config, CPU, compiled=False)),
        ):
            outcomes = [workload.first_step()]
            for _ in range(3 if workload.has_optimizer else 0):
                workload.full_step()
            found[name] = [*outcomes, workload.first_step()]
    return found


def gated_in_bf16() -> dict[str, str]:
    """What the gate says of peers in bf16 that compute what ours does, and of ours without a piece of it.

    As in S1, every token goes to all experts (rounding changes no choice), and scores and gates are as large as there.
    """
    _run_alone()
    said: dict[str, str] = {}
    for variant in ("reference", "openai"):
        config = configure("tiny", variant, "torch", on_gpu=True)  # type: ignore[arg-type]
        std = configure("S1", variant, "torch", on_gpu=True).fixed.init_method_std  # type: ignore[arg-type]
        std *= (2880 / config.model.hidden_size) ** 0.5
        model = config.model.model_copy(update={"window_left": 32, "num_experts": 4, "router_topk": 4})
        rules = config.fixed.model_copy(update={"init_method_std": std})
        config = config.model_copy(update={"model": model, "fixed": rules})
        with distributed_session(config, read_rank(config)):
            said |= {f"{variant} {name}": text for name, text in _gate_mutants(config).items()}
    return said


def _gate_mutants(config: Config) -> dict[str, str]:
    ours = ForwardBackward(config, "torch", CPU)
    right = ours.first_step()
    of_loss, of_norms = TOLERANCE["bf16"]
    expected = Expected(
        loss=right.loss, grad_norm=right.grad_norm, norms=right.norms, loss_tolerance=of_loss, norm_tolerance=of_norms
    )

    def said(outcome: Outcome) -> str:
        try:
            gate(outcome, expected)
        except GateError as error:
            return str(error)
        return ""

    peer = (
        HuggingFace(config, CPU, False)
        if config.model.attention_sinks
        else ForwardBackward(config, "megatron_local", CPU)
    )
    found = {"peer": said(peer.first_step())}
    cores = [layer.self_attention.core_attention for layer in ours.gpt.decoder.layers]
    windows = [core.past for core in cores]
    for core in cores:
        core.past = None
    found["windowless"] = said(ours.first_step())
    for core, window in zip(cores, windows, strict=True):
        core.past = window
    if config.model.attention_sinks:
        for core in cores:
            core.softmax_offset.data.fill_(-1e4)
        found["sinkless"] = said(ours.first_step())
    return found


def gated() -> dict[str, Any]:
    """Hugging Face's trial when it computes what ours does, and when one of its weights is another."""
    _run_alone()
    ours = time_scenario("tiny", "torch", "openai", QUICK)
    expected = Expected(
        loss=ours.loss, grad_norm=ours.grad_norm, norms=ours.norms, loss_tolerance=1e-4, norm_tolerance=1e-4
    )
    request = Request(
        baseline="hugging_face", scenario="tiny", micro_batch_size=2, sequences=2, warmup=1, steps=2, limit=10.0,
        expected=expected,
    )  # fmt: skip
    found = {"equal": run_trial(request, 1)}
    build, spoilt = HuggingFace.__init__, HuggingFace.full_step

    def perturbed(self: HuggingFace, *arguments: Any, **more: Any) -> None:
        build(self, *arguments, **more)
        with torch.no_grad():
            self.model.model.layers[0].mlp.experts.down_proj[1] *= 1.5

    def never(self: HuggingFace) -> None:
        raise AssertionError("timed in spite of the gate")

    HuggingFace.__init__, HuggingFace.full_step = perturbed, never  # type: ignore[method-assign]
    found["perturbed"] = run_trial(request, 1)
    HuggingFace.__init__, HuggingFace.full_step = build, spoilt  # type: ignore[method-assign]
    return {name: trial.model_dump() for name, trial in found.items()}
