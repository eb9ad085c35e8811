"""The configuration: where values come from, what is refused and how that is said, what is derived."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from gptoss20b.config import (
    Config,
    ConfigError,
    Problem,
    fixed_hyperparameter_overrides,
    mismatched_settings,
    resolve,
    settings,
)
from gptoss20b.config.environment import read_settings
from gptoss20b.config.presets import PRESETS
from gptoss20b.config.tree import FixedHyperparameters
from tests.support.paths import ROOT

PREFIXES = ("", "MLPERF_", "MLLOG_")

# What users, launchers and other submissions' scripts already use.
PROMISED = [
    "DGXSYSTEM",
    "DGXNNODES",
    "DGXNGPU",
    "DATADIR",
    "LOGDIR",
    "SEED",
    "GLOBAL_BATCH_SIZE",
    "MICRO_BATCH_SIZE",
    "LEARNING_RATE",
    "WARMUP_STEPS",
    "EXPERT_PARALLEL",
    "TENSOR_PARALLEL",
    "PIPELINE_PARALLEL",
    "CONTEXT_PARALLEL",
    "MODEL_VARIANT",
    "PRECISION",
    "BACKEND",
    "SUBMISSION_ORG",
    "SUBMISSION_PLATFORM",
    "SUBMISSION_DIVISION",
    "SUBMISSION_STATUS",
]

# One valid open-division run in which no setting has its default: text given, value expected in the tree.
EVERYTHING: dict[str, tuple[str, Any]] = {
    "SEED": ("7", 7),
    "DGXSYSTEM": ("box", "box"),
    "SUBMISSION_ORG": ("Somebody", "Somebody"),
    "SUBMISSION_PLATFORM": ("Some platform", "Some platform"),
    "SUBMISSION_DIVISION": ("OPEN", "open"),
    "SUBMISSION_STATUS": ("Research", "research"),
    "CONFIG_FILENAME": ("config_other.sh", "config_other.sh"),
    "GIT_COMMIT": ("abc123", "abc123"),
    "CACHE_CLEARED": ("1", True),
    "MODEL_VARIANT": ("openai", "openai"),
    "VOCAB_SIZE": ("128512", 128_512),
    "SEQUENCE_LENGTH": ("4096", 4096),
    "MAX_STEPS": ("1000", 1000),
    "END_LR_RATIO": ("0.2", 0.2),
    "ADAM_BETA1": ("0.8", 0.8),
    "ADAM_BETA2": ("0.99", 0.99),
    "ADAM_EPSILON": ("1e-8", 1e-8),
    "WEIGHT_DECAY": ("0", 0.0),
    "GRADIENT_CLIP": ("0.5", 0.5),
    "INIT_METHOD_STD": ("0.02", 0.02),
    "EVAL_SAMPLES": ("64", 64),
    "EVAL_INTERVAL_SAMPLES": ("256", 256),
    "TARGET_LOSS": ("4", 4.0),
    "AUX_LOSS_COEFF": ("0", 0.0),  # more is refused beside context parallel and expert biases; tested below
    "EXPERT_BIAS_RATE": ("1e-3", 1e-3),
    "GLOBAL_BATCH_SIZE": ("48", 48),
    "LEARNING_RATE": ("1e-3", 1e-3),
    "WARMUP_STEPS": ("10", 10),
    "DGXNNODES": ("3", 3),
    "DGXNGPU": ("16", 16),
    "EXPERT_PARALLEL": ("4", 4),
    "TENSOR_PARALLEL": ("1", 1),  # more is refused beside expert parallel; its own test is below
    "PIPELINE_PARALLEL": ("2", 2),
    "CONTEXT_PARALLEL": ("2", 2),
    "MICRO_BATCH_SIZE": ("4", 4),
    "PRECISION": ("FP32", "fp32"),
    "BACKEND": ("transformer_engine", "transformer_engine"),
    "RECOMPUTE": ("MoE", "moe"),
    "COMPILE": ("kernels", "kernels"),  # layers are refused beside Transformer Engine; tested below
    "WARMUP_PASSES": ("0", 0),
    "COLLECTIVE_TIMEOUT": ("60", 60),
    "DETERMINISTIC": ("1", True),
    "CPU_THREADS": ("3", 3),
    "DATADIR": ("/some/data", Path("/some/data")),
    "EOD_TOKEN": ("5", 5),
    "LOGDIR": ("/some/log", Path("/some/log")),
    "LOG_INTERVAL": ("3", 3),
    "SAVE_INTERVAL": ("30min", "30min"),
    "SAVE_KEEP": ("3", 3),
    "SAVE_DIR": ("/saves", Path("/saves")),
    "SAVE_ASYNC": ("0", False),
    "RESUME": ("1", True),
}
ONE_RANK = {"DGXNGPU": "1", "EXPERT_PARALLEL": "1", "MICRO_BATCH_SIZE": "1"}
OPEN = {"SUBMISSION_DIVISION": "open"}
# A message tells how to put things right.
FIX = re.compile(r"\b(Unset|Use|Set|Choose|Correct or unset)\b[^.]*\.(?=$| )")


def without_settings(environment: dict[str, str]) -> dict[str, str]:
    names = {prefix + name for name in settings() for prefix in PREFIXES}
    return {name: value for name, value in environment.items() if name not in names}


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(os.environ) - set(without_settings(dict(os.environ))):
        monkeypatch.delenv(name)


def refused(**options: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        resolve(options)
    return caught.value.problems


def value_at(config: Config, variable: str) -> Any:
    node: Any = config
    for name in settings()[variable].path:
        node = getattr(node, name)
    return node


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gptoss20b", *arguments],
        cwd=ROOT,
        env={**without_settings(dict(os.environ)), "COLUMNS": "200", "TERM": "dumb", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def as_options(values: dict[str, str]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name.lower().replace('_', '-')}", value)]


# --- where values come from


def test_every_promised_name_is_a_setting() -> None:
    assert set(PROMISED) <= set(settings())


def test_every_setting_is_in_the_table_of_this_file_with_a_value_of_its_own() -> None:
    assert set(EVERYTHING) == set(settings())
    config = resolve()
    assert {name for name, (_, value) in EVERYTHING.items() if value == value_at(config, name)} == {
        "TENSOR_PARALLEL",
        "AUX_LOSS_COEFF",
        "COMPILE",
    }


def test_every_setting_has_a_line_of_help() -> None:
    assert all(setting.description for setting in settings().values())


def test_every_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (text, _) in EVERYTHING.items():
        monkeypatch.setenv(name, text)
    config = resolve()
    assert {name: value_at(config, name) for name in EVERYTHING} == {name: v for name, (_, v) in EVERYTHING.items()}


def test_every_setting_is_read_from_the_options() -> None:
    config = resolve({name: text for name, (text, _) in EVERYTHING.items()})
    assert {name: value_at(config, name) for name in EVERYTHING} == {name: v for name, (_, v) in EVERYTHING.items()}


@pytest.mark.parametrize(
    ("name", "of_environment", "of_option", "expected"),
    [
        ("SEED", "1", "2", 2),
        ("LEARNING_RATE", "1e-3", "2e-3", 2e-3),
        ("SUBMISSION_ORG", "one", "two", "two"),
        ("DATADIR", "/one", "/two", Path("/two")),
        ("CACHE_CLEARED", "1", "0", False),
        ("SUBMISSION_STATUS", "cloud", "preview", "preview"),
    ],
)
def test_an_option_beats_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, of_environment: str, of_option: str, expected: object
) -> None:
    monkeypatch.setenv(name, of_environment)
    assert value_at(resolve({name: of_option}), name) == expected
    assert value_at(resolve({name: None}), name) != expected


def test_option_over_environment_over_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"MODEL_VARIANT": "tiny", **OPEN}
    assert resolve(tiny).free.global_batch_size == 4
    monkeypatch.setenv("GLOBAL_BATCH_SIZE", "8")
    assert resolve(tiny).free.global_batch_size == 8
    assert resolve({**tiny, "GLOBAL_BATCH_SIZE": "12"}).free.global_batch_size == 12


def test_a_preset_beats_the_defaults_and_leaves_the_rest() -> None:
    config = resolve({"MODEL_VARIANT": "tiny", **OPEN})
    assert (config.fixed.target_loss, config.execution.precision, config.parallel.expert) == (3.05, "fp32", 2)
    assert config.fixed.sequence_length == 8192  # the official checker insists, and a log says what was run
    assert config.fixed.adam_epsilon == 1e-5


@pytest.mark.parametrize("prefix", ["MLPERF_", "MLLOG_"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SUBMISSION_ORG", "Somebody"),
        ("SUBMISSION_PLATFORM", "Something"),
        ("SUBMISSION_DIVISION", "open"),
        ("SUBMISSION_STATUS", "cloud"),
    ],
)
def test_submission_names_have_aliases(monkeypatch: pytest.MonkeyPatch, prefix: str, name: str, text: str) -> None:
    monkeypatch.setenv(prefix + name, text)
    assert value_at(resolve(), name) == text


def test_the_plain_name_beats_its_aliases_and_options_beat_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLOG_SUBMISSION_ORG", "third")
    monkeypatch.setenv("MLPERF_SUBMISSION_ORG", "second")
    assert resolve().submission.org == "second"
    monkeypatch.setenv("SUBMISSION_ORG", "first")
    assert resolve().submission.org == "first"
    assert resolve({"SUBMISSION_ORG": "option"}).submission.org == "option"


def test_only_submission_names_have_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPERF_SEED", "5")
    monkeypatch.setenv("MLLOG_GLOBAL_BATCH_SIZE", "32")
    assert read_settings() == {}


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = resolve()
    monkeypatch.setenv(name, "")
    assert resolve() == expected


def test_an_empty_plain_name_lets_its_alias_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMISSION_ORG", "")
    monkeypatch.setenv("MLLOG_SUBMISSION_ORG", "Somebody")
    assert resolve().submission.org == "Somebody"


def test_names_are_case_sensitive_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("seed", "5")  # somebody's shell variable, not ours
    assert resolve().seed is None


def test_platform_and_configuration_file_default_to_the_system() -> None:
    submission = resolve({"DGXSYSTEM": "box"}).submission
    assert (submission.platform, submission.config_filename) == ("box", "config_box.sh")


# --- what is refused, and how that is said


def test_all_problems_are_reported_at_once() -> None:
    problems = refused(
        SEED="soon",
        LEARNING_RATE="-1",
        PRECISION="fp4",
        GLOBAL_BATCH_SIZE="17",
        WEIGHT_DECAY="0.2",
        EXPERT_PARALLEL="3",
    )
    by_name = {problem.variables[0]: str(problem) for problem in problems}
    assert set(by_name) == {
        "SEED",
        "LEARNING_RATE",
        "PRECISION",
        "GLOBAL_BATCH_SIZE",
        "WEIGHT_DECAY",
        "EXPERT_PARALLEL",
    }
    assert len([problem for problem in problems if problem.variables[0] == "EXPERT_PARALLEL"]) == 2  # experts, ranks
    for name, expected in {
        "SEED": ["got 'soon'", "valid integer"],
        "LEARNING_RATE": ["got '-1'", "greater than 0"],
        "PRECISION": ["got 'fp4'", "'bf16'", "'fp32'", "'fp8'", "'mxfp8'"],
        "GLOBAL_BATCH_SIZE": ["got 17", "multiple of 16"],
        "WEIGHT_DECAY": ["got 0.2", "fixes it at 0.1"],
        "EXPERT_PARALLEL": ["got 3", "Use one of 1, 2, 4, 8"],
    }.items():
        assert all(part in by_name[name] for part in expected), by_name[name]
        assert by_name[name].startswith(f"{name}: ")
        assert FIX.search(by_name[name]), by_name[name]


def test_the_error_lists_every_problem_on_its_own_line() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"SEED": "soon", "WARMUP_STEPS": "-1"})
    first, *rest = str(caught.value).splitlines()
    assert first == "2 problems in the configuration:"
    assert [line.split(":")[0] for line in rest] == ["  SEED", "  WARMUP_STEPS"]


def test_a_wrong_value_does_not_cause_follow_up_problems() -> None:
    # DGXNGPU=0 would divide nothing; only the wrong value itself is reported.
    assert [problem.variables[0] for problem in refused(DGXNGPU="0")] == ["DGXNGPU"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SEED", "-1"),
        ("SEED", str(2**63)),
        ("SEED", "1.5"),
        ("GLOBAL_BATCH_SIZE", "0"),
        ("MICRO_BATCH_SIZE", "two"),
        ("LEARNING_RATE", "0"),
        ("LEARNING_RATE", "nan"),
        ("LEARNING_RATE", "inf"),
        ("LEARNING_RATE", "1e999"),
        ("WARMUP_STEPS", "-1"),
        ("DGXNNODES", "0"),
        ("TENSOR_PARALLEL", "0"),
        ("PRECISION", "int4"),
        ("BACKEND", "cuda"),
        ("RECOMPUTE", "full"),
        ("COMPILE", "graphs"),
        ("SUBMISSION_DIVISION", "closet"),
        ("SUBMISSION_STATUS", "finished"),
        ("CACHE_CLEARED", "maybe"),
        ("LOG_INTERVAL", "0"),
        ("SAVE_INTERVAL", "-1"),
        ("SAVE_INTERVAL", "0min"),
        ("SAVE_INTERVAL", "30 s"),
        ("SAVE_INTERVAL", "012"),
        ("SAVE_KEEP", "0"),
        ("RESUME", "perhaps"),
        ("COLLECTIVE_TIMEOUT", "1"),
        ("VOCAB_SIZE", "1"),
        ("TARGET_LOSS", "nan"),
        ("ADAM_BETA1", "1"),
        ("AUX_LOSS_COEFF", "-0.01"),
        ("EXPERT_BIAS_RATE", "-0.01"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_value_and_a_fix(name: str, text: str) -> None:
    (problem,) = refused(**{name: text})
    assert problem.variables == (name,)
    assert f"got '{text}'" in problem.message
    assert f"Correct or unset {name}." in problem.message


@pytest.mark.parametrize("name", ["SUBMISSION_PLATFORM", "CONFIG_FILENAME", "DGXSYSTEM"])
def test_an_option_cannot_make_a_record_empty(name: str) -> None:
    try:
        submission = resolve({name: ""}).submission
    except ConfigError:
        return
    assert submission.platform
    assert submission.config_filename not in ("", "config_.sh")


@pytest.mark.parametrize("variant", ["tinny", "Reference", "gpt_oss_20b"])
def test_an_unknown_variant_is_refused_with_the_known_ones(variant: str) -> None:
    (problem,) = refused(MODEL_VARIANT=variant)
    assert str(problem).startswith(f"MODEL_VARIANT: got '{variant}', expected one of: ")
    assert all(known in problem.message for known in ("reference", "openai", "openai_120b", "tiny"))


def test_an_unknown_variant_is_reported_with_the_rest() -> None:
    assert {problem.variables[0] for problem in refused(MODEL_VARIANT="tinny", SEED="soon")} == {
        "MODEL_VARIANT",
        "SEED",
    }


def another(value: Any) -> str:
    """A different valid text for a rule's value; half of every default is within bounds, and 0.01 where that is 0."""
    assert isinstance(value, int | float), "teach `another` the new type"
    assert not isinstance(value, bool), "teach `another` the new type"
    return str(value // 2 if isinstance(value, int) else value / 2 or 0.01)


RULES = [(setting.path[1], name) for name, setting in settings().items() if setting.path[0] == "fixed"]


def test_every_rule_is_covered() -> None:
    assert {field for field, _ in RULES} == set(FixedHyperparameters.model_fields)
    assert len(RULES) >= 12


@pytest.mark.parametrize(("field", "name"), RULES)
def test_the_closed_division_refuses_to_override_a_rule(monkeypatch: pytest.MonkeyPatch, field: str, name: str) -> None:
    required = FixedHyperparameters.model_fields[field].default
    text = another(required)
    (problem,) = refused(**{name: text})
    assert problem.variables[0] == name
    assert f"got {text}" in problem.message
    assert f"fixes it at {required}" in problem.message
    assert f"Unset {name}" in problem.message
    assert "SUBMISSION_DIVISION=open" in problem.message
    monkeypatch.setenv(name, text)
    assert refused() == [problem]


@pytest.mark.parametrize(("field", "name"), RULES)
def test_the_open_division_may_override_a_rule(field: str, name: str) -> None:
    text = another(FixedHyperparameters.model_fields[field].default)
    config = resolve({name: text, **OPEN})
    assert str(getattr(config.fixed, field)) == text
    assert [(name, str(got)) for _, name, got, _ in fixed_hyperparameter_overrides(config)] == [(name, text)]


@pytest.mark.parametrize(("field", "name"), RULES)
def test_the_closed_division_accepts_the_rule_spelled_out(field: str, name: str) -> None:
    assert resolve({name: str(FixedHyperparameters.model_fields[field].default)}) == resolve()


@pytest.mark.parametrize("variant", sorted(set(PRESETS) - {"reference"}))
def test_the_closed_division_trains_the_reference_only(variant: str) -> None:
    problems = refused(MODEL_VARIANT=variant)
    assert [problem.variables[0] for problem in problems] == ["MODEL_VARIANT"]
    assert f"got '{variant}', but the closed division trains 'reference'" in problems[0].message
    assert FIX.search(problems[0].message)
    assert resolve({"MODEL_VARIANT": variant, **OPEN}).model.variant == variant


def test_a_rule_overridden_on_top_of_another_variant_is_reported_too() -> None:
    problems = refused(MODEL_VARIANT="tiny", TARGET_LOSS="9")
    assert {problem.variables[0] for problem in problems} == {"MODEL_VARIANT", "TARGET_LOSS"}


def test_the_closed_division_fixes_the_vocabulary() -> None:
    (problem,) = refused(VOCAB_SIZE="201088")
    assert str(problem).startswith("VOCAB_SIZE: got 201088, but the closed division")
    assert "128256" in problem.message
    assert resolve({"VOCAB_SIZE": "201088", **OPEN}).model.vocab_size == 201_088
    assert resolve({"VOCAB_SIZE": "128256"}) == resolve()


def test_the_closed_division_counts_every_position() -> None:
    (problem,) = refused(EOD_TOKEN="0")
    assert str(problem).startswith("EOD_TOKEN: got 0, but")
    assert resolve({"EOD_TOKEN": "0", **OPEN}).data.eod_token == 0


@pytest.mark.parametrize("division", ["closed", "Closed", "CLOSED"])
def test_the_division_is_read_in_any_case(division: str) -> None:
    assert [problem.variables[0] for problem in refused(SUBMISSION_DIVISION=division, TARGET_LOSS="9")] == [
        "TARGET_LOSS"
    ]


# --- layouts


@pytest.mark.parametrize(
    ("options", "variable", "parts"),
    [
        (
            {"TENSOR_PARALLEL": "3", "EXPERT_PARALLEL": "1"},
            "TENSOR_PARALLEL",
            ["3 x 1 x 1 = 3", "8 ranks (DGXNNODES 1 x DGXNGPU 8)", "product divides 8"],
        ),
        (
            {"PIPELINE_PARALLEL": "2", "CONTEXT_PARALLEL": "8", "EXPERT_PARALLEL": "1"},
            "TENSOR_PARALLEL",
            ["1 x 2 x 8 = 16", "8 ranks", "product divides 8"],
        ),
        (
            {"EXPERT_PARALLEL": "3", "DGXNGPU": "6", "GLOBAL_BATCH_SIZE": "12"},
            "EXPERT_PARALLEL",
            ["got 3", "32 experts", "Use one of 1, 2, 4, 8, 16, 32."],
        ),
        (
            {"EXPERT_PARALLEL": "8", "DGXNGPU": "4"},
            "EXPERT_PARALLEL",
            ["got 8", "data-parallel world of 4", "Use one of 1, 2, 4,", "DGXNGPU"],
        ),
        (
            {"EXPERT_PARALLEL": "8", "PIPELINE_PARALLEL": "2"},
            "EXPERT_PARALLEL",
            ["got 8", "data-parallel world of 4", "Use one of 1, 2, 4,"],
        ),
        (
            {"EXPERT_PARALLEL": "2", "TENSOR_PARALLEL": "2"},
            "TENSOR_PARALLEL",
            ["got 2 with EXPERT_PARALLEL=2", "must be 1 when expert parallel is above 1", "Set TENSOR_PARALLEL=1 or"],
        ),
        (
            {"TENSOR_PARALLEL": "16", "EXPERT_PARALLEL": "1", "DGXNNODES": "2"},
            "TENSOR_PARALLEL",
            ["got 16", "8 key-value groups", "Use one of 1, 2, 4, 8."],
        ),
        (
            {"PIPELINE_PARALLEL": "5", "EXPERT_PARALLEL": "1", "DGXNGPU": "5"},
            "PIPELINE_PARALLEL",
            ["got 5", "24 layers", "Use one of 1, 2, 3, 4, 6, 8, 12, 24."],
        ),
        (
            {"CONTEXT_PARALLEL": "2", "BACKEND": "torch"},
            "CONTEXT_PARALLEL",
            ["got 2", "torch back end", "Set CONTEXT_PARALLEL=1, or BACKEND=transformer_engine"],
        ),
        (
            {"PRECISION": "fp8", "BACKEND": "torch"},
            "PRECISION",
            ["got fp8", "only Transformer Engine", "Set PRECISION=bf16, or BACKEND=transformer_engine"],
        ),
        (
            {"PRECISION": "mxfp8", "BACKEND": "torch"},
            "PRECISION",
            ["got mxfp8", "only Transformer Engine", "Set PRECISION=bf16, or BACKEND=transformer_engine"],
        ),
        (
            {"COMPILE": "layers", "BACKEND": "transformer_engine"},
            "COMPILE",
            ["got layers", "Transformer Engine", "Set COMPILE=kernels or BACKEND=torch."],
        ),
        (
            {"CONTEXT_PARALLEL": "2", "SEQUENCE_LENGTH": "8190", **OPEN},
            "CONTEXT_PARALLEL",
            ["got 2", "sequences of 8190 tokens", "4 equal parts"],
        ),
        (
            {"GLOBAL_BATCH_SIZE": "24"},
            "GLOBAL_BATCH_SIZE",
            ["got 24", "micro batch 2 x data parallel 8 = 16", "Use a multiple of 16", "MICRO_BATCH_SIZE"],
        ),
        (
            {"GLOBAL_BATCH_SIZE": "8"},  # less than one micro batch on every rank
            "GLOBAL_BATCH_SIZE",
            ["got 8", "Use a multiple of 16"],
        ),
        (
            {"AUX_LOSS_COEFF": "0.01", "EXPERT_BIAS_RATE": "1e-3", **OPEN},
            "AUX_LOSS_COEFF",
            ["got 0.01 with EXPERT_BIAS_RATE=0.001", "two ways to one end", "Unset one of them."],
        ),
        (
            {"AUX_LOSS_COEFF": "0.01", "TENSOR_PARALLEL": "2", "EXPERT_PARALLEL": "1", **OPEN},
            "AUX_LOSS_COEFF",
            [
                "got 0.01",
                "parallel 2 x 1",
                "by a factor of 2",
                "Use TENSOR_PARALLEL=1 and CONTEXT_PARALLEL=1, or unset",
            ],
        ),
        (
            {"AUX_LOSS_COEFF": "0.01", "CONTEXT_PARALLEL": "4", "EXPERT_PARALLEL": "1", **OPEN},
            "AUX_LOSS_COEFF",
            ["got 0.01", "parallel 1 x 4", "by a factor of 4"],
        ),
        (
            {"WARMUP_STEPS": "1200000"},
            "WARMUP_STEPS",
            ["got 1200000", "no step of the 1200000 to decay", "Use fewer than 1200000."],
        ),
        (
            {"EOD_TOKEN": "128256", **OPEN},
            "EOD_TOKEN",
            ["got 128256", "vocabulary of 128256", "Use an id from 0 to 128255."],
        ),
    ],
)
def test_a_layout_that_cannot_run_is_refused(options: dict[str, str], variable: str, parts: list[str]) -> None:
    (problem,) = refused(**options)
    assert problem.variables[0] == variable
    assert all(part in problem.message for part in parts), problem.message
    assert FIX.search(problem.message), problem.message
    assert all(name in settings() for name in problem.variables)


@pytest.mark.parametrize("division", ["closed", "open"])
def test_either_division_may_choose_how_it_computes(division: str) -> None:
    options = {"SUBMISSION_DIVISION": division, "RECOMPUTE": "layers"}
    execution = resolve(options | {"COMPILE": "layers", "BACKEND": "torch"}).execution
    assert (execution.recompute, execution.compile_mode, execution.bf16_weights) == ("layers", "layers", True)
    # Which back end auto is, only the machine can tell.
    for precision in ("fp8", "MXFP8"):
        execution = resolve(options | {"PRECISION": precision}).execution
        assert (execution.precision, execution.bf16_weights) == (precision.lower(), True)
    assert not resolve(options | {"PRECISION": "fp32"}).execution.bf16_weights


def test_tensor_parallel_must_divide_the_vocabulary() -> None:
    layout = {"TENSOR_PARALLEL": "2", "EXPERT_PARALLEL": "1", **OPEN}
    resolve(layout)
    assert "TENSOR_PARALLEL" in [problem.variables[0] for problem in refused(VOCAB_SIZE="128257", **layout)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"EXPERT_PARALLEL": "1"},
        {"EXPERT_PARALLEL": "4"},
        {"CONTEXT_PARALLEL": "2"},
        {"CONTEXT_PARALLEL": "4"},
        {"TENSOR_PARALLEL": "2", "EXPERT_PARALLEL": "1"},
        {"PIPELINE_PARALLEL": "2", "EXPERT_PARALLEL": "4"},
        {"GLOBAL_BATCH_SIZE": "24", "MICRO_BATCH_SIZE": "3", "LEARNING_RATE": "5e-4", "WARMUP_STEPS": "256"},
        {"DGXNNODES": "64", "CONTEXT_PARALLEL": "4", "MICRO_BATCH_SIZE": "1", "GLOBAL_BATCH_SIZE": "128"},
        ONE_RANK,
    ],
)
def test_layouts_of_real_submissions_are_accepted(options: dict[str, str]) -> None:
    resolve(options)


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, int]:
    tensor, pipeline, context = (draw(st.sampled_from([1, 1, 1, 2, 3, 4, 16])) for _ in range(3))
    data, nodes = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 16])), draw(st.sampled_from([1, 1, 2]))
    micro = draw(st.integers(1, 4))
    # Half the draws are whole by construction, so that valid layouts are not rare.
    fits = draw(st.booleans())
    return {
        "TENSOR_PARALLEL": tensor,
        "PIPELINE_PARALLEL": pipeline,
        "CONTEXT_PARALLEL": context,
        "EXPERT_PARALLEL": draw(st.sampled_from([1, 1, 2, 3, 4, 8, 32])),
        "DGXNNODES": nodes,
        "DGXNGPU": tensor * pipeline * context * data if fits else draw(st.integers(1, 16)),
        "MICRO_BATCH_SIZE": micro,
        "GLOBAL_BATCH_SIZE": micro * data * nodes * draw(st.integers(1, 9)) if fits else draw(st.integers(1, 200)),
    }


