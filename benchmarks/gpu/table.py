"""A comparison as Markdown, written into the README between two markers."""

from __future__ import annotations

from pathlib import Path

from gptoss20b.tools.bench.result import BenchResult

from .baselines import BASELINES
from .records import Trial
from .results import Comparison

BEGIN, END = "<!-- results: written by compare.py --readme -->", "<!-- /results -->"
_COLUMNS = (
    "baseline", "trial", "micro batch", "step, s (p10 to p90; n)", "without optimizer, s", "TFLOP/s",
    "of a plain GEMM", "MFU", "MFU without optimizer", "peak GiB", "optimizer", "times ours (all trials)",
)  # fmt: skip
_HUGGING_FACE = ("hugging_face", "hugging_face_compiled")


def markdown(comparison: Comparison) -> str:
    """Return all trials, the parts of our step, and the targets."""
    known = comparison.any_result()
    if known is None:
        return "Nothing was measured.\n"
    versions = ", ".join(f"{name} {version}" for name, version in _versions(comparison).items())
    lines = [
        f"Scenario {comparison.scenario}, {comparison.sequences} sequences of {known.sequence_length:,} tokens a step, "
        f"{known.precision}, on {known.system}; a plain {known.gemm.size}^3 {known.gemm.dtype} multiplication reached "
        f"{known.gemm_tflops:,.3g} TFLOP/s.",
        f"Recorded on {known.date}, commit {comparison.identity['commit']}; {versions}.",
        "",
        _row(_COLUMNS),
        _row(["---"] * len(_COLUMNS)),
        *(_row(_cells(comparison, trial)) for trial in comparison.trials),
        "",
        *_parts(comparison),
        *_targets(comparison),
    ]
    return "\n".join(lines) + "\n"


def rewrite(readme: Path, text: str) -> None:
    """Replace the text between the README's two markers.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"{readme}: expected one line {BEGIN} and after it one line {END}")
    readme.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")


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


def _versions(comparison: Comparison) -> dict[str, str]:
    """Return the versions of all packages that any baseline uses."""
    names = ("python", "torch", "triton", "megatron-core", "transformer-engine", "transformers")
    found = {name: version for name, version in comparison.identity.items() if version != "none"}
    for trial in comparison.trials:
        found |= {name: version for name, version in (trial.result.versions if trial.result else {}).items() if version}
    return {name: found[name] for name in names if name in found}


def _parts(comparison: Comparison) -> list[str]:
    """Return our time by part; nothing if it is unknown."""
    ours = comparison.our_trial("reference")
    result = ours.result if ours else None
    if result is None or result.parts_seconds is None:
        return []
    parts = ", ".join(f"{name.replace('_', ' ')} {1000 * value:.1f}" for name, value in result.parts_seconds)
    return [f"Ours by part, ms of one profiled step: {parts}.", ""]


def _targets(comparison: Comparison) -> list[str]:
    """Return the targets of S1 that this comparison has figures for."""
    ours = comparison.our_trial("reference")
    attempt = f"ours at micro batch {_format_attempt(ours.result)}" if ours and ours.result else ""
    hugging_face = [ratio for name in _HUGGING_FACE if (ratio := comparison.times_ours(name))]
    rows = [
        (f"MFU without the optimizer step, {attempt}", 0.45, comparison.mfu("ours", "step_without_optimizer_seconds")),
        (f"MFU with it, {attempt}", 0.42, comparison.mfu("ours")),
        ("times Megatron-Core's local spec", 2.5, comparison.times_ours("megatron_local")),
        ("times Megatron-Core with Transformer Engine", 1.0, comparison.times_ours("transformer_engine")),
        ("times Hugging Face's best", 1.25, min(hugging_face, default=None)),
    ]
    reached = [
        _row([name, f"at least {target:g}", f"{got:.3g}", "met" if got >= target else "missed"])
        for name, target, got in rows
        if got is not None
    ]
    if comparison.scenario != "S1" or not reached:
        return []
    return [_row(["target (S1)", "wanted", "got", ""]), _row(["---"] * 4), *reached]
