"""The scaling model: bytes against arithmetic done another way, properties, errors, the command."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.published_steps import COUNTS
from compliance.rcp import full_points
from gptoss20b.cli import app
from gptoss20b.config import Config, resolve
from gptoss20b.config.tree import Execution, FreeHyperparameters, Parallel
from gptoss20b.hardware import SYSTEMS, System
from gptoss20b.memory import peak_memory
from gptoss20b.model.size import flops_per_token, state_bytes_per_gpu
from gptoss20b.tools.estimate.assumptions import Assumptions, EstimateError
from gptoss20b.tools.estimate.efficiency import (
    DEFAULT_MFU,
    assumed_efficiency,
    efficiency_from_mfu,
    efficiency_from_s1,
)
from gptoss20b.tools.estimate.scaling import CONVERGENCE, Estimate, ScalingModel, make_estimate
from gptoss20b.tools.estimate.systems import OVERRIDE_OPTIONS, find_system
from gptoss20b.tools.estimate.traffic import all_to_all_bytes, replica_groups, ring_attention_bytes

H200 = SYSTEMS["H200"]
DEFAULTS = Assumptions()


def config_of(**settings: object) -> Config:
    return resolve({name: str(value) for name, value in settings.items()})


def model_of(config: Config, system: System = H200, **changes: float) -> ScalingModel:
    return ScalingModel(config, COUNTS, system, replace(DEFAULTS, **changes))


def estimate(config: Config, system: System = H200, efficiency: float = 0.4, **changes: float) -> Estimate:
    return make_estimate(model_of(config, system, **changes), efficiency)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the known parameter counts: building the model on the meta device takes seconds."""
    monkeypatch.setattr("gptoss20b.tools.estimate.command.count_parameters", lambda config: dict(COUNTS))


REFERENCE = config_of()
few = hypothesis_settings(max_examples=30)  # the space is small