def can_run(layout: dict[str, int]) -> bool:
    """The page's rules for the reference model (32 experts, 8 key-value groups, 24 layers), written again."""
    tensor, pipeline, context, expert = (
        layout[f"{kind}_PARALLEL"] for kind in ("TENSOR", "PIPELINE", "CONTEXT", "EXPERT")
    )
    world = layout["DGXNNODES"] * layout["DGXNGPU"]
    if world % (tensor * pipeline * context):
        return False
    data = world // (tensor * pipeline * context)
    return (
        32 % expert == 0
        and (data * context) % expert == 0
        and (tensor == 1 or expert == 1)
        and 8 % tensor == 0
        and 24 % pipeline == 0
        and (context == 1 or 8192 % (2 * context) == 0)
        and layout["GLOBAL_BATCH_SIZE"] % (layout["MICRO_BATCH_SIZE"] * data) == 0
    )


@hypothesis_settings(max_examples=300, deadline=None)
@given(layout=layouts())
def test_a_layout_is_accepted_exactly_when_it_can_run(layout: dict[str, int]) -> None:
    options = {name: str(value) for name, value in layout.items()}
    if not can_run(layout):
        assert refused(**options)
        return
    config = resolve(options)
    assert config.accumulation_steps >= 1
    assert (
        config.accumulation_steps * config.execution.micro_batch_size * config.parallel.data
        == config.free.global_batch_size
    )
    assert (
        config.parallel.data * config.parallel.tensor * config.parallel.pipeline * config.parallel.context
        == config.parallel.world_size
        == layout["DGXNNODES"] * layout["DGXNGPU"]
    )
    assert config.parallel.expert_data * config.parallel.expert * config.parallel.pipeline == config.parallel.world_size


