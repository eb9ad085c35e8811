"""Request and outcome of one trial, exchanged as JSON files between `compare` and `trial`."""

from __future__ import annotations

from typing import Literal

from gptoss20b.tools.bench.result import BenchResult, Record
from gptoss20b.tools.bench.scenarios import ScenarioName

Status = Literal["measured", "refused", "out of memory", "not available", "failed"]


class Expected(Record):
    """Our first step, which a baseline must reproduce before it is timed.

    Attributes:
        loss, grad_norm, norms: `bench.workload.Outcome`.
        loss_tolerance: largest relative difference of the loss.
        norm_tolerance: largest relative difference of `grad_norm` and of each norm.
    """

    loss: float
    grad_norm: float
    norms: dict[str, float]
    loss_tolerance: float
    norm_tolerance: float


class Request(Record):
    """What to run. ``baseline`` is a key of BASELINES; ``limit`` is `bench.measure.Timing.limit`."""

    baseline: str
    scenario: ScenarioName
    micro_batch_size: int
    sequences: int
    warmup: int
    steps: int
    limit: float
    expected: Expected | None


class Trial(Record):
    """Outcome of one trial. ``number`` counts the baseline's trials from 1; ``reason`` explains a missing result."""

    baseline: str
    number: int
    status: Status
    reason: str = ""
    result: BenchResult | None = None
