"""The open division's extras: the auxiliary loss and expert biases as docs/model.md defines them."""

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
# (function of load_balancing_jobs, name of the case)
Task = tuple[str, str]


def run_tasks(tasks: dict[Task, dict[str, str]], tiny: dict[str, str], world: int) -> dict[Task, list[Any]]:
    """Return each task's results by rank."""
    jobs = [(name, tiny | own) for (name, _), own in tasks.items()]
    per_rank = run_ranks("load_balancing_jobs.run_tasks", world, tasks=jobs)
    return {task: [rank[number] for rank in per_rank] for number, task in enumerate(tasks)}


@pytest.fixture(scope="module")
def one_rank(tiny: dict[str, str]) -> dict[Task, Any]:
    """Return the results of everything that runs on one rank."""
    tasks = {("compare_gradients", case): own for case, own in {"off": {}, **WITH_LOSS}.items()}
    tasks |= {("train_steps", case): own for case, own in EXTRAS.items()}
    tasks |= {("compare_choices", "biases"): BIAS, ("warm_up_biases", "biases"): BIAS}
    return {task: result for task, (result,) in run_tasks(tasks, tiny, 1).items()}


@pytest.fixture(scope="module")
def two_ranks(tiny: dict[str, str]) -> dict[Task, list[Any]]:
    """Return the results of everything that runs on two ranks, by rank."""
    tasks = {
        ("train_steps", f"{extra}, {layout}"): own | sizes
        for extra, own in EXTRAS.items()
        for layout, sizes in LAYOUTS.items()
    }
    # More than 256 tokens per expert and rank: bf16 cannot count further.
    counting = LAYOUTS["expert parallel 2"] | BIAS | {"GLOBAL_BATCH_SIZE": "24"}
    tasks |= {("track_biases", precision): counting | {"PRECISION": precision} for precision in ("fp32", "bf16")}
    return run_tasks(tasks, tiny, 2)


@pytest.mark.parametrize("case", ["off", *WITH_LOSS])
def test_gradients_include_the_auxiliary_loss_and_the_logged_loss_does_not(
    case: str, one_rank: dict[Task, Any]
) -> None:
    outcome = one_rank["compare_gradients", case]
    worst = max(outcome["difference"], key=outcome["difference"].get)
    assert outcome["difference"][worst] < 1e-5, worst
    # With these shares a scale that is wrong by one part in a thousand would be seen.
    router_shares = [share for name, share in outcome["extra share"].items() if "router.weight" in name]
    assert len(router_shares) == 2
    assert all(share == 0 if case == "off" else share > 0.1 for share in router_shares)
    assert outcome["loss"] == pytest.approx(outcome["main loss"], rel=1e-6)


def test_the_evaluation_loss_is_without_it(one_rank: dict[Task, Any]) -> None:
    for case in ("accumulation 8", "accumulation 4"):
        evaluations = [one_rank["compare_gradients", name]["evaluation"] for name in (case, "off")]
        assert evaluations[0] == evaluations[1]


def test_the_cases_accumulate_as_named(one_rank: dict[Task, Any]) -> None:
    assert [one_rank["compare_gradients", case]["micro batches"] for case in WITH_LOSS] == [8, 4, 2, 8, 8]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_biases_move_by_the_rate_toward_balance(precision: str, two_ranks: dict[Task, list[Any]]) -> None:
    ranks = two_ranks["track_biases", precision]
    for rank in ranks:
        assert rank["dtypes"] == {"torch.float32"}
        for number, step in enumerate(rank["steps"]):
            assert step["after"] == step["expected"] == step["after evaluation"]
            assert step["after"] != step["before"]
            assert step["uncounted tokens"] == 0
            assert number > 0 or not any(map(any, step["before"]))
    assert ranks[0]["steps"] == ranks[1]["steps"]


def test_a_bias_changes_the_choice_and_not_the_weights(one_rank: dict[Task, Any]) -> None:
    result = one_rank["compare_choices", "biases"]
    assert result["equal choices"]
    assert result["probs difference"] < 1e-6
    assert result["changed by bias"] > 0.2


def test_the_warm_up_leaves_the_biases_at_zero(one_rank: dict[Task, Any]) -> None:
    result = one_rank["warm_up_biases", "biases"]
    assert all(map(any, result["during"]))
    assert not any(map(any, result["after"]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_parallel_layouts_train_as_one_rank(
    extra: str, layout: str, one_rank: dict[Task, Any], two_ranks: dict[Task, list[Any]]
) -> None:
    one = one_rank["train_steps", extra]
    for rank in two_ranks["train_steps", f"{extra}, {layout}"]:
        assert rank["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert rank["norms"] == pytest.approx(one["norms"], rel=1e-4)
        assert rank["evaluation"] == pytest.approx(one["evaluation"], rel=1e-5)
        assert rank["counts"] == one["counts"]


def test_an_expert_bias_is_no_parameter(one_rank: dict[Task, Any]) -> None:
    with_loss, with_biases = (one_rank["train_steps", case] for case in ("loss", "biases"))
    assert (with_biases["names"], with_biases["counts"]) == (with_loss["names"], with_loss["counts"])
