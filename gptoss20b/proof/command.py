"""The command `trace`: a step of a configuration, and the imbalance that a GPU survives."""

from __future__ import annotations

import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from ..config import Config
from ..config.checks import check_torch_backend
from ..hardware import SYSTEMS, System, system_of_configuration
from ..memory import peak_memory
from ..model.size import flops_per_token
from .guard import ProofError
from .result import Trace, TraceReport
from .roofline import sum_by_part


def run(config: Config, imbalance: float, system_name: str | None) -> TraceReport:
    """Trace a configuration at an imbalance. The imbalance that the GPU survives is computed: `memory.peak_memory`.

    Raises:
        ProofError: the configuration has no trace, the system is unknown, or this machine cannot run it.
    """
    check_supported(config)
    system = _find_system(config, system_name)
    memory = system.memory_bytes
    config = config.model_copy(update={"submission": config.submission.model_copy(update={"system": system.name})})
    (trace,) = trace_in_processes([config], [imbalance])
    tokens = config.fixed.sequence_length * config.free.global_batch_size
    return TraceReport(
        configuration=_describe(config),
        system=system.name,
        memory_bytes=memory,
        trace=trace,
        largest_imbalance=config.parallel.expert,
        survivable_imbalance=_survivable_imbalance(config, memory),
        model_flops=flops_per_token(config) * tokens / config.parallel.world_size,
        parts=sum_by_part(trace.work, system),
    )


def _survivable_imbalance(config: Config, memory: int) -> float:
    from ..megatron_cpu import import_megatron

    import_megatron()
    peak = peak_memory(config)
    survivable = peak.survivable_imbalance(memory)
    if survivable is None:  # no rows come from other ranks
        survivable = 1.0 if peak.fits(memory, 1.0) else 0.0
    return min(max(survivable, 0.0), float(config.parallel.expert))


def _describe(config: Config) -> str:
    """Return what tells one trace from another."""
    parallel, execution = config.parallel, config.execution
    sizes = {"EP": parallel.expert, "PP": parallel.pipeline, "MBS": execution.micro_batch_size}
    sizes["GBS"] = config.free.global_batch_size
    layout = ", ".join(f"{name} {size}" for name, size in sizes.items())
    modes = f"RECOMPUTE {execution.recompute}, COMPILE {execution.compile_mode}, torch {torch.__version__}"
    return f"{config.model.variant} on {parallel.world_size} ranks: {layout}, {modes}"


def check_supported(config: Config) -> None:
    """Raise ProofError if a configuration does not run the GPU code of the torch back end."""
    problems = list(check_torch_backend(config))
    if config.execution.backend == "transformer_engine" or problems:
        reasons = "; ".join(map(str, problems)) or "got BACKEND=transformer_engine"
        raise ProofError(f"only the torch back end can be traced: {reasons}")
    if not config.execution.bf16_weights:
        raise ProofError(
            "PRECISION: got fp32, but on a GPU torch's grouped GEMM takes bf16 only. Source a GPU's configuration, or "
            "set PRECISION=bf16"
        )


def trace_in_processes(configs: list[Config], imbalances: list[float]) -> list[Trace]:
    """Trace each configuration in its own process: fake tensors that a cache kept would belong to another run."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return list(pool.map(_trace, configs, imbalances))


def prepare_process() -> None:
    """Import Megatron-Core in a new process, whose warnings nobody reads."""
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    from ..megatron_cpu import import_megatron

    import_megatron()


def _trace(config: Config, imbalance: float) -> Trace:
    prepare_process()
    from .trace import trace_step

    return trace_step(config, imbalance)


def _find_system(config: Config, name: str | None) -> System:
    found = system_of_configuration(name or config.submission.system)
    if found is None:
        given = f"--system: got '{name}'" if name else f"DGXSYSTEM: got '{config.submission.system}'"
        raise ProofError(f"{given}, expected one of {', '.join(SYSTEMS)}. Name the GPU with --system")
    return found
