"""Initial weights: their deviations, the first loss, and what the warm-up leaves behind (nothing)."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gptoss20b.model.initialize import draw_normal, init_method
from tests.support.ranks import run_ranks

STD, LAYERS, HIDDEN, VOCABULARY = 0.04, 2, 64, 256


@pytest.fixture(scope="module")
def statistics(tiny: dict[str, str]) -> dict[str, Any]:
    return run_ranks("numbers_jobs.initial_statistics", 1, variables=tiny | {"SEQUENCE_LENGTH": "2048"})[0]


def test_every_deviation_matches_its_rule_within_sampling_error(statistics: dict[str, Any]) -> None:
    kinds = set()
    for name, (mean, deviation, count) in statistics["weights"].items():
        if "norm" in name:
            assert (mean, deviation) == (1.0, 0.0), name
            kinds.add("norm")
            continue
        scaled = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        expected = STD / math.sqrt(2 * LAYERS) if scaled else STD
        # Standard errors of a normal sample's mean and deviation; five of them.
        assert deviation == pytest.approx(expected, abs=5 * expected / math.sqrt(2 * count)), name
        assert mean == pytest.approx(0.0, abs=5 * expected / math.sqrt(count)), name
        kinds.add("scaled" if scaled else "normal")
    assert kinds == {"norm", "scaled", "normal"}


def test_the_first_loss_is_that_of_the_initialisation(statistics: dict[str, Any]) -> None:
    expected = math.log(VOCABULARY) + HIDDEN * STD**2 / 2
    assert statistics["loss"] == pytest.approx(expected, abs=0.02)
    assert HIDDEN * STD**2 / 2 > 0.05, "the second term must be visible"


def test_the_benchmark_first_loss_as_the_reference_page_has_it() -> None:
    assert math.log(128_256) + 2880 * 0.008**2 / 2 == pytest.approx(11.854, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embedding.word_embeddings.weight", "normal"),
        ("output_layer.weight", "normal"),
        ("decoder.layers.0.mlp.router.weight", "normal"),
        ("decoder.layers.0.mlp.router.bias", "normal"),
        ("decoder.layers.0.self_attention.linear_qkv.weight", "normal"),
        ("decoder.layers.0.self_attention.linear_qkv.bias", "zeros"),
        ("decoder.layers.0.self_attention.linear_qkv.layer_norm_weight", "ones"),
        ("decoder.layers.0.self_attention.core_attention.softmax_offset", "normal"),
        ("decoder.layers.0.self_attention.linear_proj.weight", "scaled_normal"),
        ("decoder.layers.0.mlp.experts.linear_fc1.weight", "normal"),
        ("decoder.layers.0.mlp.experts.linear_fc2.weight", "scaled_normal"),
        ("decoder.layers.0.mlp.experts.linear_fc2.bias", "zeros"),
        ("decoder.final_layernorm.weight", "ones"),
    ],
)
def test_rule_by_name(name: str, expected: str) -> None:
    assert init_method(name) == expected


def test_a_draw_depends_on_seed_name_and_expert_alone() -> None:
    import torch

    shape = torch.Size((8, 8))
    first = draw_normal(1, "w", 3, shape, 0.1)
    torch.manual_seed(99)  # another stream must not matter
    assert torch.equal(draw_normal(1, "w", 3, shape, 0.1), first)
    for other in (
        draw_normal(2, "w", 3, shape, 0.1),
        draw_normal(1, "v", 3, shape, 0.1),
        draw_normal(1, "w", 4, shape, 0.1),
    ):
        assert not torch.equal(other, first)
    assert not torch.equal(draw_normal(1, "w", None, shape, 0.1), first)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_warm_up_leaves_no_trace(precision: str, tiny: dict[str, str]) -> None:
    states = run_ranks(
        "warm_up_leaves_no_trace",
        2,
        variables=tiny | {"DGXNGPU": "2", "EXPERT_PARALLEL": "2", "PRECISION": precision},
    )
    for each in states:
        assert each["after"] == each["before"]
        assert each["again"] == each["before"]
        unchanged = [name for name, digest in each["during"].items() if digest == each["before"][name]]
        assert "schedule" not in unchanged
        assert "random" not in unchanged
        assert len(unchanged) < len(each["before"]) / 4, "steps must have changed most of the state"
