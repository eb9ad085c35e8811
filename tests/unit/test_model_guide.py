"""The numbers of docs/model.md are what the code, the formulas and Megatron-Core's modules make them.

Started as a script, this file prints what it counts in the modules: that needs a process of its own.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest

from compliance.rcp import full_points
from gptoss20b.config import Config, resolve, settings
from gptoss20b.config.presets import PRESETS
from gptoss20b.config.tree import ModelConfig, Parallel, Yarn
from gptoss20b.model.size import flops_per_token
from tests.support.paths import ROOT

GUIDE = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
FLAT = " ".join(GUIDE.split())
LOGS = ROOT.parent / "shared" / "data" / "rcp_logs" / "gbs32"
VARIANTS = ("reference", "openai", "openai_120b")


def config_of(variant: str, **options: str) -> Config:
    return resolve({"MODEL_VARIANT": variant, "SUBMISSION_DIVISION": "open", **options})


MODELS = {variant: config_of(variant).model for variant in VARIANTS}
# What the descriptions that the page refutes say.
IMPOSSIBLE = MODELS["openai"].model_copy(
    update={"num_layers": 48, "hidden_size": 4096, "num_experts": 16, "moe_ffn_hidden_size": 11008, "router_topk": 2}
)


# What the sources say, by their own names for it.
RELEASED: dict[str, Any] = {
    "num_hidden_layers": 24,
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "intermediate_size": 2880,
    "vocab_size": 201_088,
    "sliding_window": 128,
    "rope_theta": 150_000,
    "rope_scaling": (32.0, 4096, 32.0, 1.0, False),  # factor, original length, beta fast and slow, truncate
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "swiglu_limit": 7.0,
    "initializer_range": 0.02,
    "router_aux_loss_coef": 0.9,
}
REFERENCE: dict[str, Any] = {
    "num_layers": 24,
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_query_groups": 8,
    "kv_channels": 64,
    "num_experts": 32,
    "moe_router_topk": 4,
    "moe_ffn_hidden_size": 2880,
    "rotary_base": 150_000,
    "window_size": (128, 0),
    "moe_router_pre_softmax": False,
    "layernorm_epsilon": 1e-5,
    "init_method_std": 0.008,
    "moe_aux_loss_coeff": 0.0,
    "norm_epsilon": 1e-6,  # the preset's key, which the runs followed
    "min_lr": 4e-5,
}


def rows(mark: str) -> list[list[str]]:
    """The cells of the table that follows a mark."""
    table = GUIDE.split(f"<!-- {mark} -->\n")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def of_table(mark: str) -> dict[str, list[str]]:
    """The cells behind each row's first, without the emphasis."""
    return {row[0].strip("*"): row[1:] for row in rows(mark)}


def says(text: str) -> bool:
    """Whether the page has these words, wherever its lines break."""
    return " ".join(text.split()) in FLAT


# --- side by side


def shown(value: object) -> str:
    """A field's value as the page writes it."""
    if isinstance(value, Yarn):
        cut = "truncated" if value.truncate else "not truncated"
        return (
            f"factor {value.factor:g}, original length {value.original_max_position_embeddings:,}, "
            f"beta {value.beta_fast:g} and {value.beta_slow:g}, {cut}"
        )
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def test_every_field_of_the_model_is_in_the_table_with_its_values() -> None:
    table = {row[0]: row[1:3] for row in rows("fields")}
    fields = [name for name in ModelConfig.model_fields if name != "variant"]
    assert table == {
        f"`model.{name}`": [shown(getattr(MODELS[variant], name)) for variant in ("reference", "openai")]
        for name in fields
    }
    letters = set(re.findall(r"^- \*\*(\w)\*\*", GUIDE, re.MULTILINE))
    assert letters == set("RMOCL")
    assert all(set(re.findall(r"\b[A-Z]\b", row[3])) <= letters and row[3] for row in rows("fields"))


