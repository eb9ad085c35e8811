"""Overlap, fused AdamW, recomputation and compiled layers change the speed of a step and not its result."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.transformer import transformer_config
from megatron.core.transformer.moe import experts as megatron_experts
from megatron.core.transformer.moe import moe_utils

from gptoss20b.config import resolve
from gptoss20b.model import megatron_config
from gptoss20b.model.backend import Backend, BackendError, choose_backend
from gptoss20b.model.experts import weighted_swiglu
from gptoss20b.model.megatron_config import build_transformer_config, fusion_flags
from tests.support.ranks import run_ranks

TWO = {"DGXNGPU": "2", "EXPERT_PARALLEL": "1"}


@pytest.mark.parametrize("layout", [TWO, TWO | {"EXPERT_PARALLEL": "2", "like openai": "yes"}])
def test_gathering_weights_in_the_next_forward_pass_changes_no_bit(
    tiny: dict[str, str], layout: dict[str, str]
) -> None:
    # Small buckets, so that each module waits for its own.
    runs = {
        overlap: run_ranks("step_jobs.steps", 2, variables=tiny | layout, count=3, overlap=overlap, bucket=1000)
        for overlap in (False, True)
    }
    for plain, overlapped in zip(*runs.values(), strict=True):
        assert plain["buckets"] > 5
        for each in ("losses", "norms", "evaluation", "whole"):
            assert plain[each] == overlapped[each], each
        assert plain["behind"] == plain["whole"]
        assert overlapped["behind"] != overlapped["whole"], "nothing was left to gather, so the test sees no overlap"


def test_adamw_resumes_fused_from_any_checkpoint_and_saves_only_finite_ones(
    tiny: dict[str, str], tmp_path: Path
) -> None:
    found = run_ranks("step_jobs.resumed_adamw", 1, variables=tiny, place=str(tmp_path))[0]
    assert found["resumed"] == found["trained"]
    assert found["fused"] == {True}
    assert found["saved"] == ["step_00000003"]
    (warning,) = found["warnings"]
    assert "after step 5 failed" in warning and "exp_avg_sq" in warning


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_gradient_of_one_rank_that_is_not_finite_updates_no_rank(tiny: dict[str, str], value: str) -> None:
    for found in run_ranks("step_jobs.skipped_update", 2, variables=tiny | TWO, value=float(value)):
        assert found["unchanged"] == [True, False]
        assert found["finite norms"] == [True, False, True]
        assert [count > 0 for count in found["nonfinite"]] == [False, True, False]
        assert found["message"].startswith("gradient norm at step 2 is ")


@pytest.mark.parametrize("variant", [{}, {"like openai": "yes"}])
def test_recomputation_keeps_less_and_changes_no_gradient(tiny: dict[str, str], variant: dict[str, str]) -> None:
    levels = ["none", "moe_act", "moe", "layers"]
    found = run_ranks("step_jobs.recomputed", 2, variables=tiny | TWO | variant, levels=levels)[0]
    kept = [found[level]["bytes"] for level in levels]
    # In fp32, 2 layers x 64 tokens x 4 experts x 64 features: the activation. "moe" also frees input rows, gates and
    # up projections.
    activation = 2 * 64 * 4 * 64 * 4
    assert kept[0] - kept[1] == activation
    assert kept[0] - kept[2] >= 4 * activation
    assert kept[2] > kept[3]
    plain = found["none"]
    assert any(np.abs(gradient).max() > 0 for gradient in plain["gradients"].values())
    for level in levels[1:]:
        # Megatron-Core's checkpoint runs forward without gradients, where operators may round differently.
        tolerance = 0.0 if level == "moe_act" else 1e-6
        assert found[level]["losses"] == pytest.approx(plain["losses"], rel=tolerance, abs=0)
        assert found[level]["gathered"], "nothing was left to gather, so the test sees no overlap"
        for name, gradient in plain["gradients"].items():
            differing = np.abs(found[level]["gradients"][name] - gradient).max()
            assert differing <= tolerance * np.abs(gradient).max(), f"{level}: {name}"


def test_the_model_returns_megatrons_output_and_with_a_mask_the_loss_sum(tiny: dict[str, str]) -> None:
    found = run_ranks("step_jobs.outputs", 1, variables=tiny | {"MICRO_BATCH_SIZE": "2"})[0]
    assert found["logits"] == (2, 64, 256)
    assert found["losses"] == pytest.approx(found["plain"], rel=1e-6)
    assert found["sum"] == pytest.approx(found["masked plain"], rel=1e-6)
    assert found["dtype"] == "torch.float64"
    assert "output_layer.weight" in found["names"]
    assert found["names"] == found["names of Megatron-Core's"]


@pytest.mark.slow
def test_compiled_layers_have_the_same_losses_and_are_whole(tiny: dict[str, str]) -> None:
    # Recomputed, they run in the backward pass too: in another thread, and with other tensors.
    found = run_ranks("step_jobs.compiled", 1, limit_s=600, variables=tiny | {"RECOMPUTE": "layers"})[0]
    assert found["layers"] == pytest.approx(found["kernels"], rel=1e-5)
    assert found["kernels graphs"] == 0 < found["layers graphs"]
    assert found["breaks"] == []


def _megatrons(backend: Backend = "torch", /, **settings: str) -> Any:
    config = resolve(settings)
    return build_transformer_config(config, on_gpu=False, **fusion_flags(config, backend))


FUSIONS = ("bias_activation_fusion", "moe_permute_fusion", "apply_rope_fusion", "moe_router_fusion")


@pytest.fixture
def transformer_engine(monkeypatch: pytest.MonkeyPatch) -> str:
    """Provide everything of Transformer Engine that Megatron-Core checks before it accepts a configuration."""
    for module in (transformer_config, megatron_config):
        monkeypatch.setattr(module, "is_te_min_version", lambda *_, **__: True)
    kernels = ("permute", "permute_with_probs", "sort_chunks_by_index", "sort_chunks_by_index_with_probs", "unpermute")
    for name in kernels:
        monkeypatch.setattr(moe_utils, f"fused_{name}", print, raising=False)
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", print)
    return "transformer_engine"


@pytest.mark.parametrize(
    ("settings", "unfused"),
    [
        ({}, set()),
        ({"DETERMINISTIC": "1", "RECOMPUTE": "moe_act"}, set()),
        ({"PRECISION": "fp8", "RECOMPUTE": "moe_act"}, set()),
        ({"EXPERT_BIAS_RATE": "0.001"}, set()),
        ({"AUX_LOSS_COEFF": "0.01"}, {"moe_router_fusion"}),
        ({"MODEL_VARIANT": "openai"}, {"apply_rope_fusion"}),
    ],
)
def test_transformer_engines_fusions_are_on_where_they_compute_the_same(
    settings: dict[str, str], unfused: set[str], transformer_engine: Backend
) -> None:
    settings = {"SUBMISSION_DIVISION": "open"} | settings
    found = _megatrons(transformer_engine, **settings)
    assert {name for name in FUSIONS if not getattr(found, name)} == unfused
    assert not found.gradient_accumulation_fusion
    settings["PRECISION"] = "bf16"
    for other in ("torch", "megatron_local"):
        found = _megatrons(other, **settings)
        assert not any(getattr(found, name) for name in (*FUSIONS, "gradient_accumulation_fusion"))


def test_an_older_transformer_engine_routes_unfused(
    transformer_engine: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megatron_config, "is_te_min_version", lambda version: version != "2.7.0")
    found = _megatrons(transformer_engine)
    assert [name for name in FUSIONS if not getattr(found, name)] == ["moe_router_fusion"]


def test_the_fused_clamped_activation_is_the_experts_own(transformer_engine: Backend) -> None:
    from megatron.core.fusions.fused_bias_geglu import weighted_bias_quick_geglu_impl

    found = _megatrons(transformer_engine, MODEL_VARIANT="openai", SUBMISSION_DIVISION="open")
    assert found.activation_func is megatron_experts.quick_gelu, "Megatron-Core compares it by identity"
    gate_up = 8 * torch.randn(6, 2 * 4, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(6, 1)
    with torch.compiler.set_stance("force_eager"):
        theirs = weighted_bias_quick_geglu_impl(
            gate_up, None, weights, False, found.glu_linear_offset, found.activation_func_clamp_value
        )
    torch.testing.assert_close(weighted_swiglu(gate_up, weights[:, 0], None, None, True), theirs)


BF16_WEIGHTS = {"bf16": True, "params_dtype": torch.bfloat16, "fp8_param": False}


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"recompute_granularity": None, "fp8": None}),
        ({"RECOMPUTE": "moe_act"}, {"recompute_granularity": "selective", "recompute_modules": ["moe_act"]}),
        ({"RECOMPUTE": "moe"}, {"recompute_granularity": "selective", "recompute_modules": ["moe"]}),
        (
            {"RECOMPUTE": "layers"},
            {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
        ),
        ({"PRECISION": "fp8"}, BF16_WEIGHTS | {"fp8": "hybrid", "fp8_recipe": "tensorwise"}),
        ({"PRECISION": "mxfp8", "RECOMPUTE": "moe_act"}, BF16_WEIGHTS | {"fp8": "e4m3", "fp8_recipe": "mxfp8"}),
    ],
)
def test_settings_become_megatrons(settings: dict[str, str], expected: dict[str, Any]) -> None:
    config = _megatrons(**settings)
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_back_end_chosen_automatically_rejects_settings_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for found, settings in ((None, {"PRECISION": "fp8"}), (object(), {"COMPILE": "layers"})):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, found=found: found)
        with pytest.raises(BackendError, match=f"^{next(iter(settings))}: got .* Set "):
            choose_backend(resolve(settings))


def test_mxfp8_is_rejected_on_an_nvidia_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    settings = {"PRECISION": "mxfp8", "SUBMISSION_DIVISION": "open"}
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(BackendError, match=r"^PRECISION: got mxfp8, but NVIDIA H200 .* 9\.0, .* Set PRECISION=fp8"):
        choose_backend(resolve(settings))
    assert choose_backend(resolve(settings | {"PRECISION": "fp8"})) == "transformer_engine"
    monkeypatch.setattr(torch.version, "hip", "7.1")  # AMD's capability numbers have another meaning
    assert choose_backend(resolve(settings)) == "transformer_engine"
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    assert choose_backend(resolve(settings)) == "transformer_engine"
