"""Test the trace of every shipped GPU configuration, and of every setting that changes what a step does."""

from __future__ import annotations

import pytest

from gptoss20b.config import Config, resolve, settings
from gptoss20b.proof.command import run
from gptoss20b.proof.guard import ProofError
from gptoss20b.proof.result import Trace
from gptoss20b.tools.estimate.traffic import all_to_alls_per_layer, recomputes_experts
from tests.support.configs import CONFIGS, load_config
from tests.support.traces import Case, needs_compiler, trace_cases

pytestmark = [pytest.mark.slow, pytest.mark.proof]

SHIPPED = [name for name in CONFIGS if "CPU" not in name]
VARIANTS = ("reference", "openai")
OPENAI = {"MODEL_VARIANT": "openai", "SUBMISSION_DIVISION": "open"}
EP8 = {
    **{"SUBMISSION_DIVISION": "open", "BACKEND": "torch", "PRECISION": "bf16", "DGXNGPU": "8", "EXPERT_PARALLEL": "8"},
    **{"GLOBAL_BATCH_SIZE": "8", "MICRO_BATCH_SIZE": "1"},
}
# Changes of EP8, for two layers, one with a window and one without.
CHANGES = {
    "EP 1": {"EXPERT_PARALLEL": "1"},
    "EP 4": {"EXPERT_PARALLEL": "4"},
    "micro batch 2": {"MICRO_BATCH_SIZE": "2", "GLOBAL_BATCH_SIZE": "16"},
    "micro batch 3": {"MICRO_BATCH_SIZE": "3", "GLOBAL_BATCH_SIZE": "24"},
    "flex": {"ATTENTION_KERNEL": "flex"},
    "load-balancing loss": {"AUX_LOSS_COEFF": "0.01"},
    "expert biases": {"EXPERT_BIAS_RATE": "0.001"},
    "openai EP 1": {**OPENAI, "EXPERT_PARALLEL": "1"},
    "openai_120b": {"MODEL_VARIANT": "openai_120b"},
    **{
        f"{variant} RECOMPUTE={recompute} COMPILE={compile_mode}": {
            "MODEL_VARIANT": variant, "RECOMPUTE": recompute, "COMPILE": compile_mode
        }
        for variant in VARIANTS
        for recompute in ("none", "moe_act", "moe", "layers")
        for compile_mode in ("kernels", "layers")
        if not (compile_mode == "layers" and recompute in ("moe_act", "moe"))
    },
}  # fmt: skip
STAGES = {"first": 0, "last": 7}


def cases() -> dict[str, Case]:
    """Return all configurations by name."""
    # The other variant's layers are all alike: four tell as much as 24.
    shipped = {
        f"{name} {variant}": Case(variables | changes | {"BACKEND": "torch"}, layers=layers)
        for name in SHIPPED
        for variant, changes, layers in (("reference", {}, None), ("openai", OPENAI, 4))
        if (variables := {key: value for key, value in load_config(name).items() if key in settings()})
    }
    stages = {
        f"{name} of 2 stages": Case(EP8 | {"EXPERT_PARALLEL": "4", "PIPELINE_PARALLEL": "2"}, layers=4, rank=rank)
        for name, rank in STAGES.items()
    }
    return shipped | {name: Case(EP8 | change, layers=2) for name, change in CHANGES.items()} | stages


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace | str]:
    return trace_cases(cases())


def expected_waits(config: Config, layers: int) -> int:
    """Return the waits of the host: for the sizes of the all-to-all, once in each forward pass of a layer."""
    passes = 2 if recomputes_experts(config) else 1
    return config.accumulation_steps * layers * passes if config.parallel.expert > 1 else 0


def expected_collectives(config: Config, layers: int, buckets: int) -> dict[str, int]:
    """Return the collectives of a step by kind."""
    micro_batches = config.accumulation_steps
    expected = {
        "reduce_scatter_base": buckets,
        # Without overlap, each of Megatron's two optimizers (experts and others) gathers all weights.
        "allgather_base": buckets * (2 if config.execution.compile_mode == "layers" else 1),
        "broadcast": 1,  # of the number of counted tokens, by the last pipeline stage
        # That number's sum, and the norms of both optimizers' gradients; of expert biases, the experts' rows.
        "allreduce": 3 + (config.fixed.expert_bias_rate > 0),
    }
    if config.parallel.expert > 1:
        expected["alltoall_base"] = micro_batches * layers * all_to_alls_per_layer(config)
    if config.parallel.pipeline > 1:
        expected |= {"send": micro_batches, "recv": micro_batches}
    return expected


@needs_compiler
@pytest.mark.parametrize("name", cases())
def test_a_step_does_what_its_configuration_says(name: str, traces: dict[str, Trace | str]) -> None:
    """Every operator got tensors of the right device, type and layout, or the trace would have ended."""
    trace, case = traces[name], cases()[name]
    assert isinstance(trace, Trace), trace
    config = resolve(case.settings)
    layers = (case.layers or config.model.num_layers) // config.parallel.pipeline
    assert sum(trace.host_waits.values()) == expected_waits(config, layers), trace.host_waits
    collectives = {kind: found.count for kind, found in trace.collectives.items()}
    assert collectives == expected_collectives(config, layers, trace.buckets)
    assert trace.leaked_bytes == 0
    assert trace.graph_breaks == []
    # A function is compiled for training and evaluation, for windows and without; torch gives up at 8 versions.
    recomputed_layers = config.execution.compile_mode == "layers" and config.execution.recompute == "layers"
    assert max(trace.compiled_versions.values()) <= (6 if recomputed_layers else 4), trace.compiled_versions


def test_parallelism_that_the_back_end_lacks_is_refused() -> None:
    for setting in ("CONTEXT_PARALLEL", "TENSOR_PARALLEL"):
        with pytest.raises(ProofError, match=setting):
            run(resolve(EP8 | {"BACKEND": "auto", "EXPERT_PARALLEL": "1", setting: "2"}), 1.0, "H200")


@needs_compiler
def test_each_vendor_s_gpu_runs_its_own_operators(traces: dict[str, Trace | str]) -> None:
    def operators(system: str) -> set[str]:
        trace = traces[f"config_{system}_1x8.sh reference"]
        assert isinstance(trace, Trace)
        return {each.operator for each in trace.work}

    # Only CUDA adds bf16 products to an fp32 sum.
    assert operators("B200") - operators("MI355X") == {"addmm.dtype_out"}
