"""Invalid configurations: what is rejected, and that the message names variable, value and fix."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gptoss20b.config import ConfigError, fixed_hyperparameter_overrides, mismatched_settings, resolve, settings
from gptoss20b.config.presets import PRESETS
from gptoss20b.config.tree import FixedHyperparameters
from tests.support.config_cases import OPEN, refused

pytestmark = pytest.mark.usefixtures("no_settings")

FIX = re.compile(r"\b(Unset|Use|Set|Choose|Correct or unset)\b[^.]*\.(?=$| )")


def first_variables(**options: str) -> list[str]:
    return [problem.variables[0] for problem in refused(**options)]


def test_all_problems_are_reported_at_once() -> None:
    expected = {
        "SEED": ("soon", ["got 'soon'"]),
        "LEARNING_RATE": ("-1", ["got '-1'", "greater than 0"]),
        "PRECISION": ("fp4", ["got 'fp4'", "'bf16'", "'fp32'", "'fp8'", "'mxfp8'"]),
        "GLOBAL_BATCH_SIZE": ("17", ["got 17", "multiple of 16"]),
        "WEIGHT_DECAY": ("0.2", ["got 0.2", "0.1"]),
        "EXPERT_PARALLEL": ("3", ["got 3", "1, 2, 4, 8"]),  # divides neither the experts nor the ranks
    }
    with pytest.raises(ConfigError) as caught:
        resolve({name: text for name, (text, _) in expected.items()})
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("7 problems")
    assert {line.split(":")[0] for line in lines} == {f"  {name}" for name in expected}
    for line in lines:
        name = line.split(":")[0].strip()
        assert all(part in line for part in expected[name][1]), line
        assert FIX.search(line), line


def test_an_invalid_value_causes_no_further_problems() -> None:
    # DGXNGPU=0 would divide nothing; only the value itself is reported.
    assert first_variables(DGXNGPU="0") == ["DGXNGPU"]
    # The default of 16 takes the invalid value's place, and 3 sequences on 8 ranks do not divide it.
    assert first_variables(GLOBAL_BATCH_SIZE="x", MICRO_BATCH_SIZE="3") == ["GLOBAL_BATCH_SIZE"]
    assert first_variables(MODEL_VARIANT="tinny", DGXNGPU="2", GLOBAL_BATCH_SIZE="6") == ["MODEL_VARIANT"]


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
        ("ATTENTION_KERNEL", "math"),
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
def test_an_invalid_value_is_named_with_its_variable_and_a_fix(name: str, text: str) -> None:
    (problem,) = refused(**{name: text})
    assert problem.variables == (name,)
    assert f"got '{text}'" in problem.message
    assert FIX.search(problem.message)


@pytest.mark.parametrize("variant", ["tinny", "Reference", "gpt_oss_20b"])
def test_an_unknown_variant_is_rejected_with_the_known_ones_and_the_other_problems(variant: str) -> None:
    problem, other = refused(MODEL_VARIANT=variant, SEED="soon")
    assert str(problem).startswith(f"MODEL_VARIANT: got '{variant}'")
    assert all(known in problem.message for known in ("reference", "openai", "openai_120b", "tiny"))
    assert other.variables == ("SEED",)


# --- rules of the closed division

RULES = [(setting.path[1], name) for name, setting in settings().items() if setting.path[0] == "fixed"]


def other_value(value: Any) -> str:
    """Return the text of another valid value. Half of every default is within bounds, and 0.01 where that is 0."""
    assert type(value) in (int, float), f"add the type {type(value)}"
    return str(value // 2 if isinstance(value, int) else value / 2 or 0.01)


def test_every_fixed_hyperparameter_is_covered() -> None:
    assert {field for field, _ in RULES} == set(FixedHyperparameters.model_fields)


@pytest.mark.parametrize(("field", "name"), RULES)
def test_only_the_open_division_overrides_a_rule(monkeypatch: pytest.MonkeyPatch, field: str, name: str) -> None:
    required = FixedHyperparameters.model_fields[field].default
    assert resolve({name: str(required)}) == resolve()
    text = other_value(required)
    config = resolve({name: text, **OPEN})
    assert str(getattr(config.fixed, field)) == text
    assert [(each[1], str(each[2])) for each in fixed_hyperparameter_overrides(config)] == [(name, text)]
    (problem,) = refused(**{name: text})
    assert problem.variables[0] == name
    for part in (f"got {text}", str(required), f"Unset {name}", "SUBMISSION_DIVISION=open"):
        assert part in problem.message
    monkeypatch.setenv(name, text)
    assert refused() == [problem]


@pytest.mark.parametrize("variant", sorted(set(PRESETS) - {"reference"}))
def test_only_the_open_division_trains_another_variant(variant: str) -> None:
    (problem,) = refused(MODEL_VARIANT=variant)
    assert problem.variables[0] == "MODEL_VARIANT"
    assert f"got '{variant}'" in problem.message
    assert "'reference'" in problem.message
    assert FIX.search(problem.message)
    assert resolve({"MODEL_VARIANT": variant, **OPEN}).model.variant == variant


def test_a_rule_overridden_on_top_of_another_variant_is_reported_too() -> None:
    assert set(first_variables(MODEL_VARIANT="tiny", TARGET_LOSS="9")) == {"MODEL_VARIANT", "TARGET_LOSS"}


@pytest.mark.parametrize(("name", "text"), [("VOCAB_SIZE", "201088"), ("EOD_TOKEN", "0"), ("SKIP_SAMPLES", "16")])
def test_only_the_open_division_changes_vocabulary_loss_mask_and_data(name: str, text: str) -> None:
    (problem,) = refused(**{name: text})
    assert str(problem).startswith(f"{name}: got {text}, but")
    assert settings()[name].value_in(resolve({name: text, **OPEN})) == int(text)
    assert resolve({"VOCAB_SIZE": "128256"}) == resolve()


@pytest.mark.parametrize("division", ["closed", "Closed", "CLOSED"])
def test_the_division_is_read_in_any_case(division: str) -> None:
    assert first_variables(SUBMISSION_DIVISION=division, TARGET_LOSS="9") == ["TARGET_LOSS"]


# --- layouts


@pytest.mark.parametrize(
    ("options", "variable", "parts"),
    [
        (
            {"TENSOR_PARALLEL": "3", "EXPERT_PARALLEL": "1"},
            "TENSOR_PARALLEL",
            ["3 x 1 x 1 = 3", "8 ranks (DGXNNODES 1 x DGXNGPU 8)"],
        ),
        (
            {"PIPELINE_PARALLEL": "2", "CONTEXT_PARALLEL": "8", "EXPERT_PARALLEL": "1"},
            "TENSOR_PARALLEL",
            ["1 x 2 x 8 = 16", "8 ranks"],
        ),
        (
            {"EXPERT_PARALLEL": "3", "DGXNGPU": "6", "GLOBAL_BATCH_SIZE": "12"},
            "EXPERT_PARALLEL",
            ["got 3", "32 experts", "1, 2, 4, 8, 16, 32."],
        ),
        ({"EXPERT_PARALLEL": "8", "DGXNGPU": "4"}, "EXPERT_PARALLEL", ["got 8", "world of 4", "1, 2, 4,", "DGXNGPU"]),
        ({"EXPERT_PARALLEL": "8", "PIPELINE_PARALLEL": "2"}, "EXPERT_PARALLEL", ["got 8", "world of 4", "1, 2, 4,"]),
        (
            {"EXPERT_PARALLEL": "2", "TENSOR_PARALLEL": "2"},
            "TENSOR_PARALLEL",
            ["got 2 with EXPERT_PARALLEL=2", "Set TENSOR_PARALLEL=1 or"],
        ),
        (
            {"TENSOR_PARALLEL": "16", "EXPERT_PARALLEL": "1", "DGXNNODES": "2"},
            "TENSOR_PARALLEL",
            ["got 16", "8 key-value groups", "1, 2, 4, 8."],
        ),
        (
            {"PIPELINE_PARALLEL": "5", "EXPERT_PARALLEL": "1", "DGXNGPU": "5"},
            "PIPELINE_PARALLEL",
            ["got 5", "24 layers", "1, 2, 3, 4, 6, 8, 12, 24."],
        ),
        (
            {"CONTEXT_PARALLEL": "2", "BACKEND": "torch"},
            "CONTEXT_PARALLEL",
            ["got 2", "CONTEXT_PARALLEL=1", "BACKEND=transformer_engine"],
        ),
        (
            {"PRECISION": "fp8", "BACKEND": "torch"},
            "PRECISION",
            ["got fp8", "PRECISION=bf16", "BACKEND=transformer_engine"],
        ),
        (
            {"PRECISION": "mxfp8", "BACKEND": "torch"},
            "PRECISION",
            ["got mxfp8", "PRECISION=bf16", "BACKEND=transformer_engine"],
        ),
        (
            {"COMPILE": "layers", "BACKEND": "transformer_engine"},
            "COMPILE",
            ["got layers", "COMPILE=kernels", "BACKEND=torch"],
        ),
        (
            {"ATTENTION_KERNEL": "flash", "BACKEND": "transformer_engine"},
            "ATTENTION_KERNEL",
            ["got flash", "Transformer Engine", "BACKEND=torch"],
        ),
        (
            {"ATTENTION_KERNEL": "cudnn", "BACKEND": "torch", "MODEL_VARIANT": "openai", **OPEN},
            "ATTENTION_KERNEL",
            ["got cudnn", "'openai' has attention sinks", "auto or flex"],
        ),
        (
            {"CONTEXT_PARALLEL": "2", "SEQUENCE_LENGTH": "8190", **OPEN},
            "CONTEXT_PARALLEL",
            ["got 2", "sequences of 8190 tokens", "4 equal parts"],
        ),
        (
            {"GLOBAL_BATCH_SIZE": "24"},
            "GLOBAL_BATCH_SIZE",
            ["got 24", "micro batch 2 x data parallel 8 = 16", "multiple of 16", "MICRO_BATCH_SIZE"],
        ),
        # Less than one micro batch on every rank.
        ({"GLOBAL_BATCH_SIZE": "8"}, "GLOBAL_BATCH_SIZE", ["got 8", "multiple of 16"]),
        (
            {"AUX_LOSS_COEFF": "0.01", "EXPERT_BIAS_RATE": "1e-3", **OPEN},
            "AUX_LOSS_COEFF",
            ["got 0.01 with EXPERT_BIAS_RATE=0.001"],
        ),
        (
            {"AUX_LOSS_COEFF": "0.01", "TENSOR_PARALLEL": "2", "EXPERT_PARALLEL": "1", **OPEN},
            "AUX_LOSS_COEFF",
            ["got 0.01", "parallel 2 x 1", "factor of 2"],
        ),
        (
            {"AUX_LOSS_COEFF": "0.01", "CONTEXT_PARALLEL": "4", "EXPERT_PARALLEL": "1", **OPEN},
            "AUX_LOSS_COEFF",
            ["got 0.01", "parallel 1 x 4", "factor of 4"],
        ),
        ({"WARMUP_STEPS": "1200000"}, "WARMUP_STEPS", ["got 1200000", "fewer than 1200000."]),
        ({"SKIP_SAMPLES": "20", **OPEN}, "SKIP_SAMPLES", ["got 20", "batch size 16. Use 32."]),
        ({"EOD_TOKEN": "128256", **OPEN}, "EOD_TOKEN", ["got 128256", "from 0 to 128255."]),
    ],
)
def test_a_configuration_that_cannot_run_is_rejected(options: dict[str, str], variable: str, parts: list[str]) -> None:
    (problem,) = refused(**options)
    assert problem.variables[0] == variable
    assert all(part in problem.message for part in parts), problem.message
    assert FIX.search(problem.message), problem.message
    assert all(name in settings() for name in problem.variables)


@pytest.mark.parametrize("division", ["closed", "open"])
def test_performance_settings_are_free_in_both_divisions(division: str) -> None:
    options = {"SUBMISSION_DIVISION": division, "RECOMPUTE": "layers"}
    execution = resolve(options | {"COMPILE": "layers", "BACKEND": "torch"}).execution
    assert (execution.recompute, execution.compile_mode, execution.bf16_weights) == ("layers", "layers", True)
    # BACKEND=auto is checked later, on the machine.
    for precision in ("fp8", "MXFP8"):
        execution = resolve(options | {"PRECISION": precision}).execution
        assert (execution.precision, execution.bf16_weights) == (precision.lower(), True)
    assert not resolve(options | {"PRECISION": "fp32"}).execution.bf16_weights


def test_tensor_parallel_must_divide_the_vocabulary() -> None:
    layout = {"TENSOR_PARALLEL": "2", "EXPERT_PARALLEL": "1", **OPEN}
    resolve(layout)
    assert "TENSOR_PARALLEL" in first_variables(VOCAB_SIZE="128257", **layout)


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
    """Apply the rules for the reference model (32 experts, 8 key-value groups, 24 layers), written a second time."""
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
        and layout["DGXNGPU"] <= 1024
    )


@pytest.mark.slow
@hypothesis_settings(max_examples=300, deadline=None)
@given(layout=layouts())
def test_a_layout_is_accepted_exactly_when_it_can_run(layout: dict[str, int]) -> None:
    options = {name: str(value) for name, value in layout.items()}
    if not can_run(layout):
        assert refused(**options)
        return
    config = resolve(options)
    parallel, micro_batch = config.parallel, config.execution.micro_batch_size
    assert config.accumulation_steps >= 1
    assert config.accumulation_steps * micro_batch * parallel.data == config.free.global_batch_size
    assert parallel.world_size == layout["DGXNNODES"] * layout["DGXNGPU"]
    assert parallel.data * parallel.tensor * parallel.pipeline * parallel.context == parallel.world_size
    assert parallel.expert_data * parallel.expert * parallel.pipeline == parallel.world_size


# --- ranks with different settings

# Whether the caches of each node were cleared is gathered for the log.
PER_NODE = {
    "DATADIR": "/data2", "LOGDIR": "/log2", "MLLOG_STDOUT": "1", "CPU_THREADS": "3", "NUMA_BINDING": "none",
    "CACHE_CLEARED": "1",
    "TELEMETRY": "1", "TELEMETRY_INTERVAL": "5",
}  # fmt: skip


def test_settings_that_differ_between_ranks_are_named_with_both_values() -> None:
    one = resolve(OPEN | {"SEED": "1", "LEARNING_RATE": "1e-3"})
    other = resolve(OPEN | {"SEED": "1", "LEARNING_RATE": "2e-3", "GRADIENT_CLIP": "2"})
    assert mismatched_settings([one, one, other, other]) == [
        "GRADIENT_CLIP: 1.0 on rank 0, 2.0 on rank 2",
        "LEARNING_RATE: 0.001 on rank 0, 0.002 on rank 2",
    ]
    assert mismatched_settings([one, one]) == mismatched_settings([one]) == []


def test_local_settings_may_differ_between_nodes() -> None:
    assert mismatched_settings([resolve(OPEN), resolve(OPEN | PER_NODE)]) == []


@pytest.mark.parametrize("variable", sorted(set(settings()) - set(PER_NODE)))
def test_every_other_setting_must_be_the_same(variable: str) -> None:
    config = resolve(OPEN)
    *path, leaf = settings()[variable].path
    parents = list(accumulate(path, getattr, initial=config))
    changed = parents.pop().model_copy(update={leaf: "something else"})
    for parent, name in zip(reversed(parents), reversed(path), strict=True):
        changed = parent.model_copy(update={name: changed})
    (line,) = mismatched_settings([config, changed])
    assert line.startswith(f"{variable}: ")
