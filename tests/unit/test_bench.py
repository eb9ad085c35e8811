"""`bench`: arithmetic, scenarios, order of steps, and time by part of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._C._autograd import DeviceType

from gptoss20b.config import ConfigError, resolve
from gptoss20b.model.size import flops_per_token
from gptoss20b.tools.bench.measure import Timing, measure
from gptoss20b.tools.bench.norms import norms_by_kind
from gptoss20b.tools.bench.parts import profile_step, range_name, seconds_by_part
from gptoss20b.tools.bench.result import BenchResult, Outcome, Spread, as_table, find_peak
from gptoss20b.tools.bench.routing import summarize_routing
from gptoss20b.tools.bench.scenarios import SCENARIOS, configure
from gptoss20b.tools.bench.timing import summarize_seconds, time_calls, time_steps
from gptoss20b.tools.bench.workload import micro_batches

CPU = torch.device("cpu")

# --- numbers


def test_median_and_percentiles() -> None:
    assert summarize_seconds([float(n) for n in range(11, 0, -1)]) == Spread(median=6.0, p10=2.0, p90=10.0, steps=11)
    assert summarize_seconds([2.0]) == Spread(median=2.0, p10=2.0, p90=2.0, steps=1)


def test_a_device_of_other_rates_has_no_peak_and_a_reason() -> None:
    peak, note = find_peak("NVIDIA H200 NVL")
    assert peak is None
    assert "'NVIDIA H200 NVL'" in note


def test_flops_of_the_scenarios() -> None:
    whole = flops_per_token(resolve({"MODEL_VARIANT": "reference"}))
    assert whole == pytest.approx(22.876e9, rel=1e-4)

    def of(name: Any, variant: Any = "reference") -> float:
        return flops_per_token(configure(name, variant, "torch", on_gpu=True))

    assert of("S2") == whole
    # Four experts instead of 32 make the router's matrix 28 x 2,880 smaller in each layer: three times two FLOPs each.
    assert whole - of("S1") == pytest.approx(6 * 24 * 28 * 2880)
    logits = 6 * 2880 * 128_256
    assert of("S3") == pytest.approx(logits + (whole - logits) * 4 / 24)
    assert of("S1", "openai") == pytest.approx(of("S1"), rel=1e-3)  # one key less in a window


def test_routing_balance() -> None:
    found = summarize_routing(torch.tensor([[1, 1, 2], [0, 6, 0]]))
    assert (found.max_over_mean, found.worst_layer) == (2.25, 3.0)


# --- scenarios


def test_scenarios_have_the_documented_shapes() -> None:
    models = {name: configure(name, "reference", "torch", on_gpu=True) for name in SCENARIOS}
    shapes = {
        name: (c.model.num_layers, c.model.num_experts, c.execution.micro_batch_size) for name, c in models.items()
    }
    assert shapes == {"S1": (24, 4, 2), "S2": (24, 32, 1), "S3": (4, 32, 2), "tiny": (2, 8, 2)}
    assert {name: each.has_optimizer for name, each in SCENARIOS.items()} == {
        "S1": True, "S2": False, "S3": True, "tiny": True,
    }  # fmt: skip
    for name in ("S1", "S2", "S3"):
        config = models[name]
        assert (config.fixed.sequence_length, config.model.vocab_size) == (8192, 128_256)
        assert (config.model.hidden_size, config.model.router_topk, config.execution.precision) == (2880, 4, "bf16")
        assert config.parallel.world_size == config.parallel.expert == 1
    assert configure("S1", "openai", "torch", on_gpu=True).model.vocab_size == 128_256
    assert configure("tiny", "openai", "torch", on_gpu=False).execution.precision == "fp32"
    assert models["tiny"].execution.precision == "bf16"


def test_settings_that_a_scenario_leaves_open_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAM_BETA2", "0.9")
    monkeypatch.setenv("EXPERT_PARALLEL", "8")
    monkeypatch.setenv("GLOBAL_BATCH_SIZE", "16")
    config = configure("S1", "reference", "torch", on_gpu=True)
    assert (config.fixed.adam_beta2, config.parallel.expert, config.free.global_batch_size) == (0.9, 1, 2)
    assert config.fixed.init_method_std == 0.02


def test_micro_batches_that_do_not_divide_the_sequences() -> None:
    with pytest.raises(ConfigError, match="GLOBAL_BATCH_SIZE"):
        configure("S1", "reference", "torch", on_gpu=True, micro_batch_size=2, sequences=3)


def test_tokens_do_not_depend_on_the_micro_batch_size() -> None:
    once, twice = (
        micro_batches(configure("tiny", "reference", "torch", False, micro, sequences=4), CPU) for micro in (4, 2)
    )
    assert (len(once), len(twice)) == (1, 2)
    for name in ("tokens", "labels", "loss_mask"):
        assert torch.equal(getattr(once[0], name), torch.cat([getattr(batch, name) for batch in twice]))
    batch = once[0]
    assert not torch.equal(batch.tokens[0], batch.tokens[1])
    assert torch.equal(batch.labels[:, :-1], batch.tokens[:, 1:])
    assert batch.loss_mask[:, -1].sum() == 0
    assert bool((batch.loss_mask[:, :-1] == 1).all())


def test_norms_are_by_kind_over_all_layers() -> None:
    gradients = {
        "model.layers.0.mlp.router.weight": torch.tensor([[3.0]]),
        "model.layers.1.mlp.router.weight": torch.tensor([[0.0, 4.0]]),
        "model.layers.1.mlp.router.bias": torch.tensor([100.0]),
        "model.layers.0.mlp.experts.gate_up_proj": torch.full((1, 2, 2), 1.0, dtype=torch.bfloat16),
        "model.layers.0.mlp.experts.gate_up_proj_bias": torch.tensor([100.0]),
        "lm_head.weight": torch.tensor([-2.0]),
    }
    assert norms_by_kind(gradients.items()) == {"router": 5.0, "expert up": 2.0, "head": 2.0}


# --- timing


class Clock:
    """A clock that advances by half a second whenever it is read."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        self.seconds += 0.5
        return self.seconds


