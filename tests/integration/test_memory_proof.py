"""Test the memory model against traces: its tensors on four full-width layers, its allocator on whole models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from doc_tools.memory import gpu_configurations, read_traced
from gptoss20b.config import Config, resolve
from gptoss20b.megatron_cpu import import_megatron
from gptoss20b.memory import peak_memory
from gptoss20b.proof.command import trace_in_processes
from gptoss20b.proof.result import Trace
from tests.integration.test_trace import needs_compiler
from tests.support.configs import BARE
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.proof]

OPENAI = {"MODEL_VARIANT": "openai"}
# Settings and imbalance. In each the peak has other parts.
CASES: dict[str, tuple[dict[str, str], float]] = {
    "many rows": ({"MICRO_BATCH_SIZE": "2"}, 4.0),
    "EP 1": ({"EXPERT_PARALLEL": "1", "MICRO_BATCH_SIZE": "1"}, 1.0),
    "EP 4, three sequences": ({"EXPERT_PARALLEL": "4", "MICRO_BATCH_SIZE": "3"}, 2.0),
    "moe_act": ({"RECOMPUTE": "moe_act", "MICRO_BATCH_SIZE": "2"}, 1.5),
    "moe": ({"RECOMPUTE": "moe", "MICRO_BATCH_SIZE": "2"}, 2.0),
    "layers": ({"RECOMPUTE": "layers", "MICRO_BATCH_SIZE": "1"}, 1.0),
    "openai": (OPENAI | {"MICRO_BATCH_SIZE": "2"}, 1.5),
    "openai, layers, EP 4": (OPENAI | {"RECOMPUTE": "layers", "EXPERT_PARALLEL": "4", "MICRO_BATCH_SIZE": "1"}, 2.0),
    "pipeline": ({"PIPELINE_PARALLEL": "2", "EXPERT_PARALLEL": "4", "MICRO_BATCH_SIZE": "1"}, 1.0),
}
ROWS = [("config_H200_1x8.sh", 1.0), ("config_B200_2x8.sh", 2.0)]
# Of 21 whole models (EP 1, 4 and 8, micro batch 1 to 3, every RECOMPUTE, both variants, balanced and twice the rows)
# the one for which the allocator takes most beyond the model: 1.7 %.
WORST: tuple[dict[str, str], float] = (OPENAI | {"RECOMPUTE": "layers", "MICRO_BATCH_SIZE": "2"}, 2.0)


def whole(settings: dict[str, str]) -> Config:
    return resolve({"SUBMISSION_DIVISION": "open", "BACKEND": "torch", "GLOBAL_BATCH_SIZE": "48"} | settings)


def shallow(settings: dict[str, str]) -> Config:
    config = whole(settings)
    return config.model_copy(update={"model": config.model.model_copy(update={"num_layers": 4})})


@pytest.fixture(scope="module")
def traces() -> dict[object, Trace]:
    """Return the trace of each case and row, and of the worst, two at a time."""
    import_megatron()
    configs = [*(shallow(settings) for settings, _ in CASES.values()), whole(WORST[0])]
    configs += [gpu_configurations()[name] for name, _ in ROWS]
    imbalances = [imbalance for _, imbalance in (*CASES.values(), WORST, *ROWS)]
    return dict(zip([*CASES, "worst", *ROWS], trace_in_processes(configs, imbalances), strict=True))


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_the_model_has_the_tensors_of_the_trace(traces: dict[object, Trace], name: str) -> None:
    settings, imbalance = CASES[name]
    model, trace = peak_memory(shallow(settings)), traces[name]
    assert model.live_bytes(imbalance) == pytest.approx(trace.peak_live_bytes, rel=0.01)


@needs_compiler
def test_the_model_has_the_bytes_of_the_allocator(traces: dict[object, Trace]) -> None:
    settings, imbalance = WORST
    model, trace = peak_memory(whole(settings)), traces["worst"]
    assert model.live_bytes(imbalance) == pytest.approx(trace.peak_live_bytes, rel=0.01)
    assert model.reserved_bytes(imbalance) == pytest.approx(trace.peak_reserved_bytes, rel=0.03)


@needs_compiler
@pytest.mark.parametrize(("name", "imbalance"), ROWS)
def test_the_table_is_current(traces: dict[object, Trace], name: str, imbalance: float) -> None:
    (row,) = [row for row in read_traced().configurations[name] if row.imbalance == imbalance]
    trace = traces[name, imbalance]
    # Another version of torch or Megatron-Core may differ a little: `python -m doc_tools.memory` traces again.
    assert trace.peak_live_bytes == pytest.approx(row.live_bytes, rel=0.005)
    assert trace.peak_reserved_bytes == pytest.approx(row.reserved_bytes, rel=0.02)


# A warm-up of one pass, then three steps of a run. Printed: the peak of the tensors, and the allocator's bytes so far.
WARM_UP = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from gptoss20b.megatron_cpu import import_megatron
import_megatron()
from gptoss20b import trainer, warmup
from gptoss20b.config import Config
from gptoss20b.proof.allocator import peak_reserved_bytes
from gptoss20b.proof.stand_ins import DEVICE, fake_gpu
from gptoss20b.proof.trace import _batches
# Random numbers and the loss have no values on a GPU that does not exist.
warmup.synthetic_batches = lambda config, device, count: _batches(config, count)
trainer.mean_loss = lambda *sums: 0.0
config, figures = Config.model_validate_json(sys.argv[1]), []
with fake_gpu(config) as gpu:
    model = trainer.Trainer(config, "torch", DEVICE, seed=1)
    steps = [lambda: model.step(_batches(config, config.accumulation_steps))] * 3
    for run in [lambda: warmup.warm_up(model, 1), *steps]:
        gpu.accountant.reset()
        run()
        figures.append([gpu.accountant.peak_bytes, peak_reserved_bytes(gpu.accountant.events, True)])
print(json.dumps(figures))
"""


@needs_compiler
def test_one_pass_of_the_warm_up_reaches_the_peak_of_later_steps() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WARM_UP, shallow({"MICRO_BATCH_SIZE": "2"}).model_dump_json()],
        cwd=ROOT, env=BARE, capture_output=True, text=True, check=True,
    )  # fmt: skip
    warm_up, first, *later = json.loads(done.stdout)
    for live, reserved in later:
        assert live == pytest.approx(warm_up[0], rel=0.001)
        assert reserved == pytest.approx(warm_up[1], rel=0.001)
    assert first[0] < warm_up[0]  # the moments of a run are allocated after the peak of its first step
