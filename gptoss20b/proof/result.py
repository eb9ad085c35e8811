"""Figures of a traced step."""

from __future__ import annotations

from pydantic import BaseModel, computed_field

# Points of the memory over a step.
TIMELINE_POINTS = 400


class Collective(BaseModel):
    """Collectives of one kind in a step: their number, and the bytes that this rank gives or takes."""

    count: int
    payload_bytes: int


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
        compiled_versions: number of versions of each fused function.
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
    compiled_versions: dict[str, int]
    timeline_bytes: list[int]


class TraceReport(BaseModel):
    """A trace, and what it means on a GPU.

    Attributes:
        system: GPU whose memory is the limit.
        memory_bytes: its memory by the data sheet. Devices report up to a tenth more, which the context of the driver,
            the communicators and the vendors' libraries take.
        survivable_imbalance: rows of this rank's experts over the mean at which the reserved bytes reach the memory;
            None if it never does, because no rows come from other ranks.
    """

    system: str
    memory_bytes: int
    trace: Trace
    survivable_imbalance: float | None

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