# --- derived values


@pytest.mark.parametrize(
    ("gbs", "steps"), [(8, 1536), (12, 1024), (16, 768), (24, 512), (32, 384), (50, 246), (64, 192), (100, 123)]
)
def test_the_evaluation_interval_is_rounded_up(gbs: int, steps: int) -> None:
    config = resolve({"GLOBAL_BATCH_SIZE": str(gbs), **ONE_RANK})
    assert config.eval_interval_steps == steps
    assert config.derived()["eval_interval_samples"] == steps * gbs >= 12_288


@given(gbs=st.integers(1, 20_000))
def test_the_evaluation_interval_is_the_shortest_that_reaches_12288_samples(gbs: int) -> None:
    steps = resolve({"GLOBAL_BATCH_SIZE": str(gbs), **ONE_RANK}).eval_interval_steps
    assert (steps - 1) * gbs < 12_288 <= steps * gbs


@pytest.mark.parametrize(
    ("rate", "warmup", "end", "decay"),
    [
        ("4e-4", "128", 4e-5, 1_199_872),
        ("8e-4", "128", 8e-5, 1_199_872),
        ("1e-3", "192", 1e-4, 1_199_808),
        ("5e-4", "256", 5e-5, 1_199_744),
        ("5.2e-4", "32", 5.2e-5, 1_199_968),
        ("4e-4", "0", 4e-5, 1_200_000),
    ],
)
def test_end_rate_and_decay_steps(rate: str, warmup: str, end: float, decay: int) -> None:
    config = resolve({"LEARNING_RATE": rate, "WARMUP_STEPS": warmup})
    assert config.end_learning_rate == pytest.approx(end, rel=1e-12)
    assert config.decay_steps == decay


