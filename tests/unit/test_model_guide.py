"""The tables of docs/model.md, computed from the code, from formulas and from Megatron-Core's modules."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pytest
import torch

from compliance.rcp import full_points
from gptoss20b.config import Config, resolve, settings
from gptoss20b.config.presets import PRESETS
from gptoss20b.config.tree import ModelConfig, Parallel, Yarn
from gptoss20b.model.size import compute_model_size, flops_per_token
from tests.support.guides import read_guide, table_rows
from tests.support.paths import ROOT

GUIDE = read_guide(ROOT / "docs" / "model.md")
VARIANTS = ("reference", "openai", "openai_120b")
LENGTH = 8192


def resolve_variant(variant: str) -> Config:
    return resolve({"MODEL_VARIANT": variant, "SUBMISSION_DIVISION": "open"})


MODELS = {variant: resolve_variant(variant).model for variant in VARIANTS}


@dataclass(frozen=True)
class Part:
    """A row of the table of parameters.

    Attributes:
        name, formula: as the page writes them.
        count: parameters of one layer, or of the model for a part outside the layers.
        parameters: pattern of Megatron-Core's parameter names that make up the row.
    """

    name: str
    formula: str
    count: Callable[[ModelConfig], int]
    parameters: str


def q_size(m: ModelConfig) -> int:
    return m.num_attention_heads * m.head_dim


def qkv_size(m: ModelConfig) -> int:
    return q_size(m) + 2 * m.num_query_groups * m.head_dim


def expert_weights(m: ModelConfig) -> int:
    return m.num_experts * 3 * m.hidden_size * m.moe_ffn_hidden_size


def expert_biases(m: ModelConfig) -> int:
    return m.biases * m.num_experts * (2 * m.moe_ffn_hidden_size + m.hidden_size)


LAYER_PARTS = (
    Part("linear_qkv", "H (q + 2 kv)", lambda m: m.hidden_size * qkv_size(m), r"linear_qkv\.weight"),
    Part("linear_qkv biases", "q + 2 kv", lambda m: m.biases * qkv_size(m), r"linear_qkv\.bias"),
    Part("linear_proj", "q H", lambda m: q_size(m) * m.hidden_size, r"linear_proj\.weight"),
    Part("linear_proj bias", "H", lambda m: m.biases * m.hidden_size, r"linear_proj\.bias"),
    Part("attention sinks", "heads", lambda m: m.attention_sinks * m.num_attention_heads, r"softmax_offset"),
    Part("QK norms", "2 x head dim", lambda m: m.qk_norm * 2 * m.head_dim, r"[qk]_layernorm\.weight"),
    Part("two norms", "2 H", lambda m: 2 * m.hidden_size, r"(input|pre_mlp)_layernorm\.weight"),
    Part("router", "H E", lambda m: m.hidden_size * m.num_experts, r"router\.weight"),
    Part("router bias", "E", lambda m: m.biases * m.num_experts, r"router\.bias"),
    Part("experts", "E x 3 H F", expert_weights, r"experts\.linear_fc[12]\.weight"),
    Part("expert biases", "E (2 F + H)", expert_biases, r"experts\.linear_fc[12]\.bias"),
)
OTHER_PARTS = (
    Part("embedding", "V H", lambda m: m.vocab_size * m.hidden_size, r"embedding\.word_embeddings\.weight"),
    Part("LM head", "V H", lambda m: m.vocab_size * m.hidden_size, r"output_layer\.weight"),
    Part("last norm", "H", lambda m: m.hidden_size, r"decoder\.final_layernorm\.weight"),
)


def layer_parameters(m: ModelConfig) -> int:
    return sum(part.count(m) for part in LAYER_PARTS)


def total_parameters(m: ModelConfig) -> int:
    return m.num_layers * layer_parameters(m) + sum(part.count(m) for part in OTHER_PARTS)


def inactive_experts(m: ModelConfig) -> int:
    per_layer = expert_weights(m) + expert_biases(m)
    return m.num_layers * per_layer * (m.num_experts - m.router_topk) // m.num_experts


def active_parameters(m: ModelConfig) -> int:
    return total_parameters(m) - m.vocab_size * m.hidden_size - inactive_experts(m)


def test_table_of_fields() -> None:
    def written(value: object) -> str:
        if isinstance(value, Yarn):
            return (
                f"factor {value.factor:g}, original length {value.original_max_position_embeddings:,}, "
                f"beta {value.beta_fast:g} and {value.beta_slow:g}, {'' if value.truncate else 'not '}truncated"
            )
        if isinstance(value, bool) or value is None:
            return {True: "yes", False: "no", None: "none"}[value]
        return f"{value:,}" if isinstance(value, int) else str(value)

    table = table_rows(GUIDE, "fields")
    assert {row[0]: row[1:3] for row in table} == {
        f"`model.{name}`": [written(getattr(MODELS[variant], name)) for variant in ("reference", "openai")]
        for name in ModelConfig.model_fields
        if name != "variant"
    }
    sources = set(re.findall(r"^- \*\*(\w)\*\*", GUIDE, re.MULTILINE))
    assert all(set(re.findall(r"\b[A-Z]\b", row[3])) <= sources and row[3] for row in table)


def test_table_of_disagreements_names_fields() -> None:
    for *_, field in table_rows(GUIDE, "disagreements"):
        reduce(getattr, field.strip("`").split("."), resolve({}))


@pytest.mark.parametrize(
    ("field", "published"),
    # gpt_oss_20B-pretrain.yaml with the presets it inherits.
    [
        ("model.num_layers", 24),
        ("model.hidden_size", 2880),
        ("model.num_attention_heads", 64),
        ("model.num_query_groups", 8),
        ("model.head_dim", 64),
        ("model.num_experts", 32),
        ("model.router_topk", 4),
        ("model.moe_ffn_hidden_size", 2880),
        ("model.rotary_base", 150_000),
        ("model.window_left", 128),
        ("model.router_softmax_before_topk", False),
        ("model.norm_epsilon", 1e-5),
        ("fixed.init_method_std", 0.008),
        ("fixed.aux_loss_coefficient", 0.0),
    ],
)
def test_the_reference_equals_its_published_configuration(field: str, published: float) -> None:
    value: Any = resolve({})
    for name in field.split("."):
        value = getattr(value, name)
    assert value == published


def test_table_of_parameters() -> None:
    sums: tuple[tuple[str, str, Callable[[ModelConfig], int]], ...] = (
        ("**one layer**", "sum", layer_parameters),
        ("**all layers**", "x layers", lambda m: m.num_layers * layer_parameters(m)),
        *((part.name, part.formula, part.count) for part in OTHER_PARTS),
        ("**total**", "sum", total_parameters),
        ("inactive experts", "(E - 4) / E of experts and their biases", inactive_experts),
        ("**active**", "total - embedding - inactive experts", active_parameters),
    )
    assert table_rows(GUIDE, "parameters") == [
        [name, formula, *(f"{count(model):,}" for model in MODELS.values())]
        for name, formula, count in [*((part.name, part.formula, part.count) for part in LAYER_PARTS), *sums]
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_megatrons_modules_have_these_parameters(variant: str) -> None:
    from gptoss20b.model.build import build_model
    from gptoss20b.process_groups import single_process

    config, model = resolve_variant(variant), MODELS[variant]
    # YaRN has no parameters, and its tables cannot be computed without memory.
    plain = {"model": model.model_copy(update={"yarn": None}), "parallel": Parallel(gpus_per_node=1, expert=1)}
    size = compute_model_size(config)
    with single_process(), torch.device("meta"):
        gpt = build_model(config.model_copy(update=plain), "torch", on_gpu=False)
    assert (size.total_parameters, size.active_parameters) == (total_parameters(model), active_parameters(model))
    counts = {name: parameter.numel() for name, parameter in gpt.named_parameters()}
    for part in (*LAYER_PARTS, *OTHER_PARTS):
        names = [name for name in counts if re.search(rf"(^|\.){part.parameters}$", name)]
        copies = model.num_layers if part in LAYER_PARTS else 1
        assert sum(counts.pop(name) for name in names) == copies * part.count(model), part.name
    assert not counts, "every parameter is in a row"


def test_the_logged_total_is_openais_at_the_datas_vocabulary() -> None:
    model = MODELS["openai"].model_copy(update={"vocab_size": MODELS["reference"].vocab_size})
    assert (total_parameters(model), active_parameters(model)) == (20_495_244_864, 3_398_551_104)


@pytest.mark.parametrize("row", table_rows(GUIDE, "variants"), ids=lambda row: row[0])
def test_table_of_variants(row: list[str]) -> None:
    config = resolve_variant(row[0].strip("`"))
    counts = [config.model.num_layers, total_parameters(config.model), active_parameters(config.model)]
    assert row[1:] == [*(f"{count:,}" for count in counts), f"{flops_per_token(config) / 1e6:,.1f}"]


def test_all_variants_are_in_their_table() -> None:
    assert [row[0].strip("`") for row in table_rows(GUIDE, "variants")] == list(PRESETS)


def mean_keys(window_left: int) -> float:
    """Return the mean number of keys that a query sees, position by position."""
    return sum(min(position, window_left) + 1 for position in range(LENGTH)) / LENGTH


def test_table_of_flops() -> None:
    columns = []
    for variant in VARIANTS[:2]:
        m = MODELS[variant]
        attention = m.hidden_size * qkv_size(m) + q_size(m) * m.hidden_size
        layer = [attention, m.hidden_size * m.num_experts, expert_weights(m) * m.router_topk // m.num_experts]
        layers, head = m.num_layers * sum(layer), m.vocab_size * m.hidden_size
        full, windowed = mean_keys(LENGTH), mean_keys(m.window_left)
        scores = round(4 * q_size(m) * m.num_layers // 2 * (windowed + full))
        total = 3 * (2 * (layers + head) + scores)
        assert flops_per_token(resolve_variant(variant)) == total
        numbers = [*layer, layers, head, 2 * (layers + head), full, round(windowed, 7), scores, total]
        columns.append([*(f"{number:,}" for number in numbers), f"{total * 16 * LENGTH / 1e15:.2f}"])
    samples = statistics.mean(next(point for point in full_points("6.1.0") if point.gbs == 16).samples)
    columns[0].append(f"{flops_per_token(resolve({})) * samples * LENGTH / 1e18:.1f}")
    columns[1].append("-")  # the reference's runs say nothing about the samples of another model
    table = table_rows(GUIDE, "flops")
    assert [row[2:] for row in table] == [list(row) for row in zip(*columns, strict=True)]


def test_table_of_impossible_numbers() -> None:
    changes = {"num_layers": 48, "hidden_size": 4096, "num_experts": 16, "moe_ffn_hidden_size": 11008, "router_topk": 2}
    claimed = MODELS["openai"].model_copy(update=changes)
    columns = []
    for m in (claimed, MODELS["openai"]):
        whole = m.num_layers * expert_weights(m)
        numbers = [expert_weights(m) // m.num_experts, expert_weights(m), whole, whole * m.router_topk // m.num_experts]
        columns.append([f"{number:,}" for number in numbers])
    assert [row[2:] for row in table_rows(GUIDE, "impossible")] == [list(row) for row in zip(*columns, strict=True)]
    # Ten of the 48 layers exceed the released model.
    assert 9 * expert_weights(claimed) < total_parameters(MODELS["openai"]) < 10 * expert_weights(claimed)


def test_table_of_extras_and_the_settings_named_with_it() -> None:
    known, config = settings(), resolve({})
    table = table_rows(GUIDE, "extras")
    assert [row[0].strip("`") for row in table] == ["AUX_LOSS_COEFF", "EXPERT_BIAS_RATE"]
    for variable, field, default in table:
        path = known[variable.strip("`")].path
        assert (field.strip("`"), default) == (".".join(path), str(reduce(getattr, path, config)))
    assert set(re.findall(r"`([A-Z_]{4,})`", GUIDE)) <= set(known)
