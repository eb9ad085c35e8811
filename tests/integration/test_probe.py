"""Routing, norms and attention scores of a step: right, the same on any layout, and without a trace."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptoss20b.megatron_cpu import import_megatron
from tests.support.ranks import run_ranks

import_megatron()

from gptoss20b.model.attention import TorchCoreAttention  # noqa: E402
from gptoss20b.probe import SAMPLED_QUERIES, Probe  # noqa: E402

LISTS = ("router_entropy", "expert_load_max_over_mean", "dead_experts", "max_attention_score")


def test_any_layout_measures_the_same(tiny: dict[str, str]) -> None:
    one = run_ranks("probe_jobs.measure", 1, variables=tiny | {"MICRO_BATCH_SIZE": "2"})[0]
    found = one["measured"]
    assert found["param_norm"] == pytest.approx(one["norm"], rel=1e-6)
    assert all(0 < entropy <= math.log(4) + 1e-6 for entropy in found["router_entropy"])
    assert all(1 <= load <= 2 for load in found["expert_load_max_over_mean"]), "8 experts, of which each token takes 4"
    two = {"DGXNGPU": "2", "EXPERT_PARALLEL": "2", "MICRO_BATCH_SIZE": "1"}
    for layout in (two, two | {"RECOMPUTE": "layers"}, two | {"EXPERT_PARALLEL": "1", "PIPELINE_PARALLEL": "2"}):
        size = {"MICRO_BATCH_SIZE": "2"} if "PIPELINE_PARALLEL" in layout else {}
        for rank in run_ranks("probe_jobs.measure", 2, variables=tiny | layout | size):
            assert rank["hooks"] == 0
            assert rank["loss"] == pytest.approx(one["loss"], rel=1e-5)
            for name, value in rank["measured"].items():
                assert value == pytest.approx(found[name], rel=1e-4), name


@pytest.mark.parametrize("window_left", [None, 5])
def test_the_largest_score_is_that_of_keys_which_a_sampled_query_sees(window_left: int | None) -> None:
    length, groups = 40, 2
    query, key = torch.randn(length, 2, 4, 8), torch.randn(length, 2, groups, 8)
    trainer: Any = SimpleNamespace(
        device=torch.device("cpu"),
        config=SimpleNamespace(
            model=SimpleNamespace(num_layers=1, num_experts=4),
            execution=SimpleNamespace(compile_mode="kernels"),
            parallel=SimpleNamespace(context=1),
        ),
    )
    probe = Probe(trainer)
    module: Any = SimpleNamespace(scale=0.5, window_left=window_left)
    probe._see_attention(0, module, (query, key))
    reach = length if window_left is None else window_left
    expected = max(
        0.5 * float(query[q, b, h] @ key[k, b, h // 2])
        for q in range(length - 1, -1, -(length // SAMPLED_QUERIES))
        for k in range(max(0, q - reach), q + 1)
        for b in range(2)
        for h in range(4)
    )
    assert float(probe._scores[0]) == pytest.approx(expected, rel=1e-6)
    probe._see_attention(0, module, (10 * query, key))  # a later micro batch
    assert float(probe._scores[0]) == pytest.approx(expected, rel=1e-6)
    assert TorchCoreAttention.forward.__code__.co_varnames[1:3] == ("query", "key"), "what the hook gets"
