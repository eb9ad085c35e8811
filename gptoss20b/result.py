"""How a run ended, read back from its log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .stopping import ExitCode

_PREFIX = ":::MLLOG "


@dataclass(frozen=True)
class Result:
    """One run's outcome.

    Attributes:
        status: "success", "aborted", or "unfinished" when the log has no run_stop.
        minutes: run_start to run_stop, None if either is missing.
        samples: training sequences at the end.
        loss: last evaluation loss in nats per token, None before the first.
        reason: why an aborted run ended.
        path: the log.
    """

    status: str
    minutes: float | None
    samples: int
    loss: float | None
    reason: str | None
    path: Path

    @property
    def exit_code(self) -> ExitCode:
        """The exit status that a run with this log had."""
        if self.status == "success":
            return ExitCode.CONVERGED
        return ExitCode.NOT_CONVERGED if self.reason and "not reached" in self.reason else ExitCode.FAILED

    def __str__(self) -> str:
        minutes = "clock not started" if self.minutes is None else f"{self.minutes:.3f} min"
        loss = "no evaluation" if self.loss is None else f"final loss {self.loss:.4f}"
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.status}{why}: {minutes}, {self.samples:,} samples, {loss}, log {self.path}"


def read_result(path: Path) -> Result:
    """Read the outcome from a result file, or from result_0.txt in a result folder.

    Raises:
        OSError: no such log.
    """
    log = path / "result_0.txt" if path.is_dir() else path
    events: dict[str, dict[str, Any]] = {}
    samples = 0
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.startswith(_PREFIX):
                continue
            try:
                event = json.loads(line[len(_PREFIX) :])
            except json.JSONDecodeError:
                continue  # a line cut short by the death of its writer
            events[event["key"]] = event
            samples = event["metadata"].get("samples_count", samples)
    start, stop, evaluation = (events.get(key) for key in ("run_start", "run_stop", "eval_accuracy"))
    loss = evaluation["value"] if evaluation else None
    if stop is None:
        reason = "no run_stop: the process that writes the log was killed, or is still running"
        return Result("unfinished", None, samples, loss, reason, log)
    minutes = (stop["time_ms"] - start["time_ms"]) / 60_000 if start else None
    detail = stop["metadata"]
    return Result(detail["status"], minutes, samples, loss, detail.get("reason"), log)
