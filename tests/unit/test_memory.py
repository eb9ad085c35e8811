"""The memory model: what each setting changes, and the traced table of the shipped configurations."""

from __future__ import annotations

import pytest

from doc_tools.memory import IMBALANCES, gpu_configurations, read_traced
from gptoss20b.config import Config, resolve
from gptoss20b.hardware import SYSTEMS
from gptoss20b.memory import PeakMemory, peak_memory
from gptoss20b.model.size import state_bytes_per_gpu
from gptoss20b.proof.command import _survivable_imbalance

GIB = 2**30
# Of the reference model; tests of `info` count them from the modules.
COUNTS = {"experts": 24 * 32 * 3 * 2880 * 2880, "embedding": 128_256 * 2880, "other": 0}
COUNTS["other"] = 20_488_418_112 - COUNTS["experts"] - COUNTS["embedding"]


def peak(config: Config) -> PeakMemory:
    return peak_memory(config, state_bytes_per_gpu(config, COUNTS))


def reference(**settings: str) -> PeakMemory:
    return peak(resolve({"SUBMISSION_DIVISION": "open", "MICRO_BATCH_SIZE": "2"} | settings))


@pytest.mark.parametrize("name", gpu_configurations())
def test_the_model_agrees_with_the_traced_table(name: str) -> None:
    """Every shipped configuration for GPUs has a row. `python -m doc_tools.memory` traces it."""
    model = peak(gpu_configurations()[name])
    rows = read_traced().configurations[name]
    assert [row.imbalance for row in rows] == list(IMBALANCES)
    for row in rows:
        assert model.live_bytes(row.imbalance) == pytest.approx(row.live_bytes, rel=0.01)
        assert model.reserved_bytes(row.imbalance) == pytest.approx(row.reserved_bytes, rel=0.03)


@pytest.mark.parametrize("name", gpu_configurations())
def test_each_shipped_configuration_survives_twice_the_mean_rows(name: str) -> None:
    config = gpu_configurations()[name]
    system = SYSTEMS[config.submission.system.split("_")[0]]
    assert peak(config).fits(system.memory_bytes)


def test_rows_take_memory_until_the_gpu_is_full() -> None:
    model, memory = reference(), SYSTEMS["H200"].memory_bytes
    survivable = model.survivable_imbalance(memory)
    assert survivable is not None and 1.5 < survivable < 2
    assert model.reserved_bytes(survivable) == pytest.approx(memory, abs=2)
    assert model.fits(memory, survivable - 0.01) and not model.fits(memory, survivable + 0.01)
    assert f"up to {survivable:.1f} times" in model.describe(memory)
    assert "DOES NOT FIT" in model.describe(50 * GIB) and (model.survivable_imbalance(50 * GIB) or 0) < 1


def test_without_expert_parallelism_the_routing_changes_nothing() -> None:
    model = reference(EXPERT_PARALLEL="1")
    assert model.survivable_imbalance(200e9) is None
    assert model.reserved_bytes(2.0) == model.reserved_bytes()
    assert "times" not in model.describe(300e9)


def test_recomputed_activations_are_not_kept() -> None:
    rows, number = 2 * 8192 * 4, 2  # of two sequences in a layer; bytes
    kept = {level: reference(RECOMPUTE=level).live_bytes() for level in ("none", "moe_act", "moe", "layers")}
    # By hand: an activation of every row in 24 layers.
    assert kept["none"] - kept["moe_act"] == 24 * rows * number * 2880
    assert kept["layers"] < kept["moe"] < kept["moe_act"] - 24 * rows * number * 2880
    # With every layer recomputed, only its input is kept.
    more = reference(RECOMPUTE="layers", MICRO_BATCH_SIZE="1").live_bytes()
    assert kept["layers"] - more < 24 * 8192 * number * 2880 + 4 * GIB


def test_the_first_stage_of_a_pipeline_keeps_a_micro_batch_for_each_stage() -> None:
    settings = {"EXPERT_PARALLEL": "4", "GLOBAL_BATCH_SIZE": "16", "MICRO_BATCH_SIZE": "1"}
    one, two = reference(**settings), reference(**settings, PIPELINE_PARALLEL="2")
    kept = [model.live_bytes() - model.state_bytes for model in (one, two)]
    assert kept[1] == pytest.approx(kept[0], rel=0.15)  # half the layers of twice as many micro batches
    single = reference(**settings | {"GLOBAL_BATCH_SIZE": "4"}, PIPELINE_PARALLEL="2")
    assert single.live_bytes() - single.state_bytes < 0.65 * kept[1]


def test_the_state_of_a_stage_has_the_embedding_or_the_output_layer() -> None:
    config = resolve({"SUBMISSION_DIVISION": "open", "PIPELINE_PARALLEL": "8", "EXPERT_PARALLEL": "1"})
    layers = COUNTS["experts"] + COUNTS["other"] - COUNTS["embedding"]
    # Weight, gradient, main weight and moments on the only rank of the stage.
    assert state_bytes_per_gpu(config, COUNTS) == pytest.approx(18 * (layers / 8 + COUNTS["embedding"]), rel=1e-6)


def test_what_a_trace_says_of_imbalance() -> None:
    base = {"GLOBAL_BATCH_SIZE": "16", "MICRO_BATCH_SIZE": "2"}
    alone, moe = (resolve(base | more) for more in ({"EXPERT_PARALLEL": "1"}, {"RECOMPUTE": "moe"}))
    assert [_survivable_imbalance(alone, round(size)) for size in (180e9, 288e9)] == [0.0, 1.0]
    assert _survivable_imbalance(moe, round(141e9)) == 8.0, "all rows go to one rank's experts"
    assert 0 <= _survivable_imbalance(moe, round(70e9)) < 1
