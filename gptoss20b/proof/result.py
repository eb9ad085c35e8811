"""Figures of a traced step."""

from __future__ import annotations

from pydantic import BaseModel, computed_field

# Points of the memory over a step.
TIMELINE_POINTS = 400


class Collective(BaseModel):
    """Collectives of one kind in a step: their number, and the bytes that this rank gives or takes."""

    count: int
    payload_bytes: int


class Work(BaseModel):
    """Kernels of one operator in one module.

    Attributes:
        module: without the number of the layer; "" outside of the model.
        phase: forward, backward (with recomputation) or update.
        operator: of torch, or the name of a fused function.
        dtype: operands of the matrix product; "" if there is none.
        count: number of kernels, or of groups of kernels that torch launches for the operator.
        bytes: read and written.
    """

    module: str
    phase: str
    operator: str
    dtype: str
    count: int
    flops: int
    bytes: int


class Trace(BaseModel):
    """One rank's step, as traced.

    Attributes:
        live_after_build_bytes: weights, gradients and main weights.
        live_after_step_bytes: that, and the optimizer's moments: alive between steps.
        leaked_bytes: what the second step left behind; 0 unless something keeps tensors.
        peak_live_bytes: the highest sum of allocations in a step.
        peak_reserved_bytes: taken from the GPU by the caching allocator, with expandable segments.
        peak_reserved_bytes_without_expandable_segments: the same with the allocator's default segments.
        at_peak_bytes: the peak by category.
        evaluation_peak_live_bytes: the highest sum in an evaluation.
        host_waits: places where the host waits for the device in a step.
        collectives: collectives of a step, by kind.
        buckets: of gradients, each reduced on its own.
        compiled_versions: number of versions of each fused function.
        graph_breaks: reasons for which a compiled module was split.
        work: FLOPs and bytes of the step.
        timeline_bytes: live bytes over the step, the highest of each of `TIMELINE_POINTS` equal parts of its events.
    """

    imbalance: float
    live_after_build_bytes: int
    live_after_step_bytes: int
    leaked_bytes: int
    peak_live_bytes: int
    peak_reserved_bytes: int
    peak_reserved_bytes_without_expandable_segments: int
    at_peak_bytes: dict[str, int]
    evaluation_peak_live_bytes: int
    host_waits: dict[str, int]
    collectives: dict[str, Collective]
    buckets: int
    compiled_versions: dict[str, int]
    graph_breaks: list[str]
    work: list[Work]
    timeline_bytes: list[int]


class PartWork(BaseModel):
    """Work of one part of the step in one phase.

    Attributes:
        part: kind of module, such as "experts".
        phase: forward, backward or update.
        roofline_seconds: least time that the GPU takes for the kernels, one after another.
    """

    part: str
    phase: str
    flops: int
    bytes: int
    roofline_seconds: float


class TraceReport(BaseModel):
    """A trace, and what it means on a GPU.

    Attributes:
        configuration: model, layout and batch, for people.
        system: GPU whose memory is the limit.
        memory_bytes: its memory by the data sheet. Devices report up to a tenth more, which the context of the driver,
            the communicators and the vendors' libraries take.
        largest_imbalance: all rows go to this rank's experts.
        survivable_imbalance: rows of this rank's experts over the mean at which the reserved bytes reach the memory, at
            most the largest; below 1 if the step does not fit.
        model_flops: of this rank's step by `model.size.flops_per_token`, which neither counts what a backward pass
            computes again nor knows of imbalance.
        parts: work of the step by part.
    """

    configuration: str
    system: str
    memory_bytes: int
    trace: Trace
    largest_imbalance: int
    survivable_imbalance: float
    model_flops: float
    parts: list[PartWork]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def peak_live_bytes(self) -> int:
        """Return the trace's peak of allocations."""
        return self.trace.peak_live_bytes

    @computed_field  # type: ignore[prop-decorator]
    @property
    def peak_reserved_bytes(self) -> int:
        """Return the trace's peak of reserved bytes, with expandable segments."""
        return self.trace.peak_reserved_bytes

    @computed_field  # type: ignore[prop-decorator]
    @property
    def host_waits_per_step(self) -> int:
        """Return the waits of the host in a step."""
        return sum(self.trace.host_waits.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def collectives_per_step(self) -> int:
        """Return the collectives of a step."""
        return sum(kind.count for kind in self.trace.collectives.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def flops_per_step(self) -> int:
        """Return the FLOPs of the step's matrix products and attention."""
        return sum(part.flops for part in self.parts)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes_per_step(self) -> int:
        """Return the bytes that the step's kernels read and write."""
        return sum(part.bytes for part in self.parts)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def roofline_seconds(self) -> float:
        """Return the least time of the step's kernels."""
        return sum(part.roofline_seconds for part in self.parts)
