"""What is asked of a baseline, and what came of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from gptoss20b.tools.bench.result import BenchResult
from gptoss20b.tools.bench.scenarios import Name

Status = Literal["measured", "refused", "out of memory", "not available", "failed"]


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Expected(Record):
    """What a baseline must compute before it is timed: ours, and how far a peer may be from it (relative).

    `norms` are those of the gradients by kind of tensor; ``norm_tolerance`` is for `grad_norm` too.
    """

    loss: float
    grad_norm: float
    norms: dict[str, float]
    loss_tolerance: float
    norm_tolerance: float


class Request(Record):
    """What to run. ``baseline`` is a key of BASELINES; ``limit`` seconds of timed steps, `bench.measure.Timing`."""

    baseline: str
    scenario: Name
    micro_batch_size: int
    sequences: int
    warmup: int
    steps: int
    limit: float
    expected: Expected | None


class Trial(Record):
    """What came of a trial. ``reason`` says why there is no result; ``number`` counts the baseline's trials from 1."""

    baseline: str
    number: int
    status: Status
    reason: str = ""
    result: BenchResult | None = None
