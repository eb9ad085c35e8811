"""Optimizer: gradient clipping, weight decay, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gptoss20b.config import Config, resolve
from tests.support.ranks import run_ranks


def test_clipping_equals_megatrons_own(tiny: dict[str, str]) -> None:
    variables = tiny | {"DGXNGPU": "2", "EXPERT_PARALLEL": "2"}
    for outcome in run_ranks("optimizer_jobs.compare_clipping", 2, variables=variables):
        for result in outcome.values():
            assert result["ours"] == pytest.approx(result["megatron"], rel=1e-6)
            assert result["difference"] < 1e-6
        assert outcome[1e-3]["ours"] > 1e-3, "the smaller limit does not clip"


def test_one_dimensional_tensors_and_biases_are_exempt_from_decay(tiny: dict[str, str]) -> None:
    decayed = run_ranks("optimizer_jobs.decayed_parameters", 1, variables=tiny)[0]
    exempt = {name for name, decays in decayed.items() if not decays}
    assert exempt == {name for name in decayed if "norm" in name}
    for name in ("word_embeddings.weight", "output_layer.weight", "router.weight", "experts.linear_fc1.weight"):
        assert any(each.endswith(name) for each in decayed if decayed[each]), name


def test_expert_biases_are_exempt_from_decay_though_they_are_matrices(tiny: dict[str, str]) -> None:
    decayed = run_ranks("optimizer_jobs.decayed_parameters", 1, variables=tiny | {"like openai": "yes"})[0]
    assert {name for name in decayed if name.endswith("bias")}
    assert not any(decays for name, decays in decayed.items() if name.endswith("bias"))


def test_a_step_reads_no_scalar_from_the_device(tiny: dict[str, str]) -> None:
    reads = run_ranks("optimizer_jobs.host_reads", 1, variables=tiny)[0]
    assert reads["step"] == []
    assert reads["loss"], "the watch does not see the read of the loss for the log"


def test_two_steps_are_those_of_plain_adamw_on_plain_gradients(tiny: dict[str, str]) -> None:
    # Hard clipping brings gradients close to epsilon, so their scale, the betas and epsilon all show in the weights.
    variables = tiny | {"GRADIENT_CLIP": "1e-2", "WARMUP_STEPS": "0", "EOD_TOKEN": "7"}
    for world in (1, 2):
        found = run_ranks(
            "optimizer_jobs.compare_updates", 1, variables=variables | {"MICRO_BATCH_SIZE": str(world)}, steps=3
        )[0]
        assert found["gradients"] < 1e-5
        assert found["weights"] < 1e-4
        assert found["clipped by"] < 0.1
        assert found["smallest change"] > 1e-6


def published_rate(config: Config, updates_before: int) -> float:
    """Compute the published schedule: linear warm-up from 0, then cosine to a tenth of the base rate."""
    base, warm_up = config.free.learning_rate, config.free.warmup_steps
    if updates_before <= warm_up:
        return base * updates_before / warm_up
    if updates_before > 1_200_000:
        return 0.1 * base
    progress = (updates_before - warm_up) / (1_200_000 - warm_up)
    return 0.1 * base + 0.9 * base * 0.5 * (1 + math.cos(math.pi * progress))


class _Optimizer:
    """Stub with the parameter groups that Megatron's scheduler reads."""

    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": None, "weight_decay": None, "params": []}]


@pytest.mark.parametrize(("learning_rate", "warm_up"), [("4e-4", "128"), ("8e-4", "128"), ("1e-3", "192")])
def test_the_learning_rate_of_each_step_is_the_published_one(learning_rate: str, warm_up: str) -> None:
    from gptoss20b.optimizer import build_scheduler

    config = resolve({"LEARNING_RATE": learning_rate, "WARMUP_STEPS": warm_up})
    optimizer = _Optimizer()
    scheduler = build_scheduler(config, optimizer)
    done = 0
    for step in (1, 2, 128, 129, 193, 10_000, 1_200_000):
        scheduler.step(step - 1 - done)
        done = step - 1
        assert optimizer.param_groups[0]["lr"] == pytest.approx(published_rate(config, step - 1), rel=1e-12), step
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert published_rate(config, 0) == 0.0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * config.free.learning_rate, rel=1e-9)
