"""Measurement of one scenario on one back end: build, check, time, profile."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...config import Config
from ...model.backend import Backend, choose_backend
from ...model.kernels import describe_kernels
from ...model.size import flops_per_token
from ...process_groups import distributed_session, read_rank
from ...run_metadata import git_commit, versions
from .parts import profile_step
from .result import BenchResult, Outcome, Parts, Routing, find_peak, throughput
from .routing import measure_routing
from .scenarios import SCENARIOS, ScenarioName, Variant, configure
from .timing import peak_memory_bytes, reset_peak_memory, time_gemm, time_steps
from .workload import ForwardBackward, TrainStep, Workload


@dataclass(frozen=True)
class Timing:
    """Number of warm-up and timed steps, each with and without the optimizer, if the workload has one.

    ``limit``: seconds for the timed steps of one kind; a slow workload gets fewer steps.
    """

    warmup: int = 5
    steps: int = 20
    optimizer: bool = True
    limit: float | None = None


def time_scenario(
    scenario: ScenarioName,
    backend: Backend,
    variant: Variant,
    timing: Timing,
    micro_batch_size: int | None = None,
    sequences: int = 0,
    gate: Callable[[Outcome], None] | None = None,
) -> BenchResult:
    """Time a scenario on one of this project's back ends, in this process, on its first GPU or on the CPU.

    `scenarios.configure` explains ``micro_batch_size`` and ``sequences``. ``gate`` gets the first step's outcome before
    anything is timed, and raises to stop.

    Raises:
        ConfigError: settings that do not fit one process.
        LaunchError: a launcher with several processes.
        BackendError: the back end cannot run here.
        torch.OutOfMemoryError: the scenario does not fit.
    """
    on_gpu = torch.cuda.is_available()
    config = configure(scenario, variant, backend, on_gpu, micro_batch_size, sequences)
    if backend != "megatron_local":
        choose_backend(config)  # raises if it cannot run
    rank = read_rank(config)
    with distributed_session(config, rank):
        kind = TrainStep if SCENARIOS[scenario].has_optimizer else ForwardBackward
        return measure(kind(config, backend, rank.device), scenario, backend, config, rank.device, timing, gate)


def measure(
    workload: Workload,
    scenario: ScenarioName,
    backend: str,
    config: Config,
    device: torch.device,
    timing: Timing,
    gate: Callable[[Outcome], None] | None = None,
) -> BenchResult:
    """Time a workload that was built from ``config``. Other arguments as of `time_scenario`."""
    outcome = workload.first_step()
    if gate is not None:
        gate(outcome)
    reset_peak_memory(device)
    with_optimizer = None
    if workload.has_optimizer and timing.optimizer:
        with_optimizer = time_steps(workload.full_step, timing.warmup, timing.steps, device, timing.limit)
    # Whole steps have warmed up their parts.
    warmup = 1 if with_optimizer else timing.warmup
    without = time_steps(workload.forward_backward, warmup, timing.steps, device, timing.limit)
    memory = peak_memory_bytes(device)
    parts, profiled_seconds, routing = _profile(workload, config, device, with_optimizer is not None)
    gemm = time_gemm(device)

    tokens = config.free.global_batch_size * config.fixed.sequence_length
    flops = flops_per_token(config)
    tokens_per_second, tflops = throughput((with_optimizer or without).median, tokens, flops)
    system = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    peak, note = find_peak(system)
    without_tflops = throughput(without.median, tokens, flops)[1]
    return BenchResult(
        scenario=scenario,
        system=system,
        backend=backend,
        variant=config.model.variant,
        precision=config.execution.precision,
        recompute=config.execution.recompute,
        compile_mode=config.execution.compile_mode,
        micro_batch_size=config.execution.micro_batch_size,
        sequences_per_step=config.free.global_batch_size,
        sequence_length=config.fixed.sequence_length,
        step_seconds=with_optimizer,
        step_without_optimizer_seconds=without,
        tokens_per_second=tokens_per_second,
        tflops_per_second=tflops,
        flops_per_token=flops,
        mfu=tflops / peak if peak and with_optimizer else None,
        mfu_without_optimizer=without_tflops / peak if peak else None,
        peak_tflops=peak,
        peak_note=note,
        gemm=gemm,
        gemm_tflops=gemm.tflops,
        fraction_of_gemm=tflops / gemm.tflops,
        peak_memory_bytes=memory,
        device_memory_bytes=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        parts_seconds=parts,
        profiled_seconds=profiled_seconds,
        routing=routing,
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        norms=outcome.norms,
        optimizer=workload.optimizer_name if with_optimizer else None,
        kernels=describe_kernels(config, backend, device),
        versions=versions(),
        git_commit=git_commit() or config.submission.git_commit or "unknown",
        date=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    )


def _profile(
    workload: Workload, config: Config, device: torch.device, with_optimizer: bool
) -> tuple[Parts | None, float | None, Routing | None]:
    """Measure parts and routing in steps of their own, because hooks and the profiler slow a step down."""
    if workload.gpt is None:
        return None, None, None
    routing = measure_routing(workload.forward_backward, workload.gpt)
    if config.execution.compile_mode == "layers":
        return None, None, routing  # a compiled module ignores hooks that are registered later
    parts, seconds = profile_step(
        workload.full_step if with_optimizer else workload.forward_backward, workload.gpt, device
    )
    return parts, seconds, routing
