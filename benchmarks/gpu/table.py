"""A comparison as Markdown."""

from __future__ import annotations

from gptoss20b.tools.bench.result import BenchResult

from .baselines import BASELINES
from .results import Comparison, Trial

_COLUMNS = (
    "baseline", "trial", "micro batch", "step, s (p10 to p90; n)", "without optimizer, s", "TFLOP/s",
    "of a plain GEMM", "MFU", "MFU without optimizer", "peak GiB", "optimizer", "times ours (all trials)",
)  # fmt: skip


def markdown(comparison: Comparison) -> str:
    """Return all trials, and the parts of our step."""
    known = comparison.any_result()
    if known is None:
        return "Nothing was measured.\n"
    names = ("python", "torch", "triton", "megatron-core", "transformer-engine", "transformers")
    versions = ", ".join(f"{name} {comparison.versions[name]}" for name in names if comparison.versions.get(name))
    lines = [
        f"Scenario {comparison.scenario}, {comparison.sequences} sequences of {known.sequence_length:,} tokens a step, "
        f"{known.precision}, on {known.system}; a plain {known.gemm.size}^3 {known.gemm.dtype} multiplication reached "
        f"{known.gemm_tflops:,.3g} TFLOP/s.",
        f"Recorded on {known.date}, commit {known.git_commit}; {versions}.",
        "",
        _row(_COLUMNS),
        _row(["---"] * len(_COLUMNS)),
        *(_row(_cells(comparison, trial)) for trial in comparison.trials),
        "",
        *_parts(comparison),
    ]
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(comparison: Comparison, trial: Trial) -> list[str]:
    title = BASELINES[trial.baseline].title
    result = trial.result
    if result is None:
        reason = (trial.reason.splitlines() or [""])[0].replace("|", "/")  # results.json has all of it
        return [title, str(trial.number), f"{trial.status}: {reason}", *["-"] * 9]
    ratio = comparison.times_ours(trial.baseline)
    return [
        title,
        str(trial.number),
        _format_attempt(result),
        str(result.step_seconds or "-"),
        str(result.step_without_optimizer_seconds),
        f"{result.tflops_per_second:,.3g}",
        f"{result.fraction_of_gemm:.1%}",
        _format_percent(result.mfu),
        _format_percent(result.mfu_without_optimizer),
        f"{result.peak_memory_bytes / 2**30:.1f}",
        result.optimizer or "-",
        f"{ratio:.2f}" if ratio else "-",
    ]


def _format_attempt(result: BenchResult) -> str:
    """Return the micro batch and recomputation."""
    return f"{result.micro_batch_size}" + ("" if result.recompute == "none" else f", RECOMPUTE={result.recompute}")


def _format_percent(fraction: float | None) -> str:
    return f"{fraction:.1%}" if fraction is not None else "-"


def _parts(comparison: Comparison) -> list[str]:
    """Return our time by part; nothing if it is unknown."""
    ours = comparison.our_trial("reference")
    result = ours.result if ours else None
    if result is None or result.parts_seconds is None:
        return []
    parts = ", ".join(f"{name.replace('_', ' ')} {1000 * value:.1f}" for name, value in result.parts_seconds)
    return [f"Ours by part, ms of one profiled step: {parts}."]