@pytest.mark.parametrize(
    ("options", "data", "accumulation"),
    [
        ({}, 8, 1),
        ({"GLOBAL_BATCH_SIZE": "64"}, 8, 4),
        ({"CONTEXT_PARALLEL": "2"}, 4, 2),
        ({"PIPELINE_PARALLEL": "4", "EXPERT_PARALLEL": "2"}, 2, 4),
        (ONE_RANK, 1, 16),
    ],
)
def test_data_parallel_size_and_accumulation(options: dict[str, str], data: int, accumulation: int) -> None:
    config = resolve(options)
    assert (config.parallel.data, config.accumulation_steps) == (data, accumulation)


def test_derived_values_cannot_be_typed() -> None:
    # eval_interval_samples is both: the rule's 12,288, and what whole steps make of it.
    typed = {setting.path[-1] for setting in settings().values()} | {name.lower() for name in settings()}
    assert set(resolve().derived()) & typed <= {"eval_interval_samples"}


# --- the tree


def test_the_defaults_are_the_reference_run() -> None:
    config = resolve()
    assert config.fixed == FixedHyperparameters(
        sequence_length=8192,
        max_steps=1_200_000,
        end_learning_rate_ratio=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-5,
        weight_decay=0.1,
        gradient_clip=1.0,
        init_method_std=0.008,
        eval_samples=1024,
        eval_interval_samples=12_288,
        target_loss=3.34,
    )
    assert config.free.model_dump() == {"global_batch_size": 16, "learning_rate": 4e-4, "warmup_steps": 128}
    assert config.parallel.model_dump() == {
        "nodes": 1,
        "gpus_per_node": 8,
        "expert": 8,
        "tensor": 1,
        "pipeline": 1,
        "context": 1,
    }
    assert (config.execution.micro_batch_size, config.execution.precision) == (2, "bf16")
    assert (config.submission.division, config.model.variant) == ("closed", "reference")
    assert fixed_hyperparameter_overrides(config) == []