def test_the_released_model_is_as_its_config_says() -> None:
    m, yarn = MODELS["openai"], MODELS["openai"].yarn
    assert yarn is not None
    scaling = (yarn.factor, yarn.original_max_position_embeddings, yarn.beta_fast, yarn.beta_slow, yarn.truncate)
    shape = (
        m.num_layers,
        m.hidden_size,
        m.num_attention_heads,
        m.num_query_groups,
        m.head_dim,
        m.num_experts,
        m.router_topk,
        m.moe_ffn_hidden_size,
        m.vocab_size,
    )
    rest = (m.window_left + 1, m.rotary_base, scaling, m.norm_epsilon, m.biases)
    assert [*shape, *rest] == list(RELEASED.values())[:14]


def test_the_reference_is_as_its_configuration_says() -> None:
    m, rules = MODELS["reference"], resolve({}).fixed
    shape = (
        m.num_layers,
        m.hidden_size,
        m.num_attention_heads,
        m.num_query_groups,
        m.head_dim,
        m.num_experts,
        m.router_topk,
        m.moe_ffn_hidden_size,
        m.rotary_base,
    )
    rest = ((m.window_left, 0), m.router_softmax_before_topk, m.norm_epsilon)
    found = [*shape, *rest, rules.init_method_std, rules.aux_loss_coefficient]
    assert found == list(REFERENCE.values())[:14]


def test_the_other_presets_are_what_the_page_says() -> None:
    openai, large = (MODELS[variant].model_dump() for variant in ("openai", "openai_120b"))
    differing = {name: large[name] for name in openai if openai[name] != large[name]}
    assert differing == {"variant": "openai_120b", "num_layers": 36, "num_experts": 128}
    assert says("`model.num_layers` 36 and `model.num_experts` 128")
    assert all(f"`{name}`" in GUIDE for name in PRESETS)
    assert f"`openai_120b` is `openai` with\n`model.num_layers` {large['num_layers']}" in GUIDE


def test_which_layers_have_the_window() -> None:
    assert says("Layers 1, 3, 5, ... have the window")
    assert [number for number in range(1, 7) if MODELS["reference"].has_sliding_window(number)] == [1, 3, 5]


def test_positions_turn_the_whole_head() -> None:
    assert says(f"RoPE turns all {MODELS['reference'].head_dim} dimensions, in halves")


def test_the_activation() -> None:
    from gptoss20b.model.experts import SWIGLU_ALPHA, SWIGLU_LIMIT

    assert RELEASED["swiglu_limit"] == SWIGLU_LIMIT
    assert says(
        f"gate x sigmoid({SWIGLU_ALPHA} gate) x (up + 1) with gate at most {SWIGLU_LIMIT:g} and up within +-{SWIGLU_LIMIT:g}"
    )


def test_the_releases_of_megatron_are_those_that_the_project_pins() -> None:
    pins = (ROOT / "requirements" / "container.txt").read_text()
    oldest, newest = re.findall(r"^megatron-core==([\d.]+)", pins, re.MULTILINE)
    assert says(f"Megatron-Core, {oldest} to {newest} -")
    assert says(f"where C {oldest} divides the loss by their product and {newest} does not.")


# --- mismatched_settings


def test_every_disagreement_names_a_field_that_exists() -> None:
    section = GUIDE.split("## Where public sources disagree")[1].split("## Parameters")[0]
    named = re.findall(r"\| `([a-z_.]+)` \|$", section, re.MULTILINE)
    assert len(named) == len([line for line in section.splitlines() if line.startswith("|")]) - 2
    config = resolve({})
    for name in named:
        reduce(getattr, name.split("."), config)


