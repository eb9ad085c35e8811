"""The open division's extras do what docs/model.md defines: the load-balancing loss and expert biases."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.ranks import run_ranks

# Strong enough that a wrong scale would show in every comparison.
AUX = {"AUX_LOSS_COEFF": "2.5"}
BIAS = {"EXPERT_BIAS_RATE": "0.05"}
EXTRAS = {"loss": AUX | {"EOD_TOKEN": "7"}, "biases": BIAS}
LAYOUTS = {
    "data parallel 2": {"DGXNGPU": "2"},
    "expert parallel 2": {"DGXNGPU": "2", "EXPERT_PARALLEL": "2"},
    "pipeline parallel 2": {"DGXNGPU": "2", "PIPELINE_PARALLEL": "2"},
}
WITH_LOSS = {
    "accumulation 8": AUX,
    "accumulation 4": AUX | {"GLOBAL_BATCH_SIZE": "4"},
    "micro batch 4": AUX | {"MICRO_BATCH_SIZE": "4"},
    "masked": AUX | {"EOD_TOKEN": "7"},
    "like openai": AUX | {"like openai": "yes"},
}
Tasks = dict[tuple[str, str], dict[str, str]]


def measured(tasks: Tasks, tiny: dict[str, str], world: int) -> dict[tuple[str, str], list[Any]]:
    """What each rank's job says, by what is measured and case."""
    per_rank = run_ranks("extras_jobs.measured", world, tasks=[(name, tiny | own) for (name, _), own in tasks.items()])
    return {task: [rank[number] for rank in per_rank] for number, task in enumerate(tasks)}


@pytest.fixture(scope="module")
def alone(tiny: dict[str, str]) -> dict[tuple[str, str], Any]:
    """Everything that one rank measures."""
    tasks: Tasks = {("gradients", case): own for case, own in {"off": {}, **WITH_LOSS}.items()}
    tasks |= {("steps", case): own for case, own in EXTRAS.items()}
    tasks |= {("choices", "biases"): BIAS, ("warmed_up", "biases"): BIAS}
    return {task: found for task, (found,) in measured(tasks, tiny, 1).items()}


@pytest.fixture(scope="module")
def spread(tiny: dict[str, str]) -> dict[tuple[str, str], list[Any]]:
    """Everything that two ranks measure, by rank."""
    tasks: Tasks = {
        ("steps", f"{extra}, {layout}"): own | sizes
        for extra, own in EXTRAS.items()
        for layout, sizes in LAYOUTS.items()
    }
    # More than 256 tokens an expert and rank, which is as far as bf16 counts.
    counting = LAYOUTS["expert parallel 2"] | BIAS | {"GLOBAL_BATCH_SIZE": "24"}
    tasks |= {("biases", precision): counting | {"PRECISION": precision} for precision in ("fp32", "bf16")}
    return measured(tasks, tiny, 2)


# --- the load-balancing loss


@pytest.mark.parametrize("case", ["off", *WITH_LOSS])
def test_gradients_are_those_of_the_definition(case: str, alone: dict[tuple[str, str], Any]) -> None:
    outcome = alone["gradients", case]
    worst = max(outcome["difference"], key=outcome["difference"].get)
    assert outcome["difference"][worst] < 1e-5, worst
    # So a scale that is wrong by one part in a thousand would be seen.
    of_routers = [share for name, share in outcome["share"].items() if "router.weight" in name]
    assert len(of_routers) == 2
    assert all(share == 0 if case == "off" else share > 0.1 for share in of_routers)


@pytest.mark.parametrize("case", ["off", *WITH_LOSS])
def test_the_training_loss_is_without_it(case: str, alone: dict[tuple[str, str], Any]) -> None:
    outcome = alone["gradients", case]
    assert outcome["loss"] == pytest.approx(outcome["main loss"], rel=1e-6)


def test_the_evaluation_loss_is_without_it(alone: dict[tuple[str, str], Any]) -> None:
    for case in ("accumulation 8", "accumulation 4"):
        assert alone["gradients", case]["evaluation"] == alone["gradients", "off"]["evaluation"]


def test_the_cases_accumulate_as_they_say(alone: dict[tuple[str, str], Any]) -> None:
    assert [alone["gradients", case]["micro batches"] for case in WITH_LOSS] == [8, 4, 2, 8, 8]


# --- expert biases


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_biases_move_by_the_rate_toward_balance(precision: str, spread: dict[tuple[str, str], list[Any]]) -> None:
    ranks = spread["biases", precision]
    for rank in ranks:
        assert rank["types"] == {"torch.float32"}
        for number, step in enumerate(rank["steps"]):
            assert step["after"] == step["expected"] == step["after evaluation"]
            assert step["after"] != step["before"]
            assert step["left to count"] == 0
            assert number > 0 or not any(map(any, step["before"]))
    assert ranks[0]["steps"] == ranks[1]["steps"]


def test_a_bias_weighs_in_the_choice_and_not_in_the_weights(alone: dict[tuple[str, str], Any]) -> None:
    found = alone["choices", "biases"]
    assert found["agree"]
    assert found["largest difference of weights"] < 1e-6
    assert found["tokens that choose otherwise"] > 0.2


def test_the_warm_up_leaves_the_biases_at_zero(alone: dict[tuple[str, str], Any]) -> None:
    found = alone["warmed_up", "biases"]
    assert all(map(any, found["during"]))
    assert not any(map(any, found["after"]))


# --- both


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_data_expert_and_pipeline_parallel_follow_one_rank(
    extra: str, layout: str, alone: dict[tuple[str, str], Any], spread: dict[tuple[str, str], list[Any]]
) -> None:
    one = alone["steps", extra]
    for rank in spread["steps", f"{extra}, {layout}"]:
        assert rank["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert rank["norms"] == pytest.approx(one["norms"], rel=1e-4)
        assert rank["evaluation"] == pytest.approx(one["evaluation"], rel=1e-5)
        assert rank["counts"] == one["counts"]


def test_an_expert_bias_is_no_parameter(alone: dict[tuple[str, str], Any]) -> None:
    assert alone["steps", "biases"]["names"] == alone["steps", "loss"]["names"]
    assert alone["steps", "biases"]["counts"] == alone["steps", "loss"]["counts"]
