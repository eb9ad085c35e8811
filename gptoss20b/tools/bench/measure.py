"""From a scenario and a back end to a result: build, check, time, profile."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...config import Config
from ...model.backend import Backend, choose_backend
from ...model.size import flops_per_token
from ...process_groups import distributed_session, read_rank
from ...run_metadata import git_commit, versions
from .parts import profiled
from .result import BenchResult, Parts, Routing, peak_of, speed
from .routing import routing_of
from .scenarios import SCENARIOS, Name, Variant, configure
from .timing import gemm, peak_memory_bytes, reset_peak_memory, time_steps
from .workload import ForwardBackward, Outcome, TrainStep, Workload


@dataclass(frozen=True)
class Timing:
    """How a workload is timed.

    Attributes:
        warmup, steps: calls before the timed ones, and timed calls, each with and without the optimizer.
            One call is enough before those without, once those with have been timed.
        optimizer: whether steps with the optimizer are timed, where there is one.
        limit: seconds that the timed calls of one kind may take: fewer are timed of a slow workload.
    """

    warmup: int = 5
    steps: int = 20
    optimizer: bool = True
    limit: float | None = None


def time_scenario(
    scenario: Name,
    backend: Backend,
    variant: Variant,
    timing: Timing,
    micro_batch_size: int | None = None,
    sequences: int = 0,
    gate: Callable[[Outcome], None] | None = None,
) -> BenchResult:
    """Time a scenario on one of this project's back ends, in this process, on its first GPU or on the CPU.

    Args:
        micro_batch_size, sequences: as `scenarios.configure` takes them.
        gate: called with the first step's outcome, before anything is timed; raises to stop.

    Raises:
        ConfigError, LaunchError: settings, or a launcher, that do not go with one process.
        BackendError: the back end cannot run here.
        torch.OutOfMemoryError: it does not fit.
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
    scenario: Name,
    backend: str,
    config: Config,
    device: torch.device,
    timing: Timing,
    gate: Callable[[Outcome], None] | None = None,
) -> BenchResult:
    """Time a workload that was built from ``config``; other arguments as `time_scenario` takes them."""
    outcome = workload.first_step()
    if gate is not None:
        gate(outcome)
    reset_peak_memory(device)
    with_optimizer = None
    if workload.has_optimizer and timing.optimizer:
        with_optimizer = time_steps(workload.full_step, timing.warmup, timing.steps, device, timing.limit)
    # A whole step warms up what is in a part of it.
    warmup = 1 if with_optimizer else timing.warmup
    without = time_steps(workload.forward_backward, warmup, timing.steps, device, timing.limit)
    memory = peak_memory_bytes(device)
    parts, profiled_seconds, routing = _look_inside(workload, config, device, with_optimizer is not None)
    plain = gemm(device)

    tokens = config.free.global_batch_size * config.fixed.sequence_length
    flops = flops_per_token(config)
    tokens_per_second, tflops = speed((with_optimizer or without).median, tokens, flops)
    system = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    peak, note = peak_of(system)
    without_tflops = speed(without.median, tokens, flops)[1]
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
        gemm=plain,
        gemm_tflops=plain.tflops,
        fraction_of_gemm=tflops / plain.tflops,
        peak_memory_bytes=memory,
        device_memory_bytes=torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        parts_seconds=parts,
        profiled_seconds=profiled_seconds,
        routing=routing,
        loss=outcome.loss,
        grad_norm=outcome.grad_norm,
        norms=outcome.norms,
        optimizer=workload.optimizer_name if with_optimizer else None,
        versions=versions(),
        git_commit=git_commit() or config.submission.git_commit or "unknown",
        date=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    )


def _look_inside(
    workload: Workload, config: Config, device: torch.device, whole: bool
) -> tuple[Parts | None, float | None, Routing | None]:
    """Parts and routing of steps after the timed ones, which they would slow down."""
    if workload.gpt is None:
        return None, None, None
    routing = routing_of(workload.forward_backward, workload.gpt)
    if config.execution.compile_mode == "layers":
        return None, None, routing  # a compiled module does not run hooks that came later
    parts, seconds = profiled(workload.full_step if whole else workload.forward_backward, workload.gpt, device)
    return parts, seconds, routing
