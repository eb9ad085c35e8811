"""The built model has the windows, positions, norms and router that the reference page gives each variant."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.support.ranks import run_ranks


@pytest.fixture(scope="module")
def models(tiny: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {
        "reference": run_ranks("numbers_jobs.built", 1, variables=tiny | {"layers": "4"})[0],
        "openai": run_ranks("numbers_jobs.built", 1, variables=tiny | {"layers": "4", "like openai": "yes"})[0],
    }


def test_layers_1_and_3_are_windowed(models: dict[str, dict[str, Any]]) -> None:
    assert models["reference"]["past"] == [128, None, 128, None]  # Megatron's (128, 0): 128 past and the own key
    assert models["openai"]["past"] == [20, None, 20, None]


def test_window_of_the_released_model_is_one_key_shorter() -> None:
    from gptoss20b.config import resolve

    assert resolve({"MODEL_VARIANT": "openai", "SUBMISSION_DIVISION": "open"}).model.window_left == 127


def test_norms_and_router(models: dict[str, dict[str, Any]]) -> None:
    for model in models.values():
        assert model["norm epsilons"] == {1e-5}
        assert model["router"] == (4, False, "fp32")
    assert set(models["reference"]["norms of queries"]) == {"NormWeight"}
    assert set(models["openai"]["norms of queries"]) == {"IdentityOp"}


def test_every_module_with_parameters_is_called(models: dict[str, dict[str, Any]]) -> None:
    # Megatron's DDP waits for parameters that are still being gathered in hooks on the modules that own them.
    for model in models.values():
        assert model["never called"] == []


def test_biases_and_sinks(models: dict[str, dict[str, Any]]) -> None:
    assert models["reference"]["biases"] == []
    assert models["openai"]["biases"] == ["linear_fc1", "linear_fc2", "linear_proj", "linear_qkv", "router"]
    assert models["reference"]["sunk"] == []
    assert models["openai"]["sunk"] == [True] * 4


def rope(position: int, pair: int, head_dim: int = 16) -> float:
    return position / 150_000 ** (2 * pair / head_dim)


def test_rotary_angles_of_the_reference(models: dict[str, dict[str, Any]]) -> None:
    angles = models["reference"]["angles"]
    for position in (0, 1, 63):
        expected = [rope(position, pair) for pair in range(8)] * 2  # non-interleaved: the halves share their angles
        assert angles[position] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert models["reference"]["concentration"] == 1.0


def test_rotary_angles_of_the_released_model(models: dict[str, dict[str, Any]]) -> None:
    # YaRN (Peng et al. 2023): fast pairs keep their angle, slow ones are divided by the factor, a linear ramp between.
    factor, original, head_dim, base = 32.0, 16, 16, 150_000.0

    def turns_at(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(turns_at(32.0), 0.0), min(turns_at(1.0), head_dim - 1.0)
    expected = []
    for pair in range(head_dim // 2):
        kept = 1 - min(1.0, max(0.0, (pair - low) / (high - low)))
        expected.append(rope(63, pair) * (kept + (1 - kept) / factor))
    assert models["openai"]["angles"][63] == pytest.approx(expected * 2, rel=1e-5)
    assert models["openai"]["concentration"] == pytest.approx(0.1 * math.log(factor) + 1)
