"""Result of `bench` as a record and a table, and the arithmetic from seconds to a fraction of the peak."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from ...hardware import SYSTEMS, system_of_device


class Record(BaseModel):
    """A frozen record that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(Record):
    """Seconds of a step: the median and the 10th and 90th percentile of ``steps`` timed steps."""

    median: float
    p10: float
    p90: float
    steps: int

    def __str__(self) -> str:
        return f"{self.median:.4f} ({self.p10:.4f} to {self.p90:.4f}; {self.steps})"


class Gemm(Record):
    """A square matrix multiplication: size, dtype and the TFLOP/s it reached."""

    size: int
    dtype: str
    tflops: float


@dataclass(frozen=True)
class Outcome:
    """Mean loss in nats and whole gradient norm, before clipping, of the first step, and its `norms.norms_by_kind`."""

    loss: float
    grad_norm: float
    norms: dict[str, float]


class Parts(Record):
    """Seconds of one profiled step by part of the model. A profiled step is slower than a timed one.

    Attributes:
        attention: QKV and output projection, QK norm, rotary embedding, core attention.
        experts: the grouped multiplications and the activation between them.
        router_dispatch: router, permutation, all-to-all.
        loss: from the last hidden states to the loss, output projection included.
        optimizer: zeroing of gradients, clipping, update, and rounding of weights.
        other: embedding, layer norms, residuals, reduction of gradients, and everything outside the parts.
    """

    attention: float
    experts: float
    router_dispatch: float
    loss: float
    optimizer: float
    other: float


class Routing(Record):
    """Rows of the fullest expert over the mean of all experts, in a step: mean and worst of the layers."""

    max_over_mean: float
    worst_layer: float


class BenchResult(Record):
    """Measurement of one scenario on one back end.

    Attributes:
        system: name of the device.
        scenario, backend, variant, precision, recompute, compile_mode: the configuration.
        micro_batch_size, sequences_per_step, sequence_length: the batch.
        step_seconds: with the optimizer; None without one.
        step_without_optimizer_seconds: forward, backward and (S2 aside) reduction of gradients.
        tokens_per_second, tflops_per_second: of the step, with the optimizer if there is one.
        flops_per_token: `model.size.flops_per_token` of the scenario's layers and experts.
        mfu, mfu_without_optimizer: fractions of `peak_tflops`; None if the peak or the time is unknown.
        peak_tflops, peak_note: dense bf16 peak of the device and its source, or None and the reason.
        gemm, gemm_tflops, fraction_of_gemm: a plain multiplication in the same process, and the step relative to it.
        peak_memory_bytes, device_memory_bytes: `timing.peak_memory_bytes`, and the GPU's memory; None on a CPU.
        parts_seconds, profiled_seconds: of one profiled step, by part and in sum. None for models that are not
            Megatron-Core's or have compiled layers. On a GPU kernel time, on a CPU operator self time.
        routing: balance of the routing; None for models that are not Megatron-Core's.
        loss, grad_norm, norms: of the first step, from the initial weights; `Outcome`.
        optimizer: package and class; None without one.
        kernels: `model.kernels.describe_kernels`: those of the torch back end on a GPU.
    """

    scenario: str
    system: str
    backend: str
    variant: str
    precision: str
    recompute: str
    compile_mode: str
    micro_batch_size: int
    sequences_per_step: int
    sequence_length: int
    step_seconds: Spread | None
    step_without_optimizer_seconds: Spread
    tokens_per_second: float
    tflops_per_second: float
    flops_per_token: float
    mfu: float | None
    mfu_without_optimizer: float | None
    peak_tflops: float | None
    peak_note: str
    gemm: Gemm
    gemm_tflops: float
    fraction_of_gemm: float
    peak_memory_bytes: int
    device_memory_bytes: int | None
    parts_seconds: Parts | None
    profiled_seconds: float | None
    routing: Routing | None
    loss: float
    grad_norm: float
    norms: dict[str, float]
    optimizer: str | None
    kernels: dict[str, str] = {}
    versions: dict[str, str | None]
    git_commit: str
    date: str

    @property
    def outcome(self) -> Outcome:
        """The first step."""
        return Outcome(self.loss, self.grad_norm, self.norms)


def find_peak(device: str) -> tuple[float | None, str]:
    """Return the dense bf16 peak in TFLOP/s of the device of this name and its source, or None and the reason.

    PCIe cards and slices of a GPU have lower peaks than the module of the same name, and none here.

    >>> find_peak("NVIDIA H200")  # doctest: +ELLIPSIS
    (990, 'dense bf16 of H200: NVIDIA H200 SXM and DGX H200 data sheets; ...')
    """
    known = system_of_device(device)
    if known is None:
        return None, f"no peak is known for '{device}', only for {', '.join(SYSTEMS)} (not PCIe, NVL or MIG)"
    return known.peak_tflops, f"dense bf16 of {known.name}: {known.source}"


def throughput(seconds: float, tokens: int, flops_per_token: float) -> tuple[float, float]:
    """Return the tokens/s and TFLOP/s of a step.

    >>> throughput(seconds=0.5, tokens=16_384, flops_per_token=22.876e9)
    (32768.0, 749.600768)
    """
    return tokens / seconds, tokens * flops_per_token / seconds / 1e12


def as_table(result: BenchResult) -> Table:
    """Return the main figures as a table for a terminal."""
    table = Table("figure", "value", title=f"{result.scenario}, {result.backend}, {result.variant}: {result.system}")
    for name, value in _rows(result):
        table.add_row(name, value)
    return table


def _rows(result: BenchResult) -> list[tuple[str, str]]:
    rows = [
        ("sequences", f"{result.sequences_per_step} of {result.sequence_length:,} in micro batches of "
         f"{result.micro_batch_size}, {result.precision}, RECOMPUTE={result.recompute}, COMPILE={result.compile_mode}"),
        ("step, s (p10 to p90; n)", str(result.step_seconds or "not timed")),
        ("without optimizer, s", str(result.step_without_optimizer_seconds)),
        ("tokens/s", f"{result.tokens_per_second:,.0f}"),
        ("TFLOP/s", f"{result.tflops_per_second:,.3g}"),
        ("MFU", _format_percent(result.mfu, result.peak_note)),
        ("MFU without optimizer", _format_percent(result.mfu_without_optimizer, result.peak_note)),
        (f"plain {result.gemm.size}^3 {result.gemm.dtype}, TFLOP/s", f"{result.gemm_tflops:,.3g}"),
        ("fraction of plain multiplication", f"{result.fraction_of_gemm:.1%}"),
        ("peak memory, GiB", f"{result.peak_memory_bytes / 2**30:.2f}"),
    ]  # fmt: skip
    if result.parts_seconds and result.profiled_seconds:
        rows += [
            (f"{name.replace('_', ' ')}, profiled", f"{1000 * value:,.2f} ms, {value / result.profiled_seconds:.0%}")
            for name, value in result.parts_seconds
        ]
    if result.routing:
        balance = f"{result.routing.max_over_mean:.2f}, worst layer {result.routing.worst_layer:.2f}"
        rows.append(("rows of the fullest expert / mean", balance))
    rows += [(f"kernel of {name.replace('_', ' ')}", kernel) for name, kernel in result.kernels.items()]
    return [*rows, ("loss, gradient norm", f"{result.loss:.5f}, {result.grad_norm:.5g}")]


def _format_percent(fraction: float | None, reason: str) -> str:
    return f"{fraction:.1%}" if fraction is not None else f"- ({reason})"
