"""Test the trace: the whole model's step on fake GPU tensors, and the changes that must turn it red."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptoss20b.config import resolve, settings
from gptoss20b.proof.command import run
from gptoss20b.proof.guard import ProofError
from gptoss20b.proof.result import TraceReport
from gptoss20b.tools.estimate.traffic import all_to_all_bytes, all_to_alls_per_layer
from tests.support.configs import BARE, load_config
from tests.support.paths import ROOT
from tests.support.traces import Case, needs_compiler, trace_cases

pytestmark = [pytest.mark.slow, pytest.mark.proof]

GIB = 1 << 30
# Two layers on two ranks: seconds instead of the whole model's ten.
TINY = {
    **{"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "PRECISION": "bf16", "BACKEND": "torch"},
    **{"DGXNGPU": "2", "EXPERT_PARALLEL": "2", "MICRO_BATCH_SIZE": "1", "GLOBAL_BATCH_SIZE": "2"},
}


@needs_compiler
def test_a_b200_s_step_has_the_known_memory_waits_and_collectives() -> None:
    """The figures of the first trace, by other code: 106.0 GiB at balance and 139.8 at twice the rows."""
    variables = {name: value for name, value in load_config("config_B200_1x8.sh").items() if name in settings()}
    config = resolve(variables)
    report = run(config, 1.0, None)
    trace = report.trace
    assert report.system == "B200"
    assert trace.peak_live_bytes == pytest.approx(105.8 * GIB, rel=0.005)
    assert trace.peak_reserved_bytes_without_expandable_segments == pytest.approx(111.5 * GIB, rel=0.005)
    assert trace.peak_live_bytes < trace.peak_reserved_bytes < trace.peak_reserved_bytes_without_expandable_segments
    # One wait in each of 24 layers, for the sizes of the all-to-all; three messages forward and two backward.
    assert report.host_waits_per_step == 24
    (place,) = trace.host_waits
    assert "model/dispatch.py" in place
    assert trace.collectives["alltoall_base"].count == 5 * 24 == 24 * all_to_alls_per_layer(config)
    sent = 8 / 7 * all_to_all_bytes(config)  # also what a rank keeps
    assert trace.collectives["alltoall_base"].payload_bytes == pytest.approx(sent, rel=1e-6)
    # In traces every further mean of rows takes 33.3 GiB: from 180 GB to where it is full. The report's is computed.
    assert report.survivable_imbalance == pytest.approx(1 + (180e9 / GIB - 106.8) / 33.3, rel=0.03)
    assert sum(trace.at_peak_bytes.values()) == trace.peak_live_bytes
    assert trace.at_peak_bytes["optimizer"] == pytest.approx(2 * trace.at_peak_bytes["gradients"], rel=0.03)
    assert max(trace.timeline_bytes) == trace.peak_live_bytes
    # The formula's FLOPs, and the attention scores, which the backward pass computes again: half of the forward pass's.
    scores = sum(part.flops for part in report.parts if part.part == "attention scores" and part.phase == "forward")
    assert report.flops_per_step == pytest.approx(report.model_flops + scores / 2, rel=1e-6)
    documented = re.search(r"\| all \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "docs/gpu-proof.md").read_text())
    assert documented is not None
    figures = (report.flops_per_step / 1e12, report.bytes_per_step / 1e9, report.roofline_seconds * 1e3)
    assert figures == pytest.approx([float(figure) for figure in documented.groups()], rel=0.01)
    assert max(trace.compiled_versions.values()) <= 2


@needs_compiler
def test_the_command_prints_figures_and_writes_a_page(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gptoss20b", "trace", "--system=H200", "--json", f"--html={tmp_path}/page.html"],
        cwd=ROOT, env=BARE | TINY | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    report = TraceReport.model_validate(figures)
    assert figures["host_waits_per_step"] == 2 and figures["survivable_imbalance"] > 1
    assert figures["peak_live_bytes"] == report.trace.peak_live_bytes <= figures["peak_reserved_bytes"]
    assert figures["collectives_per_step"] > 10
    assert "<svg" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("changes", "system", "fact"),
    [
        ({"PRECISION": "fp32"}, "H200", "PRECISION"),
        ({"BACKEND": "transformer_engine"}, "H200", "BACKEND"),
        ({}, "X", "'X'"),
    ],
)
def test_a_configuration_without_a_trace_is_refused(changes: dict[str, str], system: str, fact: str) -> None:
    with pytest.raises(ProofError, match=fact):
        run(resolve(TINY | changes), 1.0, system)


# Each replaces one function by one that does something a step on a GPU must not do.
CHANGES = {
    "a value read back": """
from gptoss20b import trainer
original = trainer._sum_loss
def changed(losses, loss_mask):
    loss_mask.sum().item()
    return original(losses, loss_mask)
trainer._sum_loss = changed
""",
    "fp32 rows into a grouped GEMM": """
from gptoss20b.model.experts import GroupedExperts
original = GroupedExperts.forward
GroupedExperts.forward = lambda self, rows, counts, probs: original(self, rows.float(), counts, probs)
""",
    "unaligned rows into a grouped GEMM": """
import torch.nn.functional as F
from gptoss20b.model.experts import GroupedExperts
original = GroupedExperts.forward
def changed(self, rows, counts, probs):
    return original(self, F.pad(rows, (0, 1))[:, :-1], counts, probs)
GroupedExperts.forward = changed
""",
    "a mask on the CPU": """
import torch
from gptoss20b.model import attention
original = attention.window_block_mask
attention.window_block_mask = lambda length, window_left, device: original(length, window_left, torch.device("cpu"))
""",
    "a second size exchange": """
from gptoss20b.model.dispatch import AllToAllPlan
original = AllToAllPlan.exchange.__func__
def changed(cls, counts, group):
    original(cls, counts, group)
    return original(cls, counts, group)
AllToAllPlan.exchange = classmethod(changed)
""",
    "a tensor kept alive": """
import torch
from gptoss20b.trainer import Trainer
original, kept = Trainer.step, []
def changed(self, batches):
    kept.append(torch.ones(1000, device=self.device))
    return original(self, batches)
Trainer.step = changed
""",
}


@pytest.fixture(scope="module")
def traces() -> dict[str, Any]:
    """Return waits, all-to-alls, leaked and peak bytes of each change, and of each RECOMPUTE; or the error."""
    cases = {name: Case(TINY, change) for name, change in {"none": "", **CHANGES}.items()}
    cases |= {recompute: Case(TINY | {"RECOMPUTE": recompute}) for recompute in ("moe", "layers")}
    return {
        name: trace
        if isinstance(trace, str)
        else [
            sum(trace.host_waits.values()),
            trace.collectives["alltoall_base"].count,
            trace.leaked_bytes,
            trace.peak_live_bytes,
        ]
        for name, trace in trace_cases(cases).items()
    }


@needs_compiler
def test_a_step_of_two_layers_waits_twice_and_keeps_nothing(traces: dict[str, Any]) -> None:
    assert traces["none"][:3] == [2, 10, 0]


@needs_compiler
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_step_must_not_do_is_seen(traces: dict[str, Any], change: str) -> None:
    assert traces[change][:3] != [2, 10, 0]


@needs_compiler
def test_recomputation_trades_memory_for_collectives(traces: dict[str, Any]) -> None:
    assert traces["layers"][3] < traces["moe"][3] < traces["none"][3]
    # Each recomputed layer waits for its sizes again, and sends its rows again.
    assert traces["layers"][:3] == traces["moe"][:3] == [4, 16, 0]
