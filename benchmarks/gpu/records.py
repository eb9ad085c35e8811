"""Settings of a comparison; request and outcome of a trial, which `compare` and `trial` exchange as JSON files."""

from __future__ import annotations

from typing import Literal

from gptoss20b.tools.bench.result import BenchResult, Outcome, Record
from gptoss20b.tools.bench.scenarios import ScenarioName

Status = Literal["measured", "refused", "out of memory", "not available", "failed"]


class Settings(Record):
    """Settings that all trials of a comparison share."""

    scenario: ScenarioName
    sequences: int
    warmup: int
    steps: int


class Request(Settings):
    """One trial to run.

    Attributes:
        baseline: key of BASELINES.
        limit: `bench.measure.Timing.limit`.
        expected: our first step, which a baseline must reproduce before it is timed; None for ours.
    """

    baseline: str
    micro_batch_size: int
    limit: float
    expected: Outcome | None


class Trial(Record):
    """Outcome of one trial. ``number`` counts the baseline's trials from 1; ``reason`` explains a missing result."""

    baseline: str
    number: int
    status: Status
    reason: str = ""
    result: BenchResult | None = None