def test_what_was_chosen() -> None:
    config, released = resolve({}), MODELS["openai"]
    assert says(
        f"over the chosen {config.model.router_topk}; its inherited preset: over all {config.model.num_experts}, then"
    )
    assert (
        says(f"then top {config.model.router_topk}, not renormalised") and not config.model.router_softmax_before_topk
    )
    assert says("`norm_epsilon` 1e-6 and `layernorm_epsilon` 1e-5; the runs of L had 1e-6; O: 1e-5 | 1e-5 |")
    keys = (REFERENCE["norm_epsilon"], REFERENCE["layernorm_epsilon"], RELEASED["rms_norm_eps"])
    assert keys == (1e-6, 1e-5, config.model.norm_epsilon)
    assert says(f"reads O's {released.window_left + 1} as `({config.model.window_left}, 0)`")
    assert says(f"which in C is {config.model.window_left} past keys and")
    assert says(f"and the query's own, {config.model.window_left + 1}; O: {released.window_left + 1} with its own")
    assert resolve({"LEARNING_RATE": "8e-4"}).end_learning_rate == pytest.approx(8e-5)
    assert says("R: 4e-5 unless told otherwise") and REFERENCE["min_lr"] == 4e-5
    assert says("a tenth of the base, 8e-5 at 8e-4") and config.fixed.end_learning_rate_ratio == 0.1
    assert says(f"O: {released.vocab_size:,}; M: {config.model.vocab_size:,}, a multiple of 128")
    assert config.model.vocab_size % 128 == 0
    std = config.fixed.init_method_std
    layer_std = std / math.sqrt(2 * config.model.num_layers)
    assert says(
        f"`initializer_range` {RELEASED['initializer_range']}; M: {std}, and {layer_std:.6f} where a layer writes"
    )
    coefficient = RELEASED["router_aux_loss_coef"]
    assert says(f"`router_aux_loss_coef` {coefficient}; R: 0, with the {coefficient} beside it in a comment | 0 |")
    assert (config.fixed.aux_loss_coefficient, config.data.eod_token) == (0, None)


def test_the_logged_total_is_the_released_model_s_at_the_data_s_vocabulary() -> None:
    ours, theirs = figure("parameters", "total", 0), 20_495_244_864
    released = MODELS["openai"].model_copy(update={"vocab_size": 128_256})
    assert total(released) == theirs and active(released) == 3_398_551_104
    assert says(f"R's fields make {ours:,}; v6.0 submissions logged {theirs:,}")
    more, per_layer = theirs - ours, sum(PER_LAYER[part](MODELS["openai"]) for part in BIASES)
    assert more == 24 * per_layer - 24 * 128
    assert says(f"is {more:,} more than R's: 24 layers x {per_layer:,} biases and sinks, less 24 x 128 of the QK norms")
    assert says(f"`info --variant openai --vocab-size {released.vocab_size}` counts")
    assert says(f"At vocabulary {released.vocab_size:,} `openai` has {theirs:,} and {active(released):,}")


# --- parameters

QUERIES: Callable[[ModelConfig], int] = lambda m: m.num_attention_heads * m.head_dim  # noqa: E731 - a name of the page's formulas
KEYS: Callable[[ModelConfig], int] = lambda m: m.num_query_groups * m.head_dim  # noqa: E731
# The page's formulas, by row.
PER_LAYER: dict[str, Callable[[ModelConfig], int]] = {
    "Q, K and V": lambda m: m.hidden_size * (QUERIES(m) + 2 * KEYS(m)),
    "their biases": lambda m: m.biases * (QUERIES(m) + 2 * KEYS(m)),
    "attention output": lambda m: QUERIES(m) * m.hidden_size,
    "its bias": lambda m: m.biases * m.hidden_size,
    "sinks": lambda m: m.attention_sinks * m.num_attention_heads,
    "QK norms": lambda m: m.qk_norm * 2 * m.head_dim,
    "two norms": lambda m: 2 * m.hidden_size,
    "router": lambda m: m.hidden_size * m.num_experts,
    "its bias (router)": lambda m: m.biases * m.num_experts,
    "experts": lambda m: m.num_experts * 3 * m.hidden_size * m.moe_ffn_hidden_size,
    "their biases (experts)": lambda m: m.biases * m.num_experts * (2 * m.moe_ffn_hidden_size + m.hidden_size),
}
BIASES = ("their biases", "its bias", "sinks", "its bias (router)", "their biases (experts)")
FORMULAS = {
    "Q, K and V": "H (q + 2 kv)",
    "their biases": "q + 2 kv",
    "attention output": "q H",
    "its bias": "H",
    "sinks": "heads",
    "QK norms": "2 x head dim",
    "two norms": "2 H",
    "router": "H E",
    "its bias (router)": "E",
    "experts": "E x 3 H F",
    "their biases (experts)": "E (2 F + H)",
    "one layer": "sum",
    "all layers": "x layers",
    "embedding": "V H",
    "LM head": "V H",
    "last norm": "H",
    "total": "sum",
    "experts that wait": "(E - 4) / E of experts and their biases",
    "active": "total - embedding - those",
}
# The parameters of Megatron-Core's modules that make up each row.
NAMES = {
    "Q, K and V": r"linear_qkv\.weight",
    "their biases": r"linear_qkv\.bias",
    "attention output": r"linear_proj\.weight",
    "its bias": r"linear_proj\.bias",
    "sinks": r"softmax_offset",
    "QK norms": r"[qk]_layernorm\.weight",
    "two norms": r"(input|pre_mlp)_layernorm\.weight",
    "router": r"router\.weight",
    "its bias (router)": r"router\.bias",
    "experts": r"experts\.linear_fc[12]\.weight",
    "their biases (experts)": r"experts\.linear_fc[12]\.bias",
}
OUTSIDE = {
    "embedding": r"embedding\.word_embeddings\.weight",
    "LM head": r"output_layer\.weight",
    "last norm": r"decoder\.final_layernorm\.weight",
}


