"""An estimate as tables and as JSON. Both hold every assumption with its value and source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ...hardware import System
from ...memory import RECOMMENDED_IMBALANCE
from .efficiency import Efficiency
from .scaling import CONVERGENCE, Estimate

_GIB = 2**30
# Largest errors where one published run predicts another of its vendor and precision (docs/performance-model.md). The
# back-test is benchmarks/published_steps.py; a test compares these figures with it.
BACKTEST_ERRORS = {
    "like_predictions": 24,
    "like_worst": 0.06886157545907046,
    "predictions": 64,
    "worst": 0.2868830952999797,
}
# Costs that the model leaves out or takes as zero.
STATED = (
    "all-to-alls overlap with nothing; gradient reduction overlaps with the last backward, weight gathering with the "
    "first forward, at no cost to either",
    "data loading, logging, launch gaps, and failing or slow GPUs take no time",
    "experts and data-parallel neighbours sit next to each other; what leaves a domain uses its GPUs' networks",
)


def as_document(estimate: Estimate, efficiency: Efficiency) -> dict[str, Any]:
    """Return the estimate as plain values: seconds, bytes, fractions."""
    config, parallel = estimate.model.config, estimate.model.config.parallel
    gpu_bytes = estimate.model.system.memory_bytes
    return {
        "system": vars(estimate.model.system),
        "layout": {
            "nodes": parallel.nodes,
            "gpus": parallel.world_size,
            "expert_parallel": parallel.expert,
            "context_parallel": parallel.context,
            "data_parallel": parallel.data,
            "micro_batch_size": config.execution.micro_batch_size,
            "global_batch_size": config.free.global_batch_size,
            "accumulation_steps": config.accumulation_steps,
        },
        "step_seconds": estimate.step.seconds,
        "step_parts_seconds": vars(estimate.step),
        "bytes_per_gpu_and_step": estimate.bytes_per_step,
        "tokens_per_second_per_gpu": estimate.tokens_per_second,
        "mfu": estimate.mfu,
        "evaluation_seconds": estimate.evaluation_seconds,
        "samples_to_target": estimate.samples,
        "minutes_to_target": None if estimate.seconds_to_target is None else estimate.seconds_to_target / 60,
        "memory": {
            "state_bytes": estimate.memory.state_bytes,
            "peak_reserved_bytes": estimate.memory.reserved_bytes(),
            "peak_reserved_bytes_unbalanced": estimate.memory.reserved_bytes(RECOMMENDED_IMBALANCE),
            "unbalanced": RECOMMENDED_IMBALANCE,
            "survivable_imbalance": estimate.memory.survivable_imbalance(gpu_bytes),
            "gpu_bytes": gpu_bytes,
            "fits": estimate.memory.fits(gpu_bytes, 1.0),
            "fits_unbalanced": estimate.memory.fits(gpu_bytes),
        },
        "efficiency_given": efficiency.given,
        "warning": efficiency.warning or None,
        "assumptions": [
            {"name": name, "value": value, "unit": unit, "source": source}
            for name, value, unit, source in _assumption_rows(estimate, efficiency)
        ],
        "stated": list(STATED),
        "error": BACKTEST_ERRORS,
    }


def as_tables(estimate: Estimate, efficiency: Efficiency) -> Sequence[Table | str]:
    """Return the result, the parts of a step, the assumptions, and the model's limits and error, for a terminal."""
    error = BACKTEST_ERRORS
    return [
        *([f"WARNING: {efficiency.warning}."] if efficiency.warning else []),
        _result_table(estimate, efficiency),
        _parts_table(estimate),
        _assumptions_table(estimate, efficiency),
        "\n".join(f"Taken as given: {text}." for text in STATED),
        f"Error against published runs, one predicting another: at most {error['like_worst']:.0%} in "
        f"{error['like_predictions']} predictions between like GPUs and layouts, at most {error['worst']:.0%} in all "
        f"{error['predictions']} (docs/performance-model.md).",
    ]


def _assumption_rows(estimate: Estimate, efficiency: Efficiency) -> list[tuple[str, float | None, str, str]]:
    """Return name, value, unit and source of every input: system, efficiency, factors, convergence, memory."""
    points = ", ".join(f"GBS {size}: {mean:,.0f}" for size, mean in CONVERGENCE.items())
    return [
        *_system_rows(estimate.model.system),
        ("efficiency", efficiency.value, "of the peak, in matrix products", efficiency.source),
        *estimate.model.assumptions.rows(),
        (
            "samples_to_target",
            estimate.samples,
            "sequences, mean",
            f"reference runs ({points}), linear between; none above 64, nor for another model or target",
        ),
        (
            "peak_memory",
            estimate.memory.reserved_bytes() / _GIB,
            "GiB per GPU, balanced",
            "sum of the tensors of the torch back end; within 3 % of traces (docs/reference/memory.md)",
        ),
    ]


def _system_rows(system: System) -> list[tuple[str, float | None, str, str]]:
    units = {
        "peak_tflops": "TFLOP/s, dense bf16",
        "memory_gb": "GB per GPU",
        "memory_tbs": "TB/s of memory",
        "link_gbs": "GB/s in the domain, one direction",
        "network_gbs": "GB/s outside it, one direction",
        "domain": "GPUs on fast links",
    }
    return [(name, getattr(system, name), unit, system.source) for name, unit in units.items()]


def _result_table(estimate: Estimate, efficiency: Efficiency) -> Table:
    config, parallel = estimate.model.config, estimate.model.config.parallel
    kind = "" if efficiency.given else " (efficiency ASSUMED)"
    table = Table("figure", "value", title=f"{parallel.world_size} x {estimate.model.system.name}{kind}")
    seconds, memory = estimate.seconds_to_target, estimate.memory.describe(estimate.model.system.memory_bytes)
    rows = {
        "layout": f"EP {parallel.expert}, CP {parallel.context}, DP {parallel.data}, GBS "
        f"{config.free.global_batch_size} = micro batch {config.execution.micro_batch_size} x {parallel.data} x "
        f"{config.accumulation_steps}",
        "step": f"{estimate.step.seconds:.4f} s",
        "tokens per second and GPU": f"{estimate.tokens_per_second:,.0f}",
        "MFU": f"{estimate.mfu:.1%}",
        "evaluation": f"{estimate.evaluation_seconds:.2f} s, every {config.eval_interval_steps} steps",
        "samples to target": "no reference point" if estimate.samples is None else f"{estimate.samples:,.0f}",
        "time to train": "unknown" if seconds is None else f"{seconds / 60:.1f} min",
        "memory": memory,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _parts_table(estimate: Estimate) -> Table:
    table = Table("part of a step", "ms", "%", "GB sent per GPU", title="exposed time by part")
    for name, seconds in vars(estimate.step).items():
        sent = estimate.bytes_per_step.get(name)
        gigabytes = "" if sent is None else f"{sent / 1e9:.1f}"
        share = f"{seconds / estimate.step.seconds:.1%}"
        table.add_row(name.replace("_", " "), f"{seconds * 1e3:.1f}", share, gigabytes)
    return table


def _assumptions_table(estimate: Estimate, efficiency: Efficiency) -> Table:
    table = Table("assumption", "value", "unit", "source", title="assumptions")
    above = ""
    for name, value, unit, source in _assumption_rows(estimate, efficiency):
        shown = "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
        table.add_row(name.replace("_", " "), shown, unit, "same" if source == above else source)
        above = source
    return table
