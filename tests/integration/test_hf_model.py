"""The `openai` variant is transformers' GptOssForCausalLM: logits, loss and every gradient, and its weights load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptoss20b.hf.convert import from_hugging_face, to_hugging_face
from tests.support.hf_folders import EXPERTS, SMALL, hf_tensors, read_folder, write_folder
from tests.support.hf_jobs import make_hf_model
from tests.support.ranks import run_ranks

NO_SCALING = {"rope_type": "default", "rope_theta": 150_000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "truncate": True,
}


# A sequence length and arguments of GptOssConfig. Missing arguments have transformers' defaults, the released model's:
# top-4, head dimension 64, window 128, YaRN.
SIZES = (
    *("sequence", "vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"),
    *("num_local_experts", "intermediate_size", "num_experts_per_tok", "head_dim", "sliding_window"),
)
CASES: dict[str, dict[str, Any]] = {
    "released in small": dict(zip(SIZES, (160, 96, 2, 64, 8, 1, 32, 64), strict=False)),
    "yarn at work": dict(zip(SIZES, (48, 64, 2, 32, 4, 2, 8, 48, 3, 16, 8), strict=True)) | {"rope_parameters": YARN},
    "no yarn": dict(zip(SIZES, (40, 56, 4, 40, 6, 3, 4, 24, 2, 8, 5), strict=True))
    | {"rms_norm_eps": 1e-2, "rope_parameters": NO_SCALING},
    "all experts, no groups": dict(zip(SIZES, (90, 40, 2, 24, 4, 4, 4, 32, 4, 12, 71), strict=True))
    | {"rope_parameters": NO_SCALING},
}


def check_differences(found: dict[str, dict[str, float]], all_layers: bool) -> None:
    """Check every case. Only ranks with ``all_layers`` compare logits and gradients."""
    assert found.keys() == CASES.keys()
    for case, differences in found.items():
        parameters = 3 + 13 * CASES[case]["num_hidden_layers"]
        assert len(differences) == (3 + parameters if all_layers else 2), case
        worst = max(differences, key=lambda name: differences[name])
        assert differences[worst] < 1e-4, (case, worst, differences[worst])


def test_one_rank_has_the_same_logits_loss_and_gradients(tiny: dict[str, str], tmp_path: Path) -> None:
    variables = [tiny | {"GLOBAL_BATCH_SIZE": "2"}]
    ((found,),) = run_ranks("hf_jobs.compare_models", 1, cases=CASES, folder=str(tmp_path), variables=variables)
    check_differences(found, all_layers=True)


def test_expert_and_pipeline_parallel_ranks_do_too(tiny: dict[str, str], tmp_path: Path) -> None:
    two = tiny | {"DGXNGPU": "2", "GLOBAL_BATCH_SIZE": "2"}
    variables = [two | {"EXPERT_PARALLEL": "2"}, two | {"PIPELINE_PARALLEL": "2"}]
    per_rank = run_ranks("hf_jobs.compare_models", 2, cases=CASES, folder=str(tmp_path), variables=variables)
    for expert_parallel, pipeline_parallel in per_rank:
        check_differences(expert_parallel, all_layers=True)
        check_differences(pipeline_parallel, all_layers=False)


def test_transformers_reads_a_converted_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    hf_model = make_hf_model({name: value for name, value in CASES["yarn at work"].items() if name != "sequence"})
    hf_model.save_pretrained(tmp_path / "hf", max_shard_size="50KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    from_hugging_face(tmp_path / "hf", tmp_path / "ours")
    to_hugging_face(tmp_path / "ours", tmp_path / "back")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", attn_implementation="eager", experts_implementation="eager"
    )
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, hf_model(tokens).logits)
    not_converted = {"_name_or_path", "architectures", "transformers_version", "max_position_embeddings"}
    before, after = hf_model.config.to_dict(), again.config.to_dict()
    assert {name for name in before if before[name] != after.get(name)} <= not_converted


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(2)
    tensors = {name: torch.randn(x.shape) for name, x in hf_tensors(layers=4, ffn=1024).items()}
    layer_types = ["sliding_attention", "full_attention"] * 2
    hf_config = SMALL | {"num_hidden_layers": 4, "intermediate_size": 1024, "layer_types": layer_types}
    write_folder(folder / "hf", tensors, hf_config)
    from_hugging_face(folder / "hf", folder / "ours")
    return folder / "ours"


# Layouts of two ranks, the back end, and the dimension along which tensors with this in their names are split.
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


def check_loaded(
    weights: dict[str, np.ndarray], whole: dict[str, np.ndarray], splits: dict[str, int], rank: int
) -> None:
    for name, weight in weights.items():
        tensor, _, expert = name.removesuffix("]").partition("[")
        expected = whole[tensor][int(expert)] if expert else whole[name]
        dim = next((dim for part, dim in splits.items() if part in name), None)
        expected = expected if dim is None else np.split(expected, 2, axis=dim)[rank]
        assert np.array_equal(weight, expected), name


def test_each_rank_loads_its_part(converted: Path, tiny: dict[str, str]) -> None:
    whole = {name: x.numpy() for name, x in read_folder(converted).items()}
    two = tiny | {"DGXNGPU": "2", "BACKEND": "auto"}  # the torch back end does not train with tensor parallelism
    per_rank = run_ranks(
        "hf_jobs.load_layouts",
        2,
        folder=str(converted),
        variables=[two | {layout: "2"} for layout, _, _ in TWO_RANKS],
        backends=[backend for _, backend, _ in TWO_RANKS],
    )
    shared_names = {name for name in whole if ".experts." not in name}
    all_names = shared_names | {f"{name}[{n}]" for name in whole.keys() - shared_names for n in range(EXPERTS)}
    for number, (layout, _, splits) in enumerate(TWO_RANKS):
        parts = [outcomes[number]["weights"] for outcomes in per_rank]
        for rank, weights in enumerate(parts):
            check_loaded(weights, whole, splits, rank)
        assert parts[0].keys() | parts[1].keys() == all_names
        on_both = {"EXPERT_PARALLEL": shared_names, "PIPELINE_PARALLEL": set(), "TENSOR_PARALLEL": all_names}
        assert parts[0].keys() & parts[1].keys() == on_both[layout]
    expert_parallel = per_rank[1][0]
    assert expert_parallel["held_bytes"] < 0.6 * sum(x.nbytes for x in whole.values())
    # Memory is mapped in pages, some of them beside the tensors that are read.
    assert 0.9 < expert_parallel["read_bytes"] / expert_parallel["held_bytes"] < 1.2


def test_another_model_is_not_loaded(converted: Path, tiny: dict[str, str]) -> None:
    changes = {"router_topk": 3, "window_left": 3, "qk_norm": True}
    (problems,) = run_ranks(
        "hf_jobs.load_into_changed_model", 1, folder=str(converted), variables=tiny, changes=changes
    )
    assert [text.split(": ")[1] for text in problems[:3]] == ["model.router_topk", "model.qk_norm", "model.window_left"]
    assert "got 8, expected 3" in problems[2]
    norms = [text for text in problems[3:] if "layernorm.weight: missing" in text]
    assert len(norms) == len(problems) - 3 == 4 * 2
