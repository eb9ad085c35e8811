"""How a run ended, read back from its log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .stopping import ExitCode, exit_code_of

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
        return exit_code_of(self.status, self.reason)

    def __str__(self) -> str:
        no_time = "clock not stopped" if self.status == "unfinished" else "clock not started"
        minutes = no_time if self.minutes is None else f"{self.minutes:.3f} min"
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
        for event in filter(None, map(_record, lines)):
            events[event["key"]] = event
            samples = event["metadata"].get("samples_count", samples)
    start, stop, evaluation = (events.get(key) for key in ("run_start", "run_stop", "eval_accuracy"))
    loss = evaluation.get("value") if evaluation else None
    if stop is None:
        reason = "no run_stop: the process that writes the log was killed, or is still running"
        return Result("unfinished", None, samples, loss, reason, log)
    minutes = (stop["time_ms"] - start["time_ms"]) / 60_000 if start else None
    detail = stop["metadata"]
    return Result(detail.get("status", "aborted"), minutes, samples, loss, detail.get("reason"), log)


def _record(line: str) -> dict[str, Any] | None:
    """The record on a line; None for other text, and for a record cut short by the death of its writer."""
    if not line.startswith(_PREFIX):
        return None
    try:
        event = json.loads(line[len(_PREFIX) :])
    except json.JSONDecodeError:
        return None
    fields = {"key": str, "time_ms": int, "metadata": dict}
    whole = isinstance(event, dict) and all(isinstance(event.get(name), kind) for name, kind in fields.items())
    return event if whole else None
