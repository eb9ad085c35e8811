"""The memory model: activations against arithmetic."""

from __future__ import annotations

import pytest

from gptoss20b.config import resolve
from gptoss20b.memory import activation_bytes

GIB = 2**30


def test_activations_of_the_reference() -> None:
    assert activations("none") == 39
    assert activations("none", MICRO_BATCH_SIZE="2") == activations("none", PRECISION="fp32") == 78
    half = {"SUBMISSION_DIVISION": "open", "SEQUENCE_LENGTH": "4096", "PIPELINE_PARALLEL": "2", "EXPERT_PARALLEL": "4"}
    assert activations("none", **half) == pytest.approx(39 / 4)


def activations(recompute: str, **settings: str) -> float:
    """Return GiB with micro batch 1."""
    return activation_bytes(resolve({"MICRO_BATCH_SIZE": "1", "RECOMPUTE": recompute} | settings)) / GIB


def test_recomputed_activations_are_not_kept() -> None:
    # By hand, in bf16: numbers per token of 24 layers of width 2,880 with four experts each.
    layer_input = 2 * 8192 * 24 * 2880 / GIB
    assert activations("moe_act") == pytest.approx(39 - 4 * layer_input)
    assert activations("moe") == pytest.approx(39 - 16 * layer_input)
    assert activations("layers") == pytest.approx(layer_input + 39 / 24)
    for level in ("moe_act", "moe", "layers"):
        assert activations(level, MICRO_BATCH_SIZE="2") == pytest.approx(2 * activations(level))
        assert activations(level, PRECISION="fp32") == pytest.approx(2 * activations(level))


def test_pipeline_stages_share_the_inputs_of_layers_and_not_the_recomputed_layer() -> None:
    halves = {"SUBMISSION_DIVISION": "open", "PIPELINE_PARALLEL": "2", "EXPERT_PARALLEL": "4"}
    inputs = activations("layers") - 39 / 24
    assert activations("layers", **halves) == pytest.approx(inputs / 2 + 39 / 24)
    assert activations("moe", **halves) == pytest.approx(activations("moe") / 2)


def test_experts_of_another_size_or_number_free_their_own() -> None:
    # Each chosen expert keeps a row, a gate, an up projection and an activation. Eight experts keep twice as much.
    tiny = {"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "PRECISION": "bf16"}
    four, without = resolve(tiny), resolve(tiny | {"RECOMPUTE": "moe"})
    model, tokens = four.model, four.fixed.sequence_length * four.execution.micro_batch_size
    experts = 2 * tokens * model.num_layers * model.router_topk * (model.hidden_size + 3 * model.moe_ffn_hidden_size)
    assert activation_bytes(four) - activation_bytes(without) == pytest.approx(experts, abs=1)
    eight = four.model_copy(update={"model": model.model_copy(update={"router_topk": 8})})
    assert activation_bytes(eight) - activation_bytes(four) == pytest.approx(experts, abs=1)