def parameter_rows() -> dict[str, list[str]]:
    """The table of parameters; what is named twice in it is told apart by the row above."""
    table: dict[str, list[str]] = {}
    above = ""
    for name, *cells in rows("parameters"):
        row = name.strip("*")
        table[f"{row} ({above})" if row in table else row] = cells
        above = row
    return table


def figure(mark: str, row: str, column: int) -> int:
    table = parameter_rows() if mark == "parameters" else of_table(mark)
    return int(table[row][1 + column].replace(",", ""))


def one_layer(model: ModelConfig) -> int:
    return sum(formula(model) for formula in PER_LAYER.values())


def total(model: ModelConfig) -> int:
    return model.num_layers * one_layer(model) + 2 * model.vocab_size * model.hidden_size + model.hidden_size


def waiting(model: ModelConfig) -> int:
    of_experts = PER_LAYER["experts"](model) + PER_LAYER["their biases (experts)"](model)
    return model.num_layers * of_experts * (model.num_experts - model.router_topk) // model.num_experts


def active(model: ModelConfig) -> int:
    return total(model) - model.vocab_size * model.hidden_size - waiting(model)


def test_the_formulas_are_those_that_are_computed_here() -> None:
    assert {name: cells[0] for name, cells in parameter_rows().items()} == FORMULAS
    m, large = MODELS["reference"], MODELS["openai_120b"]
    assert says(
        f"H = {m.hidden_size:,}, q = {m.num_attention_heads} x {m.head_dim} = {QUERIES(m):,}, kv = {m.num_query_groups} x {m.head_dim} = "
        f"{KEYS(m)}, F = {m.moe_ffn_hidden_size:,}, E = {m.num_experts} (openai_120b: {large.num_experts})."
    )
    assert [cells[0] for cells in of_table("flops").values()] == [
        *[
            "H (q + 2 kv) + q H",
            "H E",
            f"{m.router_topk} x 3 H F",
            f"x {m.num_layers}",
            "V H",
            "2 x (layers + LM head)",
        ],
        "(past (past + 1) / 2 + (8,192 - past) (past + 1)) / 8,192",
        *["4 q x (12 windowed + 12 full)", "3 x both"],
    ]
    assert f"{m.router_topk} experts" in of_table("flops")
    assert [cells[0] for cells in of_table("impossible").values()] == [
        *["3 H F", "x experts", "x layers", "2 / 3", "x chosen / experts"]
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_follow_the_formulas(variant: str) -> None:
    model = MODELS[variant]
    matrix = model.vocab_size * model.hidden_size
    expected = {name: formula(model) for name, formula in PER_LAYER.items()} | {
        "one layer": one_layer(model),
        "all layers": model.num_layers * one_layer(model),
        "embedding": matrix,
        "LM head": matrix,
        "last norm": model.hidden_size,
        "total": total(model),
        "experts that wait": waiting(model),
        "active": active(model),
    }
    column = VARIANTS.index(variant)
    assert {name: figure("parameters", name, column) for name in parameter_rows()} == expected


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_megatrons_modules(variant: str, counted: dict[str, Any]) -> None:
    found, column, layers = counted[variant], VARIANTS.index(variant), MODELS[variant].num_layers
    sizes: dict[str, int] = found["parameters"]
    taken = 0
    for row, pattern in (NAMES | OUTSIDE).items():
        of_row = [size for name, size in sizes.items() if re.search(rf"(^|\.){pattern}$", name)]
        each = sum(of_row) if row in OUTSIDE else sum(of_row) / layers
        assert each == figure("parameters", row, column), row
        taken += len(of_row)
    assert taken == len(sizes), "every parameter is in a row"
    assert found["total_parameters"] == figure("parameters", "total", column)
    assert found["active_parameters"] == figure("parameters", "active", column)


def test_the_model_card_rounds_to_the_same() -> None:
    large, small = MODELS["openai_120b"], MODELS["openai"]
    assert says(
        f"{total(small) / 1e9:.1f} B with {active(small) / 1e9:.1f} B active and "
        f"{total(large) / 1e9:.1f} B with {active(large) / 1e9:.1f} B active: the same counting"
    )
    model = MODELS["reference"]
    assert says(f"`reference` has {active(model) + model.vocab_size * model.hidden_size:,} active parameters")


# --- FLOPs


def mean_keys(length: int, past: int) -> float:
    """Position by position: the slow way."""
    return sum(min(position, past) + 1 for position in range(length)) / length


@pytest.mark.parametrize(("column", "variant"), [(1, "reference"), (2, "openai")])
def test_flops(column: int, variant: str, counted: dict[str, Any]) -> None:
    table = {name: float(cells[column].replace(",", "")) for name, cells in of_table("flops").items()}
    m = MODELS[variant]
    layer = [
        PER_LAYER["Q, K and V"](m) + PER_LAYER["attention output"](m),
        PER_LAYER["router"](m),
        m.router_topk * 3 * m.hidden_size * m.moe_ffn_hidden_size,
    ]
    head, full, windowed = m.vocab_size * m.hidden_size, mean_keys(8192, 8192), mean_keys(8192, m.window_left)
    matrices = 2 * (m.num_layers * sum(layer) + head)
    scores = 4 * QUERIES(m) * (m.num_layers // 2) * (windowed + full)
    expected = [*layer, m.num_layers * sum(layer), head, matrices, round(windowed, 7), scores, 3 * (matrices + scores)]
    assert list(table.values()) == expected
    assert says(f"sees min(p, past) + 1 keys: on average over 8,192 positions {full:,} in a full layer")
    past = m.window_left  # the page's formula, which adds nothing up
    assert windowed == (past * (past + 1) / 2 + (8192 - past) * (past + 1)) / 8192
    assert counted[variant]["flops_per_token"] == expected[-1] == flops_per_token(config_of(variant))


def test_flops_of_a_step_and_of_a_run() -> None:
    token, length = flops_per_token(resolve({})), resolve({}).fixed.sequence_length
    samples = round(statistics.mean(next(point for point in full_points("6.1.0") if point.gbs == 16).samples))
    assert says(f"A step at GBS 16 is {token * 16 * length / 1e15:.2f} PFLOP (16 x {length:,} tokens)")
    assert says(
        f"a run of {samples:,} samples, the reference's mean at GBS 16, is {token * samples * length / 1e18:.1f} EFLOP"
    )


# --- numbers that cannot be


def test_what_other_numbers_would_make() -> None:
    expected = {}
    for column, model in enumerate((IMPOSSIBLE, MODELS["openai"])):
        expert = 3 * model.hidden_size * model.moe_ffn_hidden_size
        whole = model.num_layers * model.num_experts * expert
        ungated = f"{2 * whole // 3:,}" if column == 0 else "-"
        chosen = model.num_layers * model.router_topk * expert
        cells = [f"{expert:,}", f"{model.num_experts * expert:,}", f"{whole:,}", ungated, f"{chosen:,}"]
        for row, cell in zip(of_table("impossible"), cells, strict=True):
            expected.setdefault(row, []).append(cell)
    assert {row: cells[1:] for row, cells in of_table("impossible").items()} == expected


def test_why_they_cannot_be() -> None:
    layer = PER_LAYER["experts"](IMPOSSIBLE)
    whole, released = IMPOSSIBLE.num_layers * layer, total(MODELS["openai"])
    chosen = whole * IMPOSSIBLE.router_topk // IMPOSSIBLE.num_experts
    assert says(
        f"give {IMPOSSIBLE.num_layers} layers, hidden size {IMPOSSIBLE.hidden_size} and {IMPOSSIBLE.num_experts} experts of "
        f"width {IMPOSSIBLE.moe_ffn_hidden_size}, of which {IMPOSSIBLE.router_topk} are chosen"
    )
    assert says(f"has 3 x {IMPOSSIBLE.hidden_size:,} x {IMPOSSIBLE.moe_ffn_hidden_size:,} weights")
    assert says(f"alone are {whole / 1e9:.1f} B, five times the released model's total of {released / 1e9:.1f} B")
    assert round(whole / released) == 5
    assert says("ten of its 48 layers pass that total") and 9 * layer < released < 10 * layer
    factor = chosen / active(MODELS["openai"])
    assert says(f"the {chosen / 1e9:.1f} B of its chosen experts are {factor:.1f} times all that")


# --- the first loss


def test_the_first_loss() -> None:
    config = resolve({})
    vocabulary, hidden, std = config.model.vocab_size, config.model.hidden_size, config.fixed.init_method_std
    variance = hidden * std**2
    first, second = math.log(vocabulary), variance / 2
    assert says(f"ln({vocabulary}) + {hidden} x {std}^2 / 2 = {first:.4f} + {second:.4f} = {first + second:.3f}")
    assert says(f"a vector of squared length {hidden:,}, so")
    assert says(f"variance {hidden} x {std}^2 = {variance:.5f}")


@pytest.mark.skipif(not LOGS.is_dir(), reason="the published reference logs are not beside this checkout")
def test_the_first_losses_of_the_reference_s_logs() -> None:
    first = []
    for log in LOGS.glob("*.log*"):
        text = gzip.decompress(log.read_bytes()) if log.suffix == ".gz" else log.read_bytes()
        line = next(line for line in text.decode().splitlines() if '"train_loss"' in line)
        first.append(json.loads(line.split(":::MLLOG ")[1])["value"])
    assert len(first) == 10
    assert says(f"begin at {min(first):.3f} to {max(first):.3f}, with a mean of {statistics.mean(first):.3f}.")


# --- extras


def test_the_extras_are_settings_and_fields_that_are_off() -> None:
    section = GUIDE.split("## Open-division extras")[1]
    known, config = settings(), resolve({})
    named = re.findall(r"^\*\*`(\w+)`\*\* \(`([\w.]+)`\)", section, re.MULTILINE)
    assert {variable: tuple(field.split(".")) for variable, field in named} == {
        variable: known[variable].path for variable in ("AUX_LOSS_COEFF", "EXPERT_BIAS_RATE")
    }
    for _, field in named:
        assert reduce(getattr, field.split("."), config) == 0
    assert set(re.findall(r"`([A-Z_]{4,})`", section)) <= set(known)


def test_the_load_balancing_loss_in_perfect_balance_is_its_coefficient() -> None:
    experts = MODELS["reference"].num_experts
    assert says(f"the top {MODELS['reference'].router_topk} of score + bias")
    assert says("in perfect balance it is the coefficient")
    assert experts * sum(1 / experts * (1 / experts) for _ in range(experts)) == 1


# --- run as a script


def count_modules() -> dict[str, Any]:
    """Each variant's parameters by name, from modules on the meta device, and the figures of `info`."""
    import torch

    from gptoss20b.model.build import build_model
    from gptoss20b.model.size import compute_model_size
    from gptoss20b.process_groups import single_process

    found: dict[str, Any] = {}
    with single_process():
        for variant, model in MODELS.items():
            config = config_of(variant)
            # YaRN has no parameters, and its tables cannot be computed without memory.
            plain = {"model": model.model_copy(update={"yarn": None}), "parallel": Parallel(gpus_per_node=1, expert=1)}
            with torch.device("meta"):
                whole = build_model(config.model_copy(update=plain), "torch", on_gpu=False)
            sizes = {name: parameter.numel() for name, parameter in whole.named_parameters()}
            found[variant] = compute_model_size(config).as_dict() | {"parameters": sizes}
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(count_modules()))
