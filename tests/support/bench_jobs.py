"""Jobs that time scenarios and compare baselines, each in one process without a launcher."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from typer.testing import CliRunner

from benchmarks.gpu.hugging_face import HuggingFace
from benchmarks.gpu.results import Request, Trial
from benchmarks.gpu.trial import GateError, gate, run_trial
from gptoss20b.cli import app
from gptoss20b.config import Config
from gptoss20b.process_groups import distributed_session, read_rank
from gptoss20b.tools.bench.measure import Timing, time_scenario
from gptoss20b.tools.bench.result import BenchResult, Outcome
from gptoss20b.tools.bench.scenarios import SCENARIOS, Variant, configure
from gptoss20b.tools.bench.workload import ForwardBackward, TrainStep, Workload

QUICK = Timing(warmup=1, steps=2)
CPU = torch.device("cpu")
VARIANTS: tuple[Variant, ...] = ("reference", "openai")


def _without_launcher() -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    warnings.simplefilter("ignore")


def by_command(out: str) -> dict[str, Any]:
    """Time the torch back end by the command; then give it the same file, and a back end that is missing."""
    _without_launcher()
    arguments = ["bench", "--scenario", "tiny", "--warmup", "1", "--steps", "2", "--out", out]
    first = CliRunner().invoke(app, arguments)
    text = Path(out).read_text() if Path(out).exists() else ""
    again = CliRunner().invoke(app, arguments)
    missing = CliRunner().invoke(app, ["bench", "--scenario", "tiny", "--backend", "transformer_engine"])
    return {
        "codes": (first.exit_code, again.exit_code, missing.exit_code),
        "error": repr(first.exception),
        "shown": first.stdout,
        "json": text,
        "unchanged": text == Path(out).read_text() if text else False,
        "missing": missing.stderr,
    }


def by_back_end() -> dict[str, BenchResult]:
    """Time Megatron-Core's local spec, ours in two micro batches, the openai variant, and ours without an optimizer."""
    _without_launcher()
    found = {
        "megatron_local": time_scenario("tiny", "megatron_local", "reference", QUICK),
        "one by one": time_scenario("tiny", "torch", "reference", QUICK, 1, 2),
        "openai": time_scenario("tiny", "torch", "openai", QUICK),
    }
    scenario = SCENARIOS["tiny"]
    object.__setattr__(scenario, "has_optimizer", False)
    found["forward and backward"] = time_scenario("tiny", "torch", "reference", QUICK)
    object.__setattr__(scenario, "has_optimizer", True)
    return found


def unchanged_by_steps() -> dict[str, list[Outcome]]:
    """Return the first outcome of ours and of Hugging Face's, and the one after steps with the optimizer."""
    _without_launcher()
    config = configure("tiny", "openai", "torch", on_gpu=False)
    found = {}
    with distributed_session(config, read_rank(config)):
        workloads: dict[str, Workload] = {
            "ours": TrainStep(config, "torch", CPU),
            "forward and backward": ForwardBackward(config, "torch", CPU),
            "hugging_face": HuggingFace(config, CPU, compiled=False),
        }
        for name, workload in workloads.items():
            outcomes = [workload.first_step()]
            for _ in range(3 if workload.has_optimizer else 0):
                workload.full_step()
            found[name] = [*outcomes, workload.first_step()]
    return found


def gated_in_bf16() -> dict[str, str]:
    """Return the gate's message for equal baselines in bf16, and for mutants of ours.

    As in S1, every token goes to all experts (rounding changes no choice), and scores and gates have S1's size.
    """
    _without_launcher()
    messages: dict[str, str] = {}
    for variant in VARIANTS:
        config = configure("tiny", variant, "torch", on_gpu=True)
        std = configure("S1", variant, "torch", on_gpu=True).fixed.init_method_std
        std *= (2880 / config.model.hidden_size) ** 0.5
        model = config.model.model_copy(update={"window_left": 32, "num_experts": 4, "router_topk": 4})
        fixed = config.fixed.model_copy(update={"init_method_std": std})
        config = config.model_copy(update={"model": model, "fixed": fixed})
        with distributed_session(config, read_rank(config)):
            messages |= {f"{variant} {name}": text for name, text in _gate_mutants(config).items()}
    return messages


def _gate_mutants(config: Config) -> dict[str, str]:
    ours = ForwardBackward(config, "torch", CPU)
    expected = ours.first_step()

    def gate_message(workload: Workload) -> str:
        try:
            gate(workload.first_step(), expected, "bf16")
        except GateError as error:
            return str(error)
        return ""

    has_sinks = config.model.attention_sinks
    equal = HuggingFace(config, CPU, False) if has_sinks else ForwardBackward(config, "megatron_local", CPU)
    messages = {"equal": gate_message(equal)}
    cores = [layer.self_attention.core_attention for layer in ours.gpt.decoder.layers]
    windows = [core.window_left for core in cores]
    for core in cores:
        core.window_left = None
    messages["without windows"] = gate_message(ours)
    for core, window in zip(cores, windows, strict=True):
        core.window_left = window
    if has_sinks:
        for core in cores:
            core.softmax_offset.data.fill_(-1e4)
        messages["without sinks"] = gate_message(ours)
    return messages


class _Perturbed(HuggingFace):
    """Hugging Face's model with one weight changed. Its steps must not be timed."""

    def __init__(self, config: Config, device: torch.device, compiled: bool) -> None:
        super().__init__(config, device, compiled)
        with torch.no_grad():
            self.model.model.layers[0].mlp.experts.down_proj[1] *= 1.5

    def full_step(self) -> object:
        raise AssertionError("timed although the gate failed")


def gated() -> dict[str, Trial]:
    """Return Hugging Face's trial with equal weights, and with one weight changed."""
    _without_launcher()
    ours = time_scenario("tiny", "torch", "openai", QUICK)
    request = Request(
        baseline="hugging_face", scenario="tiny", micro_batch_size=2, sequences=2, warmup=1, steps=2, limit=10.0,
        expected=ours.outcome,
    )  # fmt: skip
    equal = run_trial(request, 1)
    with patch("benchmarks.gpu.hugging_face.HuggingFace", _Perturbed):
        return {"equal": equal, "perturbed": run_trial(request, 1)}
