"""The built model has the windows, positions, norms and router of its variant."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gptoss20b.config import resolve
from tests.support.ranks import run_ranks


@pytest.fixture(scope="module")
def models(tiny: dict[str, str]) -> dict[str, dict[str, Any]]:
    variables = {"reference": tiny | {"layers": "4"}, "openai": tiny | {"layers": "4", "like openai": "yes"}}
    return {name: run_ranks("model_jobs.inspect_model", 1, variables=each)[0] for name, each in variables.items()}


def test_layers_1_and_3_are_windowed(models: dict[str, dict[str, Any]]) -> None:
    assert models["reference"]["window_left"] == [128, None, 128, None]  # Megatron's (128, 0): 128 and the own key
    assert models["openai"]["window_left"] == [20, None, 20, None]


def test_the_released_models_window_is_one_key_shorter() -> None:
    assert resolve({"MODEL_VARIANT": "openai", "SUBMISSION_DIVISION": "open"}).model.window_left == 127


def test_norms_and_router(models: dict[str, dict[str, Any]]) -> None:
    for model in models.values():
        assert model["norm epsilons"] == {1e-5}
        assert model["router"] == (4, False, "fp32")
    assert models["reference"]["query norms"] == {"NormWeight"}
    assert models["openai"]["query norms"] == {"IdentityOp"}


def test_every_module_with_parameters_is_called(models: dict[str, dict[str, Any]]) -> None:
    # Megatron's DDP waits for parameters that are still being gathered in hooks on the modules that own them.
    for model in models.values():
        assert model["never called"] == []


def test_biases_and_sinks(models: dict[str, dict[str, Any]]) -> None:
    assert models["reference"]["biases"] == []
    assert models["openai"]["biases"] == ["linear_fc1", "linear_fc2", "linear_proj", "linear_qkv", "router"]
    assert models["reference"]["sinks change outputs"] == []
    assert models["openai"]["sinks change outputs"] == [True] * 4


def rope_angle(position: int, pair: int, head_dim: int = 16) -> float:
    return position / math.pow(150_000, 2 * pair / head_dim)


def cosines_and_sines(angles: list[float], magnitude: float = 1.0) -> list[float]:
    return [magnitude * function(angle) for function in (math.cos, math.sin) for angle in angles]


def test_rotary_angles_of_the_reference(models: dict[str, dict[str, Any]]) -> None:
    for position in (0, 1, 63):
        angles = [rope_angle(position, pair) for pair in range(8)]
        assert models["reference"]["rotation"][position] == pytest.approx(cosines_and_sines(angles), abs=1e-5)


def test_rotary_angles_of_the_released_model(models: dict[str, dict[str, Any]]) -> None:
    # YaRN (Peng et al. 2023): fast pairs keep their angle, slow ones are divided by the factor, a linear ramp between.
    factor, original, head_dim, base = 32.0, 16, 16, 150_000.0

    def correction_dim(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(correction_dim(32.0), 0.0), min(correction_dim(1.0), head_dim - 1.0)
    expected = []
    for pair in range(head_dim // 2):
        kept = 1 - min(1.0, max(0.0, (pair - low) / (high - low)))
        expected.append(rope_angle(63, pair) * (kept + (1 - kept) / factor))
    concentration = 0.1 * math.log(factor) + 1
    assert models["openai"]["rotation"][63] == pytest.approx(cosines_and_sines(expected, concentration), abs=1e-5)


def test_tensor_parallel_weights_are_marked(tiny: dict[str, str]) -> None:
    # Megatron-Core counts a gradient once in the norm only where the weight is marked as split.
    variables = tiny | {"DGXNGPU": "2", "TENSOR_PARALLEL": "2", "BACKEND": "auto"}
    for rank in run_ranks("model_jobs.tensor_parallel_attributes", 2, variables=variables):
        assert rank["embedding.word_embeddings.weight"] == ((128, 64), True, 0, 1)
        assert rank["output_layer.weight"] == ((128, 64), True, 0, 1)
        marked = {name: attributes for name, attributes in rank.items() if attributes[1]}
        linear = {name: attributes[2:] for name, attributes in marked.items() if "self_attention" in name}
        assert linear == {
            f"decoder.layers.{layer}.self_attention.{name}.weight": (dim, 1)
            for layer in (0, 1)
            for name, dim in (("linear_qkv", 0), ("linear_proj", 1))
        }
        assert len(marked) == 2 + len(linear)