@pytest.mark.parametrize(
    ("text", "samples", "minutes"), [("0", 0, None), ("12288", 12_288, None), ("1min", 0, 1), ("90min", 0, 90)]
)
def test_checkpoints_come_by_samples_or_by_minutes(text: str, samples: int, minutes: int | None) -> None:
    found = resolve({"SAVE_INTERVAL": text}).checkpoints
    assert (found.samples, found.minutes) == (samples, minutes)


def branches(node: Any) -> Iterator[Any]:
    yield node
    for name in type(node).model_fields:
        if isinstance(value := getattr(node, name), BaseModel):
            yield from branches(value)


def test_the_tree_is_frozen_and_takes_no_unknown_key() -> None:
    config = resolve({"MODEL_VARIANT": "openai", **OPEN})
    nodes = list(branches(config))
    assert len(nodes) == 11  # Config, its nine branches, YaRN
    for node in nodes:
        for name in type(node).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(node, name, getattr(node, name))
        with pytest.raises(ValidationError, match="Extra inputs"):
            type(node).model_validate({**node.model_dump(), "typo": 1})


def test_presets_are_plain_data_and_stay_as_they_are() -> None:
    before = copy.deepcopy(PRESETS)
    assert json.loads(json.dumps(PRESETS)) == PRESETS
    for variant in PRESETS:
        resolve({"MODEL_VARIANT": variant, "SEED": "1", "GIT_COMMIT": "x", **OPEN})
    assert before == PRESETS