@dataclass
class FakeWorkload:
    """A workload that does nothing and records its calls. A whole step takes one reading of the clock longer."""

    clock: Clock
    has_optimizer: bool = True
    gpt: Any = None
    optimizer_name: str | None = "torch AdamW"
    calls: list[str] = field(default_factory=list)

    def first_step(self) -> Outcome:
        self.calls.append("first_step")
        return Outcome(5.0, 0.5, {"router": 0.25})

    def forward_backward(self) -> None:
        self.calls.append("forward_backward")

    def full_step(self) -> None:
        self.calls.append("full_step")
        self.clock.perf_counter()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock by one on which every call takes half a second, and the peak by 0.001 TFLOP/s."""
    clock = Clock()
    monkeypatch.setattr("gptoss20b.tools.bench.timing.time", clock)
    monkeypatch.setattr("gptoss20b.tools.bench.timing._GEMM_SIZE_CPU", 8)
    monkeypatch.setattr("gptoss20b.tools.bench.measure.find_peak", lambda _: (1e-3, "for this test"))
    return clock


def measured(workload: FakeWorkload, timing: Timing, gate: Callable[[Outcome], None] | None = None) -> BenchResult:
    config = configure("tiny", "reference", "torch", on_gpu=False)
    return measure(workload, "tiny", "torch", config, CPU, timing, gate)


def test_a_workload_is_warmed_up_and_timed_with_and_without_the_optimizer(clock: Clock) -> None:
    workload = FakeWorkload(clock)
    found = measured(workload, Timing(warmup=2, steps=3))
    assert workload.calls == ["first_step", *["full_step"] * 5, *["forward_backward"] * 4]
    assert found.step_seconds == Spread(median=1.0, p10=1.0, p90=1.0, steps=3)
    assert found.step_without_optimizer_seconds == Spread(median=0.5, p10=0.5, p90=0.5, steps=3)
    # By hand: 2 x 192 tokens in a second.
    assert found.tokens_per_second == 384
    assert found.tflops_per_second == pytest.approx(384 * found.flops_per_token / 1e12)
    assert found.mfu == pytest.approx(found.tflops_per_second / 1e-3)
    assert found.mfu_without_optimizer == pytest.approx(2 * found.tflops_per_second / 1e-3)
    assert found.gemm_tflops == pytest.approx(2 * 8**3 / 0.5 / 1e12)
    assert found.fraction_of_gemm == pytest.approx(found.tflops_per_second / found.gemm_tflops)
    assert (found.loss, found.grad_norm, found.norms, found.parts_seconds) == (5.0, 0.5, {"router": 0.25}, None)
    assert found.optimizer == "torch AdamW"


@pytest.mark.parametrize(("has_optimizer", "optimizer"), [(False, True), (True, False)])
def test_without_an_optimizer_none_is_timed(clock: Clock, has_optimizer: bool, optimizer: bool) -> None:
    workload = FakeWorkload(clock, has_optimizer=has_optimizer)
    found = measured(workload, Timing(warmup=2, steps=3, optimizer=optimizer))
    assert workload.calls == ["first_step", *["forward_backward"] * 5]
    assert found.step_seconds is None
    assert found.optimizer is None
    assert found.mfu is None
    assert found.mfu_without_optimizer is not None
    assert found.tokens_per_second == 768


def test_the_gate_comes_before_the_timing(clock: Clock) -> None:
    workload = FakeWorkload(clock)

    def gate(outcome: Outcome) -> None:
        assert outcome == Outcome(5.0, 0.5, {"router": 0.25})
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        measured(workload, Timing(), gate)
    assert workload.calls == ["first_step"]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("steps", "limit", "timed"), [(20, 2.6, 5), (20, 0.1, 3), (2, 0.1, 2), (20, 100.0, 20)])
def test_a_limit_makes_the_timed_steps_fewer_but_never_none(steps: int, limit: float, timed: int) -> None:
    assert time_steps(lambda: None, 1, steps, CPU, limit=limit).steps == timed


def test_the_host_is_timed_call_by_call() -> None:
    calls: list[int] = []
    seconds = time_calls(lambda: calls.append(1), 3, CPU)
    assert len(calls) == len(seconds) == 3
    assert min(seconds) > 0


# --- JSON


def test_a_result_names_the_kernels(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(FakeWorkload(clock), Timing(warmup=1, steps=1)).kernels == {}
    monkeypatch.setattr("gptoss20b.tools.bench.measure.describe_kernels", lambda *_: {"attention": "flash"})
    found = measured(FakeWorkload(clock), Timing(warmup=1, steps=1))
    assert found.kernels == {"attention": "flash"}
    assert "flash" in [cell for column in as_table(found).columns for cell in column.cells]


def test_a_result_survives_json_and_has_the_public_keys(clock: Clock) -> None:
    found = measured(FakeWorkload(clock), Timing(warmup=1, steps=2))
    assert BenchResult.model_validate_json(found.model_dump_json()) == found
    names = {
        "scenario", "system", "backend", "variant", "micro_batch_size", "sequence_length", "step_seconds",
        "step_without_optimizer_seconds", "tokens_per_second", "tflops_per_second", "mfu", "mfu_without_optimizer",
        "gemm_tflops", "fraction_of_gemm", "peak_memory_bytes", "parts_seconds", "loss", "grad_norm", "versions",
        "git_commit", "date",
    }  # fmt: skip
    assert names <= BenchResult.model_fields.keys()
    with pytest.raises(ValueError, match="further"):
        BenchResult.model_validate_json(found.model_dump_json().replace("{", '{"further": 1,', 1))
    shown = [row for column in as_table(found).columns for row in column.cells]
    assert "384" in shown


# --- parts


def event(name: str, parent: Any = None, **more: Any) -> SimpleNamespace:
    """Return a profiler event of an operator, by default in thread 1 on the CPU."""
    filled = {
        "device_type": DeviceType.CPU, "cpu_parent": parent, "thread": 1, "fwd_thread": 0, "sequence_nr": -1,
        "kernels": [], "is_user_annotation": name.startswith((range_name(""), "Optimizer.step")),
        "self_cpu_time_total": 0.0,
    }  # fmt: skip
    return SimpleNamespace(name=name, **(filled | more))


def kernel(seconds: float, name: str = "kernel") -> tuple[SimpleNamespace, SimpleNamespace]:
    """Return a kernel as its operator lists it, and as the device's event."""
    span = SimpleNamespace(elapsed_us=lambda: seconds * 1e6)
    return (
        SimpleNamespace(name=name, duration=seconds * 1e6),
        event(name, device_type=DeviceType.CUDA, time_range=span),
    )


