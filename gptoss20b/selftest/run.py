"""The self-test of a run: check every piece on every rank, switch to another kernel or refuse to start.

All ranks take the same decision. A run on a CPU skips it by default: the tests of this project check the CPU's kernels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from ..config import Config
from ..model.backend import Backend
from ..stopping import SelfTestError


@dataclass(frozen=True)
class Outcome:
    """Result of one piece on this rank.

    Attributes:
        errors: relative error of each comparison, by its name.
        tolerance: the largest error of a right kernel.
        fix: what a person can do about a failure.
        crash: the error that the piece raised, or None.
    """

    errors: Mapping[str, float]
    tolerance: float
    fix: str
    crash: str | None = None

    @property
    def worst(self) -> float:
        """The largest error; NaN if one is NaN."""
        return max(self.errors.values(), key=lambda error: (math.isnan(error), error), default=0.0)

    @property
    def failure(self) -> str | None:
        """Measured and expected error of the comparisons that fail, or the error of the piece; None if it passed."""
        if self.crash is not None:
            return self.crash
        wrong = {name: error for name, error in self.errors.items() if not error <= self.tolerance}
        if not wrong:
            return None
        measured = ", ".join(f"{name} {error:.2g}" for name, error in wrong.items())
        return f"relative error of {measured}, expected at most {self.tolerance:g}"


@dataclass(frozen=True)
class SelfTest:
    """Result of the self-test on this rank.

    Attributes:
        config: the run's configuration with kernels that passed.
        outcomes: of every piece, by its name. Empty if the self-test was skipped.
        warnings: a sentence for each kernel that failed and was replaced.
        seconds: duration.
    """

    config: Config
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return the entry of config.json: the largest relative error of each piece on rank 0."""
        if not self.outcomes:
            return {}
        errors = {name: outcome.worst for name, outcome in self.outcomes.items()}
        return {"self_test": {"seconds": round(self.seconds, 3), "errors": errors, "warnings": list(self.warnings)}}


def run_self_test(config: Config, backend: Backend, device: torch.device) -> SelfTest:
    """Check the kernels of this run on this device. A collective, if there are process groups.

    Raises:
        SelfTestError: a piece is wrong on a rank, and there is no other kernel for it. Raised on all ranks.
    """
    enabled = config.execution.self_test
    if not (device.type == "cuda" if enabled is None else enabled):
        return SelfTest(config)
    from . import plan  # imports Megatron-Core

    began, warnings = time.monotonic(), []
    with _restore_state(device):
        subject = plan.make_subject(config, device)
        settings = plan.attention_settings(config, subject)
        outcomes = measure(plan.list_pieces(config, backend, subject, settings[0]))
        failures = _gather_failures(outcomes)
        while plan.FULL_ATTENTION in failures and settings[1:]:
            settings = settings[1:]
            warnings.append(
                f"self-test: {failures.pop(plan.FULL_ATTENTION)}; the run continues with ATTENTION_KERNEL={settings[0]}"
            )
            again = measure([plan.full_attention(config, subject, settings[0])])
            outcomes |= again
            failures |= _gather_failures(again)
    if failures:
        raise SelfTestError("; ".join(failures.values()))
    execution = config.execution.model_copy(update={"attention_kernel": settings[0]})
    tested = config.model_copy(update={"execution": execution})
    return SelfTest(tested, outcomes, warnings, time.monotonic() - began)


def compare_attention(config: Config, device: torch.device) -> dict[str, Outcome]:
    """Check every kernel of full layers without sinks, also those that this run does not use, by ATTENTION_KERNEL."""
    from . import plan

    names = ("flash", "flex") if torch.version.hip is not None else ("cudnn", "flash", "flex")
    with _restore_state(device):
        subject = plan.make_subject(config, device)
        return {
            name: outcome
            for name in names
            for outcome in measure([plan.full_attention(config, subject, name)]).values()
        }


def measure(pieces: Iterable[Any]) -> dict[str, Outcome]:
    """Run pieces (`plan.Piece`), and return their outcomes by name. An error of a piece is its outcome."""
    outcomes = {}
    for piece in pieces:
        try:
            comparisons = list(piece.check())
            values = torch.stack([each.relative_error() for each in comparisons]).tolist()
            names = [each.name for each in comparisons]
            outcomes[piece.name] = Outcome(dict(zip(names, values, strict=True)), piece.tolerance, piece.fix)
        except Exception as error:
            crash = f"{type(error).__name__}: {error}".splitlines()[0]
            outcomes[piece.name] = Outcome({}, piece.tolerance, piece.fix, crash)
    return outcomes


def _gather_failures(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """Return a sentence for each piece that failed on any rank, from the first such rank. A collective."""
    failures = {
        name: f"{name}: {outcome.failure}{_place()}. To fix: {outcome.fix}"
        for name, outcome in outcomes.items()
        if outcome.failure is not None
    }
    if not dist.is_initialized():
        return failures
    gathered = [failures] * dist.get_world_size()
    dist.all_gather_object(gathered, failures)
    # Later ones are overwritten: the first rank's sentence stays, and pieces keep their order on all ranks.
    merged = {name: text for each in reversed(gathered) for name, text in each.items()}
    return {name: merged[name] for name in outcomes if name in merged}


def _place() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f" on rank {dist.get_rank()} ({device})" if dist.is_initialized() else f" ({device})"


@contextmanager
def _restore_state(device: torch.device) -> Iterator[None]:
    """Leave random states, the compiler and the allocator as before: the run starts as without a self-test."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        yield
    if on_gpu:
        from ..model.flex import window_block_mask

        # Else the run's own sizes would be second ones, and torch would compile its kernels for any size.
        torch.compiler.reset()
        window_block_mask.cache_clear()
        torch.cuda.empty_cache()
