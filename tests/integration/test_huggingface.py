"""The `openai` variant is transformers' GptOssForCausalLM: logits, loss and every gradient, and its weights load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptoss20b.hf.convert import from_hugging_face, to_hugging_face
from gptoss20b.hf.mxfp4 import dequantize
from tests.support.hf_folders import EXPERTS, SMALL, read, their_tensors, write
from tests.support.ranks import run_ranks

NO_SCALING = {"rope_type": "default", "rope_theta": 150_000.0}
# What is left out is transformers' default, which is the released model's: top-4, head dimension 64, window 128, YaRN.
CASES: dict[str, dict[str, Any]] = {
    "released in small": {
        "sequence": 160,
        "vocab_size": 96,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "num_local_experts": 32,
        "intermediate_size": 64,
    },
    "yarn at work": {
        "sequence": 48,
        "vocab_size": 64,
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "intermediate_size": 48,
        "sliding_window": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 8.0,
            "beta_slow": 1.0,
            "truncate": True,
        },
    },
    "no yarn": {
        "sequence": 40,
        "vocab_size": 56,
        "num_hidden_layers": 4,
        "hidden_size": 40,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 24,
        "sliding_window": 5,
        "rms_norm_eps": 1e-2,
        "rope_parameters": NO_SCALING,
    },
    "all experts, no groups": {
        "sequence": 90,
        "vocab_size": 40,
        "num_hidden_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 12,
        "num_local_experts": 4,
        "num_experts_per_tok": 4,
        "intermediate_size": 32,
        "sliding_window": 71,
        "rope_parameters": NO_SCALING,
    },
}


def assert_the_same(found: dict[str, dict[str, float]], whole: bool) -> None:
    """``whole``: with logits and gradients, which only ranks that hold all layers can compare."""
    assert found.keys() == CASES.keys()
    for case, differences in found.items():
        parameters = 3 + 13 * CASES[case]["num_hidden_layers"]
        assert len(differences) == (3 + parameters if whole else 2), case
        worst = max(differences, key=lambda name: differences[name])
        assert differences[worst] < 1e-4, (case, worst, differences[worst])


def test_one_rank_gives_the_same_logits_loss_and_gradients(tiny: dict[str, str], tmp_path: Path) -> None:
    variables = [tiny | {"GLOBAL_BATCH_SIZE": "2"}]
    ((found,),) = run_ranks("huggingface_jobs.compared", 1, cases=CASES, folder=str(tmp_path), variables=variables)
    assert_the_same(found, whole=True)


def test_experts_and_layers_on_two_ranks_do_too(tiny: dict[str, str], tmp_path: Path) -> None:
    two = tiny | {"DGXNGPU": "2", "GLOBAL_BATCH_SIZE": "2"}
    variables = [two | {"EXPERT_PARALLEL": "2"}, two | {"PIPELINE_PARALLEL": "2"}]
    for experts, stages in run_ranks(
        "huggingface_jobs.compared", 2, cases=CASES, folder=str(tmp_path), variables=variables
    ):
        assert_the_same(experts, whole=True)
        assert_the_same(stages, whole=False)


def test_the_activation_has_the_numbers_that_are_compared_with() -> None:
    from gptoss20b.hf.architecture import _FIXED_HF_FIELDS
    from gptoss20b.model.experts import SWIGLU_ALPHA, SWIGLU_LIMIT

    assert (_FIXED_HF_FIELDS["swiglu_alpha"], _FIXED_HF_FIELDS["swiglu_limit"]) == (SWIGLU_ALPHA, SWIGLU_LIMIT)


def test_mxfp4_is_dequantized_as_transformers_does() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(1)
    blocks = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(0, 255, (3, 8, 2), dtype=torch.uint8)  # 255 means not a number, there it is 2^128
    theirs = convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(dequantize(blocks, scales).mT.view(torch.int16), theirs.view(torch.int16))


def test_a_converted_folder_is_read_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.support.huggingface_jobs import make_peer

    architecture = {name: value for name, value in CASES["yarn at work"].items() if name != "sequence"}
    peer = make_peer(architecture)
    peer.save_pretrained(tmp_path / "there", max_shard_size="50KB")
    assert len(list((tmp_path / "there").glob("*.safetensors"))) > 1
    from_hugging_face(tmp_path / "there", tmp_path / "ours")
    to_hugging_face(tmp_path / "ours", tmp_path / "back")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", attn_implementation="eager", experts_implementation="eager"
    )
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, peer(tokens).logits)
    own = {"_name_or_path", "architectures", "transformers_version", "max_position_embeddings"}
    before, after = peer.config.to_dict(), again.config.to_dict()
    assert {name for name in before if before[name] != after.get(name)} <= own


# --- into the model of each rank


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(2)
    tensors = {name: torch.randn(x.shape) for name, x in their_tensors(layers=4, ffn=1024).items()}
    layer_types = ["sliding_attention", "full_attention"] * 2
    settings = SMALL | {"num_hidden_layers": 4, "intermediate_size": 1024, "layer_types": layer_types}
    write(folder / "there", tensors, settings)
    from_hugging_face(folder / "there", folder / "ours")
    return folder / "ours"


# Layouts of two ranks, the back end, and along which dimension tensors with this in their names are cut there.
# The experts of the local spec are modules of their own.
TWO_RANKS: list[tuple[str, str, dict[str, int]]] = [
    ("EXPERT_PARALLEL", "torch", {}),
    ("EXPERT_PARALLEL", "megatron_local", {}),
    ("PIPELINE_PARALLEL", "torch", {}),
    (
        "TENSOR_PARALLEL",
        "torch",
        {"word_embeddings": 0, "output_layer": 0, "linear_qkv": 0, "linear_proj.weight": 1, "softmax_offset": 0},
    ),
]


def assert_loaded(
    weights: dict[str, np.ndarray], whole: dict[str, np.ndarray], cuts: dict[str, int], rank: int
) -> None:
    for name, weight in weights.items():
        tensor, _, expert = name.removesuffix("]").partition("[")
        expected = whole[tensor][int(expert)] if expert else whole[name]
        dim = next((dim for part, dim in cuts.items() if part in name), None)
        expected = expected if dim is None else np.split(expected, 2, axis=dim)[rank]
        assert np.array_equal(weight, expected), name


def test_each_rank_loads_its_part(ours: Path, tiny: dict[str, str]) -> None:
    whole = {name: x.numpy() for name, x in read(ours).items()}
    two = tiny | {"DGXNGPU": "2", "BACKEND": "auto"}  # the torch back end does not train with tensor parallelism
    per_rank = run_ranks(
        "huggingface_jobs.loaded",
        2,
        folder=str(ours),
        variables=[two | {layout: "2"} for layout, _, _ in TWO_RANKS],
        backends=[backend for _, backend, _ in TWO_RANKS],
    )
    all_names = {name for name in whole if ".experts." not in name}
    all_names |= {f"{name}[{expert}]" for name in whole.keys() - all_names for expert in range(EXPERTS)}
    for number, (layout, _, cuts) in enumerate(TWO_RANKS):
        parts = [outcomes[number]["weights"] for outcomes in per_rank]
        for rank, weights in enumerate(parts):
            assert_loaded(weights, whole, cuts, rank)
        assert parts[0].keys() | parts[1].keys() == all_names
        in_both = parts[0].keys() & parts[1].keys()
        if layout == "EXPERT_PARALLEL":
            assert in_both == {name for name in all_names if ".experts." not in name}
        else:
            assert in_both == (set() if layout == "PIPELINE_PARALLEL" else all_names)
    half_of_experts = per_rank[1][0]
    assert half_of_experts["held"] < 0.6 * sum(x.nbytes for x in whole.values())
    # Memory is mapped in pages, some of them beside what was read.
    assert 0.9 * half_of_experts["held"] < half_of_experts["read"] < 1.2 * half_of_experts["held"]


def test_another_model_is_not_loaded(ours: Path, tiny: dict[str, str]) -> None:
    (said,) = run_ranks(
        "huggingface_jobs.refused",
        1,
        folder=str(ours),
        variables=tiny,
        changes={"router_topk": 3, "window_left": 3, "qk_norm": True},
    )
    problems = said.splitlines()
    assert problems[0] == f"11 problems loading {ours}:"
    assert "  config.json: model.window_left: got 8, expected 3, as the run is configured" in problems
    norms = [line for line in problems if "layernorm.weight: missing, and this rank's model has it" in line]
    assert len(norms) == 4 * 2