def test_kernels_belong_to_the_part_of_their_operator_or_its_forward_operator() -> None:
    (mm, on_mm), (pow_, on_pow), (back, on_back), (again, on_again) = (kernel(s) for s in (1.0, 2.0, 4.0, 8.0))
    _, alone = kernel(16.0)
    # The device lists named ranges too, and the profiler takes them for kernels of the range.
    (range_, on_range), (own, on_own) = (
        kernel(1000.0, range_name("experts")),
        kernel(2000.0, "Optimizer.step#AdamW"),
    )
    whole = event(range_name("other"))
    optimizer = event("Optimizer.step#AdamW", whole, kernels=[own])
    experts = event(range_name("experts"), whole, kernels=[range_])
    attention = event(range_name("attention"), whole)
    # A backward pass in a thread of its own, in which the experts' forward pass is computed again.
    node = event("autograd::engine::evaluate_function: Pow", thread=2, fwd_thread=1, sequence_nr=7)
    unknown = event("autograd::engine::evaluate_function: Accumulate", thread=2, fwd_thread=0, sequence_nr=-1)
    recomputed = event(range_name("experts"), node, thread=2)
    events = [
        whole, optimizer, experts, event("mm", experts, kernels=[mm], sequence_nr=7), attention,
        event("pow", attention, kernels=[pow_], sequence_nr=7), node, event("mul", node, thread=2, kernels=[back]),
        recomputed, event("mm", recomputed, thread=2, kernels=[again]), unknown,
        on_mm, on_pow, on_back, on_again, alone, on_range, on_own,
    ]  # fmt: skip
    found = seconds_by_part(events, on_gpu=True)
    assert found == {
        "attention": 6.0, "experts": 9.0, "router_dispatch": 0.0, "loss": 0.0, "optimizer": 0.0, "other": 16.0,
    }  # fmt: skip
    assert sum(found.values()) == 31.0