def laid_out(nodes: int, expert: int, micro_batch: int, gbs: int) -> Config:
    """Return the reference on 8-GPU nodes without reading the environment: quick enough for many examples."""
    return REFERENCE.model_copy(
        update={
            "parallel": Parallel(nodes=nodes, gpus_per_node=8, expert=expert),
            "execution": Execution(micro_batch_size=micro_batch),
            "free": FreeHyperparameters(global_batch_size=gbs),
        }
    )


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Draw nodes, expert parallel, micro batch and batch of a valid layout of 8-GPU nodes."""
    nodes, micro_batch = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 2, 4]))
    passes = draw(st.sampled_from([1, 2, 3]))
    return nodes, draw(st.sampled_from([1, 2, 4, 8])), micro_batch, 8 * nodes * micro_batch * passes


systems = st.sampled_from(list(SYSTEMS.values()))


# --- bytes


@few
@given(layouts())
def test_bytes_scale_with_the_batch_and_the_layout(layout: tuple[int, int, int, int]) -> None:
    config = laid_out(*layout)
    nodes, expert, micro_batch, gbs = layout
    twice = laid_out(nodes, expert, 2 * micro_batch, 2 * gbs)
    assert all_to_all_bytes(twice) == 2 * all_to_all_bytes(config)
    assert (all_to_all_bytes(config) == 0) == (expert == 1)
    found = estimate(config)
    assert found.bytes_per_step["all_to_all"] == config.accumulation_steps * all_to_all_bytes(config)
    assert (found.step.all_to_all == 0) == (expert == 1)
    more = estimate(laid_out(nodes, expert, micro_batch, 2 * gbs)).step
    for part in ("matrix_products", "gradient_traffic", "all_to_all"):
        assert getattr(more, part) == pytest.approx(2 * getattr(found.step, part))
    assert more.optimizer == found.step.optimizer
    # A rank sends all gradients but those whose optimizer state it owns, whatever the accumulation.
    world = 8 * nodes
    sent = COUNTS["experts"] / expert * (1 - expert / world) + (COUNTS["embedding"] + COUNTS["other"]) * (1 - 1 / world)
    assert found.bytes_per_step["reduce_scatter"] == pytest.approx(4 * sent)
    assert found.bytes_per_step["all_gather"] == pytest.approx(2 * sent)


@pytest.mark.parametrize(
    ("level", "passes", "rings"), [("none", 2, 3), ("moe_act", 2, 3), ("moe", 3, 3), ("layers", 3, 4)]
)
def test_recomputation_sends_again(level: str, passes: int, rings: int) -> None:
    base = {"BACKEND": "auto", "EXPERT_PARALLEL": 4, "CONTEXT_PARALLEL": 2, "RECOMPUTE": level}
    config = config_of(**base)
    half = 2 * 8192 // 2
    assert all_to_all_bytes(config) == 24 * passes * half * 4 * (2 * 2880 * 2 + 16) * 3 / 4
    assert ring_attention_bytes(config) == 24 * rings * half * 2 * 8 * 64 * 2


def test_recomputed_work_takes_time_and_is_not_counted_in_the_mfu() -> None:
    steps = {
        level: estimate(config_of(RECOMPUTE=level, EXPERT_PARALLEL=1)) for level in ("none", "moe_act", "moe", "layers")
    }
    products = {level: found.step.matrix_products for level, found in steps.items()}
    of_model = 16 / 8 * 8192 / (990e12 * 0.4)
    assert products["none"] == products["moe_act"] == pytest.approx(of_model * flops_per_token(config_of()))
    assert products["moe"] - products["none"] == pytest.approx(of_model * 2 * 24 * 4 * 3 * 2880 * 2880)
    logits = 2 * 2880 * 128_256
    assert products["layers"] - products["none"] == pytest.approx(
        of_model * (flops_per_token(config_of()) / 3 - logits)
    )
    for found in steps.values():
        of_step = 16 * 8192 / 8 * flops_per_token(config_of()) / found.step.seconds
        assert found.mfu == pytest.approx(of_step / 990e12)
    assert steps["layers"].evaluation_seconds == steps["none"].evaluation_seconds


# --- times


@few
@given(layouts(), systems, st.floats(0.05, 1))
def test_the_peak_bounds_the_mfu(layout: tuple[int, int, int, int], system: System, efficiency: float) -> None:
    found = estimate(laid_out(*layout), system, efficiency)
    assert 0 < found.mfu < efficiency
    assert found.step.seconds == pytest.approx(sum(getattr(found.step, field.name) for field in fields(found.step)))
    assert all(getattr(found.step, field.name) >= 0 for field in fields(found.step))
    tokens = layout[3] * 8192
    assert found.tokens_per_second * 8 * layout[0] * found.step.seconds == pytest.approx(tokens)


@few
@given(layouts(), systems, st.floats(0.1, 0.7))
def test_more_nodes_at_one_batch_size_are_never_slower(
    layout: tuple[int, int, int, int], system: System, efficiency: float
) -> None:
    """Up to the limit: a micro batch on each GPU."""
    nodes, expert, micro_batch, gbs = layout
    fewer, larger = laid_out(nodes, expert, micro_batch, 2 * gbs), laid_out(2 * nodes, expert, micro_batch, 2 * gbs)
    assert estimate(larger, system, efficiency).step.seconds < estimate(fewer, system, efficiency).step.seconds


@few
@given(layouts(), st.sampled_from(["peak_tflops", "memory_tbs", "link_gbs", "network_gbs"]))
def test_a_better_machine_is_never_slower(layout: tuple[int, int, int, int], figure: str) -> None:
    better = replace(H200, **{figure: 2 * getattr(H200, figure)})
    config = laid_out(*layout)
    assert estimate(config, better).step.seconds <= estimate(config).step.seconds


def test_traffic_outside_a_domain_uses_the_network() -> None:
    """EP 16 on 8-GPU nodes: 8 of 15 peers are on the other; the same GPUs in one domain are faster."""
    config = config_of(DGXNNODES=2, EXPERT_PARALLEL=16, MICRO_BATCH_SIZE=1)
    sent = all_to_all_bytes(config)
    expected = sent * 8 / 15 / (50e9 * 0.8) + 120 * 25e-6
    assert estimate(config, imbalance=1).step.all_to_all == pytest.approx(expected)
    joined = estimate(config, replace(H200, domain=16), imbalance=1)
    assert joined.step.all_to_all == pytest.approx(sent / (450e9 * 0.8) + 120 * 25e-6)


def test_exposed_gradient_reduction() -> None:
    """One node: NVLink and a tenth is left; a slow network: what the backward pass is too short for."""
    experts, rest = replica_groups(config_of(EXPERT_PARALLEL=1), COUNTS)
    seconds = (experts.sent + rest.sent) * 4 / (450e9 * 0.8)
    assert estimate(config_of(EXPERT_PARALLEL=1)).step.reduce_scatter == pytest.approx(seconds / 10)
    slow = replace(H200, network_gbs=1)
    config = config_of(DGXNNODES=2, EXPERT_PARALLEL=1, MICRO_BATCH_SIZE=1)
    found = estimate(config, slow)
    both = sum(group.sent for group in replica_groups(config, COUNTS)) * 4 / (8e9 * 0.8)
    assert found.step.reduce_scatter == pytest.approx(both - found.step.matrix_products * 2 / 3)


def test_the_optimizer_is_memory_traffic() -> None:
    config = config_of(EXPERT_PARALLEL=1)
    everything = sum(COUNTS.values())
    # Master weight and moments read and written, gradient read twice and zeroed, weight written.
    moved = everything / 8 * (24 + 2 * 4 + 2) + everything * 4
    assert estimate(config).step.optimizer == pytest.approx(moved / (4.8e12 * 0.8))


def test_an_evaluation_is_whole_micro_batches_of_forward_passes() -> None:
    found = estimate(config_of(EXPERT_PARALLEL=1))
    assert found.evaluation_seconds == pytest.approx(64 * found.step.matrix_products / 3)
    odd = estimate(config_of(EXPERT_PARALLEL=1, MICRO_BATCH_SIZE=3, GLOBAL_BATCH_SIZE=24))
    assert odd.evaluation_seconds == pytest.approx(43 * odd.step.matrix_products / 3)  # 1,024 / 24 = 42.7
    split = estimate(config_of())
    assert split.evaluation_seconds == pytest.approx(64 * (split.step.matrix_products / 3 + split.step.all_to_all / 2))


def test_a_run_is_training_and_evaluations() -> None:
    found = estimate(config_of(DGXNNODES=1, GLOBAL_BATCH_SIZE=40, MICRO_BATCH_SIZE=1))
    samples = 234_700.8 + (301_670.4 - 234_700.8) * 8 / 32
    assert found.samples == pytest.approx(samples)
    expected = samples / 40 * found.step.seconds + samples / 12_320 * found.evaluation_seconds
    assert found.seconds_to_target == pytest.approx(expected)


def test_samples_to_the_target_are_the_published_ones() -> None:
    assert {point.gbs: statistics.mean(point.samples) for point in full_points("6.1.0")} == CONVERGENCE
    assert estimate(config_of(GLOBAL_BATCH_SIZE=8, MICRO_BATCH_SIZE=1)).samples == CONVERGENCE[16]
    above = estimate(config_of(GLOBAL_BATCH_SIZE=80, MICRO_BATCH_SIZE=1))
    other = estimate(config_of(SUBMISSION_DIVISION="open", TARGET_LOSS=3.4))
    assert above.samples is above.seconds_to_target is other.samples is other.seconds_to_target is None


def test_memory_is_the_memory_model_s() -> None:
    for layout in ({}, {"EXPERT_PARALLEL": 1}, {"DGXNNODES": 2, "MICRO_BATCH_SIZE": 1}):
        config = config_of(**layout)
        found = estimate(config)
        assert found.memory == peak_memory(config, state_bytes_per_gpu(config, dict(COUNTS)))


# --- efficiency


def measurement(folder: Path, **changes: Any) -> Path:
    document = {
        "scenario": "S1",
        "system": "NVIDIA H200",
        "backend": "torch",
        "micro_batch_size": 2,
        "sequence_length": 8192,
        "step_without_optimizer_seconds": {"median": 0.9, "p10": 0.89, "p90": 0.93},
    }
    path = folder / "s1.json"
    path.write_text(json.dumps(document | changes))
    return path


def zeroing(system: System) -> float:
    """Return the seconds of zeroing the fp32 gradients of an EP-8 rank."""
    held = COUNTS["experts"] / 8 + COUNTS["embedding"] + COUNTS["other"]
    return held * 4 / (system.memory_tbs * 1e12 * 0.8)


def test_s1_is_reproduced_and_never_a_whole_step(tmp_path: Path) -> None:
    """Without imbalance, the EP-8 layout's work takes S1's time, with gradients zeroed once.

    The step adds communication and optimizer.
    """
    config = config_of()
    found = efficiency_from_s1(measurement(tmp_path), model_of(config, imbalance=1))
    step = estimate(config, H200, found.value, imbalance=1).step
    assert step.matrix_products + step.gradient_traffic + zeroing(H200) == pytest.approx(0.9)
    assert step.seconds > 0.9 + all_to_all_bytes(config) / 450e9
    # By hand: of what a rank owns, 34 bytes a parameter; of what it holds, the zeroing that was measured already.
    owned = COUNTS["experts"] / 8 + (COUNTS["embedding"] + COUNTS["other"]) / 8
    assert step.optimizer - zeroing(H200) == pytest.approx(owned * 34 / (4.8e12 * 0.8))
    assert "s1.json" in found.source and "0.9000 s" in found.source and found.given
    # Two micro batches, and gradients zeroed once for both.
    twice = {"median": 1.8 - zeroing(H200)}
    two = measurement(tmp_path, sequences_per_step=4, step_without_optimizer_seconds=twice)
    assert efficiency_from_s1(two, model_of(config, imbalance=1)).value == pytest.approx(found.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scenario": "S3"}, "scenario S3, expected S1"),
        ({"system": "NVIDIA H200E"}, "'NVIDIA H200E'"),
        ({"system": "NVIDIA H200 NVL"}, "'NVIDIA H200 NVL'"),
        ({"sequence_length": 4096}, "SEQUENCE_LENGTH 4096, expected 8192"),
        ({"recompute": "moe"}, "RECOMPUTE moe, expected none"),
        ({"precision": "mxfp8", "variant": "openai"}, "MODEL_VARIANT openai, expected reference; PRECISION mxfp8"),
        ({"step_without_optimizer_seconds": {"median": 0.38}}, "0.960"),
        ({"step_without_optimizer_seconds": None}, "not a measurement"),
        ({"micro_batch_size": 0}, "not a measurement"),
    ],
)
def test_unusable_measurements(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(EstimateError, match=re.escape(named)):
        efficiency_from_s1(measurement(tmp_path, **changes), model_of(config_of()))


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    ("backend", "is_slow"), [("torch", False), ("transformer_engine", False), ("megatron_local", True)]
)
def test_the_back_end_is_named_with_a_warning_for_the_slow_one(tmp_path: Path, backend: str, is_slow: bool) -> None:
    path = measurement(tmp_path, backend=backend)
    assert f"{backend} back end" in efficiency_from_s1(path, model_of(config_of())).source
    _, tables, _ = run("estimate", "--system", "H200", "--s1-json", str(path))
    warning = json.loads(run("estimate", "--system", "H200", "--s1-json", str(path), "--json")[1])["warning"]
    assert ("WARNING: " in tables) == ("megatron_local" in (warning or "")) == (warning is not None) == is_slow


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(EstimateError, match=r"cannot read .*No such file"):
        efficiency_from_s1(tmp_path / "none.json", model_of(config_of()))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(EstimateError, match="not a measurement"):
        efficiency_from_s1(tmp_path / "bad.json", model_of(config_of()))


@few
@given(st.floats(0.05, 0.93), systems)
def test_an_mfu_of_s1_comes_back(mfu: float, system: System) -> None:
    config = REFERENCE
    found = efficiency_from_mfu(mfu, model_of(config, system, imbalance=1))
    step = estimate(config, system, found.value, imbalance=1).step
    seconds = step.matrix_products + step.gradient_traffic + zeroing(system)
    assert 2 * 8192 * flops_per_token(config) / (system.peak_tflops * 1e12 * seconds) == pytest.approx(mfu)
    assert mfu < found.value <= 1


@pytest.mark.parametrize("mfu", [0, -0.1, 1.01, math.nan, 0.99])
def test_impossible_mfus(mfu: float) -> None:
    with pytest.raises(EstimateError, match=r"--mfu"):
        efficiency_from_mfu(mfu, model_of(config_of()))


def test_without_a_measurement_the_efficiency_is_called_an_assumption() -> None:
    found = assumed_efficiency(model_of(config_of()))
    assert not found.given and "ASSUMED" in found.source and f"{DEFAULT_MFU:.0%}" in found.source
    assert found.value == efficiency_from_mfu(DEFAULT_MFU, model_of(config_of())).value


# --- systems and assumptions


def test_systems_by_name_and_with_overrides() -> None:
    assert find_system("h200", {}) == H200
    changed = find_system("H200", {"network_gbs": 100.0, "peak_tflops": None})
    assert changed == replace(H200, network_gbs=100, source=changed.source)
    assert changed.source.startswith(H200.source) and "--network-gbs" in changed.source
    figures = {"peak_tflops": 1000.0, "memory_gb": 96.0, "memory_tbs": 4.0, "link_gbs": 300.0, "network_gbs": 25.0}
    own = find_system("ours", {**figures, "domain": 4})
    assert (own.peak_tflops, own.domain, own.gpus_per_node) == (1000.0, 4, 4)


def test_an_unknown_system_names_the_known_and_the_options() -> None:
    with pytest.raises(EstimateError) as error:
        find_system("H300", {"domain": 8})
    named = set(re.findall(r"[\w-]+", str(error.value)))
    assert named >= {*SYSTEMS, *(option for field, option in OVERRIDE_OPTIONS.items() if field != "domain")}
    assert "--domain" not in str(error.value)
    with pytest.raises(EstimateError, match="--link-gbs: got 0"):
        find_system("H200", {"link_gbs": 0.0})


def test_assumptions_with_overrides() -> None:
    changed = DEFAULTS.with_overrides(["imbalance=1.25", "overlap=0"])
    assert changed == replace(DEFAULTS, imbalance=1.25, overlap=0)
    sources = {name: source for name, _, _, source in changed.rows()}
    unchanged = {name: source for name, _, _, source in DEFAULTS.rows()}
    assert {name for name in sources if sources[name] != unchanged[name]} == {"imbalance", "overlap"}


@pytest.mark.parametrize(
    "text",
    ["overlap=2", "overlap", "imbalance=x", "imbalance=0.5", "nothing=1", "latency_us=nan", "latency_us=inf"],
)
def test_impossible_assumptions(text: str) -> None:
    with pytest.raises(EstimateError, match="--assume"):
        DEFAULTS.with_overrides([text])


@pytest.mark.parametrize(
    "settings",
    [
        {"TENSOR_PARALLEL": 2, "EXPERT_PARALLEL": 1},
        {"PIPELINE_PARALLEL": 2, "EXPERT_PARALLEL": 4},
        {"PRECISION": "fp32"},
    ],
)
def test_unsupported_layouts(settings: dict[str, object]) -> None:
    with pytest.raises(EstimateError, match=next(iter(settings))):
        estimate(config_of(**settings))


# --- the command


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--expert-parallel", "3"],
        ["--expert-parallel", "16"],
        ["--global-batch-size", "17"],
        ["--dgxnnodes", "3"],
        ["--context-parallel", "2", "--backend", "torch"],
        ["--micro-batch-size", "0", "--tensor-parallel", "2"],
    ],
)
def test_an_invalid_layout_is_rejected_as_train_rejects_it(options: list[str]) -> None:
    code, out, error = run("estimate", "--system", "H200", *options)
    assert (code, out, error) == run("train", "--dry-run", *options)
    assert code == 2 and error.startswith("error: ")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--system", "H201"], "H100, H200"),
        (["--system", "H200", "--assume", "luck=1"], "--assume: got 'luck=1'"),
        (["--system", "H200", "--mfu", "0.4", "--s1-json", "x.json"], "--mfu, --s1-json: got both"),
        (["--system", "H200", "--pipeline-parallel", "2", "--expert-parallel", "4"], "PIPELINE_PARALLEL"),
    ],
)
def test_errors_of_the_command(options: list[str], named: str) -> None:
    code, out, error = run("estimate", *options)
    assert (code, out) == (2, "") and named in error


@pytest.fixture(scope="module")
def printed() -> tuple[dict[str, Any], str]:
    """Return JSON and tables of the reference layout on two nodes, parameters counted from the modules."""
    options = ["estimate", "--system", "H200", "--nodes", "2", "--global-batch-size", "32", "--assume", "imbalance=1.3"]
    found = [run(*options, "--json"), run(*options)]
    assert [(code, error) for code, _, error in found] == [(0, ""), (0, "")]
    return json.loads(found[0][1]), found[1][1]


def test_the_command_uses_the_counted_parameters(printed: tuple[dict[str, Any], str]) -> None:
    document, _ = printed
    config = config_of(DGXNNODES=2, GLOBAL_BATCH_SIZE=32)
    efficiency = assumed_efficiency(model_of(config, imbalance=1.3)).value
    expected = estimate(config, H200, efficiency, imbalance=1.3)
    assert document["step_seconds"] == pytest.approx(expected.step.seconds)
    assert document["minutes_to_target"] == pytest.approx((expected.seconds_to_target or 0) / 60)
    memory, room = expected.memory, document["memory"]["gpu_bytes"]
    assert document["memory"] == {
        "state_bytes": memory.state_bytes,
        "peak_reserved_bytes": memory.reserved_bytes(),
        "peak_reserved_bytes_unbalanced": memory.reserved_bytes(2.0),
        "unbalanced": 2.0,
        "survivable_imbalance": memory.survivable_imbalance(room),
        "gpu_bytes": 141 * 10**9,
        "fits": True,
        "fits_unbalanced": True,
    }
    assert document["layout"]["gpus"] == 16 and not document["efficiency_given"]


def test_every_assumption_is_printed_with_value_and_source(printed: tuple[dict[str, Any], str]) -> None:
    document, tables = printed
    rows = {row["name"]: row for row in document["assumptions"]}
    assert set(rows) >= {field.name for field in fields(Assumptions)} | set(OVERRIDE_OPTIONS) | {
        "efficiency",
        "samples_to_target",
    }
    for name, row in rows.items():
        assert row["value"] is not None and row["unit"] and row["source"], name
        assert name.replace("_", " ") in tables
    assert rows["imbalance"]["value"] == 1.3 and "ASSUMED" in rows["efficiency"]["source"]
    assert "ASSUMED" in tables and f"{document['error']['worst']:.0%}" in tables


@pytest.mark.usefixtures("counted")
def test_a_rack_s_nodes_have_four_gpus_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["estimate", "--system", "GB300", "--nodes", "2", "--global-batch-size", "32", "--json"]
    assert json.loads(run(*options)[1])["layout"]["gpus"] == 8
    assert json.loads(run(*options, "--dgxngpu", "8")[1])["layout"]["gpus"] == 16
    monkeypatch.setenv("DGXNGPU", "8")
    assert json.loads(run(*options)[1])["layout"]["gpus"] == 16


@pytest.mark.usefixtures("counted")
def test_what_does_not_fit_or_has_no_reference_is_marked() -> None:
    options = ["estimate", "--system", "H100", "--global-batch-size", "128"]
    _, tables, _ = run(*options)
    assert "DOES NOT FIT" in tables and "no reference point" in tables and "unknown" in tables
    document = json.loads(run(*options, "--json")[1])
    assert document["memory"]["fits"] is False and document["minutes_to_target"] is None
    assert json.loads(run(*options, "--memory-gb", "500", "--json")[1])["memory"]["fits"] is True