def test_the_models_are_those_of_the_page() -> None:
    reference, openai, large = (
        resolve({"MODEL_VARIANT": name, **OPEN}).model for name in ("reference", "openai", "openai_120b")
    )
    common = {
        "num_layers": 24,
        "hidden_size": 2880,
        "num_attention_heads": 64,
        "num_query_groups": 8,
        "head_dim": 64,
        "num_experts": 32,
        "router_topk": 4,
        "moe_ffn_hidden_size": 2880,
        "rotary_base": 150_000,
        "norm_epsilon": 1e-5,
        "router_softmax_before_topk": False,
    }
    of_reference = {
        "variant": "reference",
        "vocab_size": 128_256,
        "activation": "swiglu",
        "biases": False,
        "qk_norm": True,
        "attention_sinks": False,
        "window_left": 128,
        "yarn": None,
    }
    yarn = {
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    }
    of_openai = {
        "variant": "openai",
        "vocab_size": 201_088,
        "activation": "clamped_swiglu",
        "biases": True,
        "qk_norm": False,
        "attention_sinks": True,
        "window_left": 127,
        "yarn": yarn,
    }
    assert reference.model_dump() == {**common, **of_reference}
    assert openai.model_dump() == {**common, **of_openai}
    assert large.model_dump() == {**common, **of_openai, "variant": "openai_120b", "num_layers": 36, "num_experts": 128}


