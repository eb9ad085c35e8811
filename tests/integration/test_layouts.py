"""Expert, data and pipeline parallelism, accumulation and layer back ends leave losses and gradients unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.ranks import run_ranks

STEPS = 5


def assert_same_run(outcomes: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    first = outcomes[0]
    assert first["losses"][-1] < first["losses"][0] - 0.05, "the runs learn nothing, so they compare nothing"
    for other in outcomes[1:]:
        assert other["losses"] == pytest.approx(first["losses"], rel=tolerance)
        assert other["norms"] == pytest.approx(first["norms"], rel=1e-4)
        assert other["evaluation"] == pytest.approx(first["evaluation"], rel=tolerance)
        assert other["counts"] == first["counts"]


@pytest.fixture(scope="module")
def one_rank(tiny: dict[str, str]) -> dict[str, Any]:
    outcome: dict[str, Any] = run_ranks("train_steps", world=1, variables=[tiny], steps=STEPS)[0][0]
    return outcome


def test_expert_parallel_1_2_4_8_follow_one_rank(tiny: dict[str, str], one_rank: dict[str, Any]) -> None:
    variables = [tiny | {"DGXNGPU": "8", "EXPERT_PARALLEL": str(size)} for size in (1, 2, 4, 8)]
    per_rank = run_ranks("train_steps", world=8, limit_s=300, variables=variables, steps=STEPS)
    assert all(outcomes == per_rank[0] for outcomes in per_rank), "ranks report different runs"
    for outcome in per_rank[0]:
        assert outcome["weights"] == one_rank["weights"]
    assert_same_run([*per_rank[0], one_rank])


@pytest.mark.parametrize(("world", "layout"), [(2, {}), (4, {}), (2, {"PIPELINE_PARALLEL": "2"})])
def test_data_and_pipeline_parallel_ranks_follow_one_rank(
    world: int, layout: dict[str, str], tiny: dict[str, str], one_rank: dict[str, Any]
) -> None:
    variables = [tiny | {"DGXNGPU": str(world)} | layout]
    for (outcome,) in run_ranks("train_steps", world, variables=variables, steps=STEPS):
        assert outcome["weights"] == one_rank["weights"]
        assert_same_run([one_rank, outcome])


def test_accumulation_1_2_4_at_one_global_batch_size(tiny: dict[str, str], one_rank: dict[str, Any]) -> None:
    variables = [tiny | {"DGXNGPU": "2", "MICRO_BATCH_SIZE": str(size)} for size in (4, 2, 1)]
    outcomes = run_ranks("train_steps", world=2, variables=variables, steps=STEPS)[0]
    assert_same_run([*outcomes, one_rank])


def test_masked_tokens_have_the_same_weight_in_every_layout(tiny: dict[str, str]) -> None:
    # With an end-of-document token micro batches count unequal numbers of tokens, so a mean of means would differ.
    masked = tiny | {"EOD_TOKEN": "7", "DGXNGPU": "2"}
    variables = [masked | {"MICRO_BATCH_SIZE": str(size)} for size in (4, 1)]
    outcomes = run_ranks("train_steps", world=2, variables=variables, steps=STEPS)[0]
    assert_same_run(outcomes)
    plain = run_ranks("train_steps", world=2, variables=[tiny | {"DGXNGPU": "2"}], steps=1)[0][0]
    assert plain["losses"][0] != pytest.approx(outcomes[0]["losses"][0], rel=1e-7), "the mask does nothing"


@pytest.mark.parametrize("expert_parallel", ["1", "2"])
def test_the_torch_back_end_follows_megatrons_local_spec(expert_parallel: str, tiny: dict[str, str]) -> None:
    # A window of 20 earlier keys is shorter than the sequence, so both kinds of layer are compared.
    variables = [tiny | {"DGXNGPU": "2", "EXPERT_PARALLEL": expert_parallel, "window": "20"}]
    ours = run_ranks("train_steps", 2, variables=variables, steps=STEPS)[0][0]
    theirs = run_ranks("train_steps", 2, variables=variables, steps=STEPS, backend="megatron_local")[0][0]
    assert ours["weights"] == theirs["weights"]
    assert_same_run([theirs, ours])


@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_the_torch_back_end_has_the_gradients_of_megatrons_local_spec(
    expert_parallel: int, tiny: dict[str, str]
) -> None:
    variables = tiny | {"DGXNGPU": str(expert_parallel), "EXPERT_PARALLEL": str(expert_parallel), "window": "20"}
    backends = ["torch", "megatron_local"]
    for ours, theirs in run_ranks("gradients", expert_parallel, variables=variables, backends=backends):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradients"].keys() == theirs["gradients"].keys()
        assert len(ours["gradients"]) == 3 + 2 * (7 + 2 * 8 // expert_parallel)
        for name, gradient in theirs["gradients"].items():
            # Only an expert that no token chose has a zero gradient.
            largest = np.abs(gradient).max()
            assert np.abs(ours["gradients"][name] - gradient).max() <= 1e-5 * largest, name
            assert largest > 0 or ".experts." in name, name


def test_the_released_models_features_are_the_same_in_every_expert_layout(tiny: dict[str, str]) -> None:
    # Biases, sinks, YaRN and the clamped activation, with the experts on one rank or on two.
    openai = tiny | {"like openai": "yes", "DGXNGPU": "2"}
    outcomes = run_ranks("train_steps", 2, variables=[openai, openai | {"EXPERT_PARALLEL": "2"}], steps=STEPS)[0]
    assert outcomes[0]["weights"] == outcomes[1]["weights"]
    assert any(name.endswith("softmax_offset") for name in outcomes[0]["weights"])
    assert_same_run(outcomes)
