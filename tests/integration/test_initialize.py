"""Initial weights: their deviations, the first loss, and the state after the warm-up."""

from __future__ import annotations

import gzip
import json
import math
from typing import Any

import pytest
import torch

from gptoss20b.config import Config, resolve
from gptoss20b.model.initialize import draw_normal, init_method
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks

REFERENCE_LOGS = ROOT.parent / "shared" / "data" / "rcp_logs" / "gbs32"


@pytest.fixture(scope="module")
def config(tiny: dict[str, str]) -> Config:
    return resolve(tiny | {"SEQUENCE_LENGTH": "2048"})


@pytest.fixture(scope="module")
def weights_and_loss(tiny: dict[str, str]) -> dict[str, Any]:
    (statistics,) = run_ranks("model_jobs.initial_statistics", 1, variables=tiny | {"SEQUENCE_LENGTH": "2048"})
    return dict(statistics)


def test_every_deviation_is_within_its_sampling_error(weights_and_loss: dict[str, Any], config: Config) -> None:
    kinds = set()
    for name, (mean, deviation, count) in weights_and_loss["weights"].items():
        if "norm" in name:
            assert (mean, deviation) == (1.0, 0.0), name
            kinds.add("norm")
            continue
        scaled = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        expected = config.fixed.init_method_std / (math.sqrt(2 * config.model.num_layers) if scaled else 1)
        # Standard errors of a normal sample's mean and deviation; five of them.
        assert deviation == pytest.approx(expected, abs=5 * expected / math.sqrt(2 * count)), name
        assert mean == pytest.approx(0.0, abs=5 * expected / math.sqrt(count)), name
        kinds.add("scaled" if scaled else "normal")
    assert kinds == {"norm", "scaled", "normal"}


def expected_first_loss(config: Config) -> tuple[float, float]:
    """Return ln V and half the variance of a logit, whose sum is the first loss (docs/model.md)."""
    return math.log(config.model.vocab_size), config.model.hidden_size * config.fixed.init_method_std**2 / 2


def test_the_first_loss_is_that_of_the_initialization(weights_and_loss: dict[str, Any], config: Config) -> None:
    log_vocabulary, half_variance = expected_first_loss(config)
    assert weights_and_loss["loss"] == pytest.approx(log_vocabulary + half_variance, abs=0.02)
    assert half_variance > 0.05, "the second term must be visible"


@pytest.mark.skipif(not REFERENCE_LOGS.is_dir(), reason="the published reference logs are not beside this checkout")
def test_the_references_logs_start_at_the_expected_first_loss() -> None:
    first_losses = []
    for log in REFERENCE_LOGS.glob("*.log*"):
        text = gzip.decompress(log.read_bytes()) if log.suffix == ".gz" else log.read_bytes()
        line = next(line for line in text.decode().splitlines() if '"train_loss"' in line)
        first_losses.append(json.loads(line.split(":::MLLOG ")[1])["value"])
    assert len(first_losses) == 10
    assert sum(first_losses) / 10 == pytest.approx(sum(expected_first_loss(resolve({}))), abs=0.005)


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
def test_init_method_by_name(name: str, expected: str) -> None:
    assert init_method(name) == expected


def test_a_draw_depends_on_seed_name_and_expert_alone() -> None:
    shape = torch.Size((8, 8))
    first = draw_normal(1, "w", 3, shape, 0.1)
    torch.manual_seed(99)  # torch's global generator must not matter
    assert torch.equal(draw_normal(1, "w", 3, shape, 0.1), first)
    for seed, name, expert in ((2, "w", 3), (1, "v", 3), (1, "w", 4), (1, "w", None)):
        assert not torch.equal(draw_normal(seed, name, expert, shape, 0.1), first)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_warm_up_leaves_no_trace(precision: str, tiny: dict[str, str]) -> None:
    variables = tiny | {"DGXNGPU": "2", "EXPERT_PARALLEL": "2", "PRECISION": precision}
    for states in run_ranks("warm_up_leaves_no_trace", 2, variables=variables):
        assert states["after"] == states["before"]
        assert states["again"] == states["before"]
        unchanged = [name for name, digest in states["during"].items() if digest == states["before"][name]]
        assert "schedule" not in unchanged
        assert "random" not in unchanged
        assert len(unchanged) < len(states["before"]) / 4, "steps must have changed most of the state"