def test_odd_layers_have_a_window() -> None:
    assert [resolve().model.has_sliding_window(number) for number in (1, 2, 3, 23, 24)] == [
        True,
        False,
        True,
        True,
        False,
    ]


def test_a_configuration_survives_json() -> None:
    for options in ({}, {name: text for name, (text, _) in EVERYTHING.items()}):
        config = resolve(options)
        assert Config.model_validate(json.loads(config.model_dump_json())) == config


# --- the command line


def printed_settings(text: str) -> dict[str, str]:
    return dict(line.strip().split(" = ", 1) for line in text.split("settings:\n", 1)[1].splitlines())


def test_dry_run_prints_the_resolved_configuration() -> None:
    done = run_cli("train", "--dry-run", "--global-batch-size", "32", SEED="3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("differs from the closed division's fixed values: nothing\n")
    assert "  eval_interval_steps = 384\n" in done.stdout
    shown = printed_settings(done.stdout)
    assert set(shown) == set(settings())
    assert (shown["SEED"], shown["GLOBAL_BATCH_SIZE"], shown["LOGDIR"]) == ("3", "32", "(not set)")


def test_dry_run_shows_what_differs_from_the_rules_first() -> None:
    done = run_cli("train", "--dry-run", "--target-loss", "9", "--submission-division", "open")
    assert done.returncode == 0
    assert done.stdout.startswith(
        "differs from the closed division's fixed values: 1\n  TARGET_LOSS = 9.0 (rule: 3.34)\n"
    )


def test_every_setting_is_an_option_of_the_same_name() -> None:
    texts = {name: text for name, (text, _) in EVERYTHING.items()}
    of_options = run_cli("train", "--dry-run", *as_options(texts))
    of_environment = run_cli("train", "--dry-run", **texts)
    assert (of_options.returncode, of_options.stderr) == (0, "")
    assert of_options.stdout == of_environment.stdout
    assert printed_settings(of_options.stdout) == {name: str(value) for name, (_, value) in EVERYTHING.items()}


def test_a_bad_configuration_exits_2_with_every_problem_on_stderr() -> None:
    done = run_cli("train", "--dry-run", "--seed", "soon", "--target-loss", "9", GLOBAL_BATCH_SIZE="17")
    assert (done.returncode, done.stdout) == (2, "")
    first, *rest = done.stderr.splitlines()
    assert first == "error: 3 problems in the configuration:"
    assert [line.split(":")[0] for line in rest] == ["  SEED", "  TARGET_LOSS", "  GLOBAL_BATCH_SIZE"]


def test_a_bad_configuration_is_refused_before_a_run_too() -> None:
    done = run_cli("train", "--seed", "soon")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: 1 problem in the configuration:\n  SEED: got 'soon'")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--dry-run", "--global-batch", "3"], "--global-batch"),
        (["train", "--dry-run", "--seed"], "--seed"),
        (["train", "--dry-run", "more"], "more"),
        (["trane"], "trane"),
        (["info", "--variant", "tinny"], "tinny"),
        (["result"], "path"),
        (["result", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_wrong_usage_exits_2_without_a_traceback(arguments: list[str], named: str) -> None:
    done = run_cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr.replace("PATH", "path")
    assert "Traceback" not in done.stderr


def test_help_names_every_setting() -> None:
    assert run_cli("--help").returncode == 0
    done = run_cli("train", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in settings():
        assert f"--{name.lower().replace('_', '-')} " in done.stdout
        assert f"[{name}]" in done.stdout


@pytest.mark.parametrize("arguments", [["train", "--dry-run"], ["train", "--help"], ["train", "--seed", "soon"]])
def test_checking_a_configuration_loads_no_framework(arguments: list[str]) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['gptoss20b', *{arguments!r}]\n"
        "try:\n"
        "    runpy.run_module('gptoss20b', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print('status', end.code)\n"
        "print('loaded', sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=without_settings(dict(os.environ)),
        capture_output=True,
        text=True,
        check=True,
    )
    *_, status, loaded = done.stdout.splitlines()
    assert status == f"status {2 if 'soon' in arguments else 0}"
    assert "'gptoss20b'" in loaded
    for framework in ("torch", "megatron", "numpy", "transformer_engine"):
        assert f"'{framework}'" not in loaded


def test_info_takes_the_variant_from_the_environment_too() -> None:
    code = (
        "from unittest import mock; import gptoss20b.cli as cli\n"
        "with mock.patch.object(cli, '_silence_dependencies', side_effect=SystemExit(7)):\n"
        "    cli.app(['info'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**without_settings(dict(os.environ)), "MODEL_VARIANT": "openai"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr


# --- the launcher's variables


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_a_launcher_s_variable_that_is_no_number_is_one_clear_line(variable: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gptoss20b", "train", "--dgxngpu", "1", "--expert-parallel", "1"],
        cwd=ROOT,
        env={**os.environ, variable: "abc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"{variable}: got 'abc', expected a whole number" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("address", "speaks"), [(None, True), ("127.0.0.1", False)])
def test_only_the_first_rank_of_a_launcher_speaks(address: str | None, speaks: bool) -> None:
    environment = {**os.environ, "RANK": "1"} | ({"MASTER_ADDR": address} if address else {})
    done = subprocess.run(
        [sys.executable, "-m", "gptoss20b", "train", "--global-batch-size", "x"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert ("GLOBAL_BATCH_SIZE" in done.stderr) == speaks


def test_an_unknown_variant_brings_no_problems_of_another_model() -> None:
    found = refused(MODEL_VARIANT="tinny", DGXNGPU="2", GLOBAL_BATCH_SIZE="6")
    assert [problem.variables[0] for problem in found] == ["MODEL_VARIANT"]


def test_a_name_that_cannot_be_shown_is_shown_escaped() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gptoss20b", "train", "--dry-run", "--dgxsystem", "n\u0153ud"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "DGXSYSTEM = n\\u0153ud" in done.stdout


# --- ranks that were told different things


def test_what_ranks_were_told_differently_is_named_with_both_values() -> None:
    base = {"SUBMISSION_DIVISION": "open"}
    one = resolve(base | {"SEED": "1", "LEARNING_RATE": "1e-3"})
    other = resolve(base | {"SEED": "1", "LEARNING_RATE": "2e-3", "GRADIENT_CLIP": "2"})
    assert mismatched_settings([one, one, other, other]) == [
        "GRADIENT_CLIP: 1.0 on rank 0, 2.0 on rank 2",
        "LEARNING_RATE: 0.001 on rank 0, 0.002 on rank 2",
    ]
    assert mismatched_settings([one, one]) == []
    assert mismatched_settings([one]) == []


# Each node has its own of these. Whether its caches were cleared is gathered, and is no reason to end.
OF_A_NODE = {"DATADIR", "LOGDIR", "CPU_THREADS", "CACHE_CLEARED"}


def test_folders_threads_and_caches_may_differ_between_nodes(tmp_path: Path) -> None:
    base = {"SUBMISSION_DIVISION": "open"}
    own = {"DATADIR": str(tmp_path), "LOGDIR": str(tmp_path), "CPU_THREADS": "3", "CACHE_CLEARED": "1"}
    assert set(own) == OF_A_NODE
    other = resolve(base | own)
    assert mismatched_settings([resolve(base), other]) == []


@pytest.mark.parametrize("variable", sorted(set(settings()) - OF_A_NODE))
def test_every_other_setting_must_be_the_same(variable: str) -> None:
    config = resolve({"SUBMISSION_DIVISION": "open"})
    *path, leaf = settings()[variable].path
    parents = list(accumulate(path, getattr, initial=config))
    changed = parents.pop().model_copy(update={leaf: "something else"})
    for parent, name in zip(reversed(parents), reversed(path), strict=True):
        changed = parent.model_copy(update={name: changed})
    (found,) = mismatched_settings([config, changed])
    assert found.startswith(f"{variable}: ")
