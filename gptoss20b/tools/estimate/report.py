"""An estimate as tables for people and as JSON for programs; both hold every assumption, its value and source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ...hardware import System
from .efficiency import Efficiency
from .scaling import CONVERGENCE, Estimate

_GIB = 2**30
# Largest errors where one published run predicts another of its vendor and precision (docs/scaling.md). The back-test
# is benchmarks/published_steps.py; a test compares these figures with it.
BACKTEST_ERRORS = {
    "like_predictions": 24,
    "like_worst": 0.06886157545907046,
    "predictions": 64,
    "worst": 0.2923902649196015,
}
# What the model leaves out or takes as free, in words.
STATED = (
    "all-to-alls overlap with nothing; gradient reduction with the last backward, weight gathering with the first "
    "forward, at no cost to either",
    "data loading, logging, launch gaps, and failing or slow GPUs take no time",
    "experts and data-parallel neighbours sit next to each other; what leaves a domain uses its GPUs' networks",
)


def as_document(found: Estimate, efficiency: Efficiency) -> dict[str, Any]:
    """The estimate as plain values: seconds, bytes, fractions."""
    config, parallel = found.config, found.config.parallel
    return {
        "system": vars(found.system),
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
        "step_seconds": found.step.seconds,
        "step_parts_seconds": vars(found.step),
        "bytes_per_gpu_and_step": found.bytes_per_step,
        "tokens_per_second_per_gpu": found.tokens_per_second,
        "mfu": found.mfu,
        "evaluation_seconds": found.evaluation_seconds,
        "samples_to_target": found.samples,
        "minutes_to_target": None if found.seconds_to_target is None else found.seconds_to_target / 60,
        "memory": {
            "state_bytes": found.state_bytes,
            "activation_bytes": found.activation_bytes,
            "gpu_bytes": found.system.memory_gb * 1e9,
            "fits": fits(found),
        },
        "efficiency_given": efficiency.given,
        "warning": efficiency.warning or None,
        "assumptions": [
            {"name": name, "value": value, "unit": unit, "source": source}
            for name, value, unit, source in assumption_rows(found, efficiency)
        ],
        "stated": list(STATED),
        "error": BACKTEST_ERRORS,
    }


def as_tables(found: Estimate, efficiency: Efficiency) -> Sequence[Table | str]:
    """What the command prints: the result, a step's parts, the assumptions, what is left out, and the model's error."""
    return [
        *([f"WARNING: {efficiency.warning}."] if efficiency.warning else []),
        _result(found, efficiency),
        _parts(found),
        _assumptions(found, efficiency),
        "\n".join(f"Taken as given: {text}." for text in STATED),
        _error_line(),
    ]


def fits(found: Estimate) -> bool:
    """Whether state and activations, the latter an estimate from above, fit the GPU's memory."""
    return found.state_bytes + found.activation_bytes <= found.system.memory_gb * 1e9


def assumption_rows(found: Estimate, efficiency: Efficiency) -> list[tuple[str, float | None, str, str]]:
    """Everything the estimate takes as given: the system, the efficiency, the factors, the convergence."""
    table = ", ".join(f"GBS {size}: {mean:,.0f}" for size, mean in CONVERGENCE.items())
    return [
        *_system_rows(found.system),
        ("efficiency", efficiency.value, "of the peak, in matrix products", efficiency.source),
        *found.assumptions.rows(),
        (
            "samples_to_target",
            found.samples,
            "sequences, mean",
            f"reference runs ({table}), linear between; none above 64, nor for another model or target",
        ),
        (
            "activations",
            found.activation_bytes / _GIB,
            "GiB per GPU",
            "39 GiB a sequence of the reference, less what RECOMPUTE frees: an estimate from above (docs/tuning.md)",
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


def _result(found: Estimate, efficiency: Efficiency) -> Table:
    config, parallel = found.config, found.config.parallel
    kind = "" if efficiency.given else " (efficiency ASSUMED)"
    table = Table("figure", "value", title=f"{parallel.world_size} x {found.system.name}{kind}")
    minutes = found.seconds_to_target
    rows = {
        "layout": f"EP {parallel.expert}, CP {parallel.context}, DP {parallel.data}, GBS "
        f"{config.free.global_batch_size} = micro batch {config.execution.micro_batch_size} x {parallel.data} x "
        f"{config.accumulation_steps}",
        "step": f"{found.step.seconds:.4f} s",
        "tokens per second and GPU": f"{found.tokens_per_second:,.0f}",
        "MFU": f"{found.mfu:.1%}",
        "evaluation": f"{found.evaluation_seconds:.2f} s, every {config.eval_interval_steps} steps",
        "samples to target": "no reference point" if found.samples is None else f"{found.samples:,.0f}",
        "time to train": "unknown" if minutes is None else f"{minutes / 60:.1f} min",
        "memory": f"{found.state_bytes / _GIB:.1f} GiB of state + {found.activation_bytes / _GIB:.1f} of activations "
        f"of {found.system.memory_gb * 1e9 / _GIB:.1f}: {_room(found)}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _room(found: Estimate) -> str:
    left = found.system.memory_gb * 1e9 - found.state_bytes - found.activation_bytes
    return f"fits, {left / _GIB:.1f} left for unbalanced experts" if fits(found) else f"{-left / _GIB:.1f} TOO MUCH"


def _parts(found: Estimate) -> Table:
    table = Table("part of a step", "ms", "%", "GB sent per GPU", title="what nothing hides")
    for name, seconds in vars(found.step).items():
        sent = found.bytes_per_step.get(name)
        moved = "" if sent is None else f"{sent / 1e9:.1f}"
        table.add_row(name.replace("_", " "), f"{seconds * 1e3:.1f}", f"{seconds / found.step.seconds:.1%}", moved)
    return table


def _assumptions(found: Estimate, efficiency: Efficiency) -> Table:
    table = Table("assumption", "value", "unit", "source", title="assumptions")
    above = ""
    for name, value, unit, source in assumption_rows(found, efficiency):
        shown = "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
        table.add_row(name.replace("_", " "), shown, unit, "same" if source == above else source)
        above = source
    return table


def _error_line() -> str:
    error = BACKTEST_ERRORS
    return (
        f"Error against published runs, one predicting another: at most {error['like_worst']:.0%} in "
        f"{error['like_predictions']} predictions between like GPUs and layouts, at most {error['worst']:.0%} in all "
        f"{error['predictions']} (docs/scaling.md)."
    )
