"""Read the outcome of a run from its log."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .stopping import ExitCode, exit_code_for

_UNFINISHED = "unfinished"
_PREFIX = ":::MLLOG "
# A file system without room for a block is full.
_BLOCK_BYTES = 4096
_FIELD_TYPES = {"key": str, "time_ms": int, "metadata": dict}


@dataclass(frozen=True)
class Result:
    """Outcome of one run: minutes from run_start to run_stop, and the last evaluation's loss in nats per token.

    ``status`` is "success", "aborted", or, without a run_stop, "unfinished" or "unfinished before run_start".
    ``reason`` is None after a success.
    """

    status: str
    minutes: float | None
    samples: int
    loss: float | None
    reason: str | None
    path: Path

    @property
    def exit_code(self) -> ExitCode:
        """Return the exit status of a run with this log."""
        return exit_code_for(self.status, self.reason)

    def __str__(self) -> str:
        no_time = "clock not stopped" if self.status == _UNFINISHED else "clock not started"
        minutes = no_time if self.minutes is None else f"{self.minutes:.3f} min"
        loss = "no evaluation" if self.loss is None else f"final loss {self.loss:.4f}"
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.status}{reason}: {minutes}, {self.samples:,} samples, {loss}, log {self.path}"


def read_result(path: Path) -> Result:
    """Read the outcome from a result file, or from result_0.txt in a folder.

    Raises:
        OSError: the log does not exist.
    """
    log = path / "result_0.txt" if path.is_dir() else path
    last: dict[str, dict[str, Any]] = {}
    samples = 0
    with log.open(encoding="utf-8", errors="replace") as lines:
        for record in filter(None, map(_parse_record, lines)):
            last[record["key"]] = record
            samples = record["metadata"].get("samples_count", samples)
    start, stop, evaluation = (last.get(key) for key in ("run_start", "run_stop", "eval_accuracy"))
    loss = evaluation.get("value") if evaluation else None
    if stop is None:
        status = _UNFINISHED if start else f"{_UNFINISHED} before run_start"
        return Result(status, None, samples, loss, f"no run_stop: {_explain_missing_stop(log)}", log)
    minutes = (stop["time_ms"] - start["time_ms"]) / 60_000 if start else None
    metadata = stop["metadata"]
    return Result(metadata.get("status", "aborted"), minutes, samples, loss, metadata.get("reason"), log)


def _explain_missing_stop(log: Path) -> str:
    if shutil.disk_usage(log.parent).free < _BLOCK_BYTES:
        return "the disk of LOGDIR is full"
    return "rank 0 was killed, or is still running"


def _parse_record(line: str) -> dict[str, Any] | None:
    """Return the record of a line, or None for other output and for a truncated record."""
    if not line.startswith(_PREFIX):
        return None
    try:
        record = json.loads(line[len(_PREFIX) :])
    except json.JSONDecodeError:
        return None
    valid = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in _FIELD_TYPES.items())
    return record if valid else None
