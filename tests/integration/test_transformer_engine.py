"""Megatron-Core's Transformer Engine layers of every shipped configuration, built without a GPU, beside ours.

Where Transformer Engine's libraries load (its wheels and a CUDA build of torch, no driver needed), they are the real
modules. Else its Python sources are read from a wheel, and the compiled extension is a stand-in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from gptoss20b.config import resolve, settings
from tests.support.configs import CONFIGS, load_config
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.proof]

# An interpreter with torch, Megatron-Core and Transformer Engine, where this one has none.
PYTHON = "TRANSFORMER_ENGINE_PYTHON"
PRECISIONS = {"bf16": None, "fp8": ["Float8CurrentScaling", "HYBRID"], "mxfp8": ["MXFP8BlockScaling", "E4M3"]}
GPU_CONFIGS = [name for name in CONFIGS if "CPU" not in name]
TINY = {
    **{"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open", "BACKEND": "transformer_engine", "PRECISION": "bf16"},
    **{"DGXNGPU": "2", "EXPERT_PARALLEL": "2", "GLOBAL_BATCH_SIZE": "4", "values": "yes"},
}


# Weights large enough that every part of a layer counts.
LARGE = {"PRECISION": "fp32", "SEQUENCE_LENGTH": "48", "INIT_METHOD_STD": "0.2", "DGXNGPU": "1", "EXPERT_PARALLEL": "1"}
COMPARED = {
    name: {key: value for key, value in (TINY | LARGE | changes).items() if key != "values"}
    for name, changes in {"reference": {"window": "20"}, "openai": {"like openai": "yes"}}.items()
}


def make_cases() -> dict[str, dict[str, str]]:
    """Return the settings of each case: two layers, with and without a window, of the full width."""
    cases = {}
    for name in GPU_CONFIGS:
        variables = {key: value for key, value in load_config(name).items() if key in settings()}
        for variant in ("reference", "openai"):
            for precision in PRECISIONS:
                changes = {"MODEL_VARIANT": variant, "PRECISION": precision, "BACKEND": "transformer_engine"}
                open_division = {"SUBMISSION_DIVISION": "open", "layers": "2"}
                cases[f"{name} {variant} {precision}"] = variables | changes | open_division
    return cases | {"tiny": TINY, "tiny openai": TINY | {"like openai": "yes"}}


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, str]]:
    return make_cases()


@pytest.fixture(scope="module")
def document(cases: dict[str, dict[str, str]]) -> dict[str, Any]:
    command = [os.environ.get(PYTHON) or sys.executable, "-m", "tests.support.transformer_engine_layers"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, json.dumps({"build": cases, "compare": COMPARED})],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    last = (done.stderr.splitlines() or [""])[-1]
    if done.returncode and "no package transformer_engine" in last:
        pytest.skip(last)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def found(document: dict[str, Any]) -> dict[str, Any]:
    print(f"Transformer Engine's {document['mode']}")
    return dict(document["build"])


def test_weights_have_our_names_shapes_dtypes_and_initial_values(found: dict[str, Any]) -> None:
    assert len(found) == 5 * 2 * 3 + 2
    for name, case in found.items():
        assert case["transformer_engine"] == case["torch"], name
        # Embedding, last norm and head; in a layer 9 with norms of queries and keys, or 13 with biases and sinks.
        assert len(case["torch"]) == 3 + 2 * (13 if "openai" in name else 9), name


def test_every_option_is_one_of_the_installed_version(found: dict[str, Any]) -> None:
    kinds = {module["kind"] for case in found.values() for module in case["built"]}
    assert kinds == {"DotProductAttention", "Linear", "LayerNormLinear", "GroupedLinear", "RMSNorm"}
    # RMSNorm documents that it hands further options on to its base class, which has this one.
    unknown = {(module["kind"], *module["unknown"]) for case in found.values() for module in case["built"]}
    assert {each for each in unknown if len(each) > 1} <= {("RMSNorm", "device")}


def modules(case: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [module["options"] for module in case["built"] if module["kind"] == kind]


def test_windows_sinks_and_heads_reach_the_attention(found: dict[str, Any], cases: dict[str, dict[str, str]]) -> None:
    for name, case in found.items():
        windowed, full = modules(case, "DotProductAttention")
        openai, tiny = "openai" in name, "tiny" in name
        assert windowed["window_size"] == [20 if tiny and openai else 127 if openai else 128, 0], name
        assert full.get("window_size") in (None, [-1, 0]), name
        for options in (windowed, full):
            assert options.get("softmax_type", "vanilla") == ("learnable" if openai else "vanilla"), name
            assert (options["num_gqa_groups"], options["attention_dropout"]) == (2 if tiny else 8, 0), name
            assert options["attn_mask_type"] == "causal", name


def test_experts_and_projections_are_built_as_ours(found: dict[str, Any], cases: dict[str, dict[str, str]]) -> None:
    for name, case in found.items():
        openai = "openai" in name
        experts = modules(case, "GroupedLinear")
        assert len(experts) == 4
        others = modules(case, "LayerNormLinear") + modules(case, "Linear")
        assert all(options["num_gemms"] == 4 for options in experts), name
        assert all(options["bias"] == openai for options in experts + others), name
        # Gradients stay in .grad: the loss and training without DDP read them there.
        assert not any(options["fuse_wgrad_accumulation"] for options in experts + others), name
        norms = modules(case, "RMSNorm") + modules(case, "LayerNormLinear")
        assert {(options["eps"], options["zero_centered_gamma"]) for options in norms} == {(1e-5, False)}, name
        assert {options["normalization"] for options in modules(case, "LayerNormLinear")} == {"RMSNorm"}, name


def test_recipes_and_fused_functions_exist(found: dict[str, Any], cases: dict[str, dict[str, str]]) -> None:
    for name, case in found.items():
        assert case["recipe"] == PRECISIONS[cases[name]["PRECISION"]], name
        assert case["missing"] == [], name
        assert case["fusions"]["moe_permute_fusion"] and case["fusions"]["moe_router_fusion"], name
        # Its kernel ignores YaRN's magnitude.
        assert case["fusions"]["apply_rope_fusion"] == ("openai" not in name), name


def test_the_cases_are_configurations_that_start() -> None:
    for case in make_cases().values():
        config = resolve({key: value for key, value in case.items() if key in settings()})
        assert config.execution.backend == "transformer_engine"


@pytest.mark.parametrize("name", COMPARED)
def test_with_plain_torch_in_its_kernels_place_gradients_are_ours(name: str, document: dict[str, Any]) -> None:
    compared = document["compare"][name]
    ours, theirs = compared["losses"]
    assert theirs == pytest.approx(ours, rel=1e-6)
    assert len(compared["errors"]) > 20
    assert {weight: error for weight, error in compared["errors"].items() if not error < 1e-4} == {}
    fused = {"fused_permute_with_probs", "fused_unpermute", "fused_topk_with_score_function"}
    expected = {"DotProductAttention", "Linear", "LayerNormLinear", "GroupedLinear", "RMSNorm", *fused}
    assert expected <= set(compared["called"])
    assert ("apply_rotary_pos_emb" in compared["called"]) == (name == "reference")