def test_on_the_cpu_only_what_is_inside_the_step_counts() -> None:
    whole = event(range_name("other"), self_cpu_time_total=1e6)
    inner = event(range_name("loss"), whole, self_cpu_time_total=2e6)
    events = [event("beside", self_cpu_time_total=9e6), whole, inner, event("exp", inner, self_cpu_time_total=3e6)]
    found = seconds_by_part(events, on_gpu=False)
    assert (found["other"], found["loss"], sum(found.values())) == (1.0, 5.0, 6.0)


class _Block(nn.Module):
    """Adds next to nothing to its input, at the cost of a product of ``size``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1e-9 * (self.weight @ self.weight).sum()


class _Mixture(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.experts = _Block(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(x)  # type: ignore[no-any-return]


class _Toy(nn.Module):
    """A model with the parts' names and a product of some size in each."""

    def __init__(self, attention: int, experts: int, loss: int) -> None:
        super().__init__()
        layer = nn.Module()
        layer.self_attention, layer.mlp = _Block(attention), _Mixture(experts)
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList([layer])
        self.output_layer = _Block(loss)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.decoder.layers:  # type: ignore[union-attr]
            x = layer.mlp(layer.self_attention(x))
        return self.output_layer(x).square().sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("part", ["attention", "experts", "loss"])
def test_forward_and_backward_count_as_the_same_part(part: str) -> None:
    toy = _Toy(**{name: 1000 if name == part else 4 for name in ("attention", "experts", "loss")})
    x = torch.ones(4)
    toy(x).backward()  # warm up
    parts, total = profile_step(lambda: toy(x).backward(), toy, CPU)
    # The backward pass is two thirds of the work: without it, a part has one third.
    assert getattr(parts, part) > 0.8 * total
    assert sum(seconds for _, seconds in parts) == pytest.approx(total)
    assert not toy._forward_hooks
    assert not toy.output_layer._forward_pre_hooks
