"""Read the trials of a set from the files of the launchers: `trials.tsv`, `result_<i>.txt` and `trial_<i>/`."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from .result import Result, read_result
from .stopping import ExitCode

_COLUMNS = ("trial", "seed", "started", "seconds", "status")

# Statuses of a trial whose training ended. The launchers repeat a trial with any other status.
_TRAINING_ENDED = (ExitCode.CONVERGED, ExitCode.NOT_CONVERGED, ExitCode.DIVERGED, ExitCode.NOT_COMPLIANT)


@dataclass(frozen=True)
class Trial:
    """Last attempt of one trial; seed and status are None before the first, the result without a log.

    A result recovered from the log is not an attempt.
    """

    number: int
    attempts: int
    seed: int | None
    status: int | None
    result: Result | None

    @property
    def outcome(self) -> str:
        """Return the status in words: converged, not converged, ..., or missing."""
        if self.status is None:
            return "missing"
        if self.status in list(ExitCode):
            return ExitCode(self.status).name.lower().replace("_", " ")
        return f"failed ({self.status})"


def read_trials(folder: Path, count: int) -> list[Trial]:
    """Return trials 1 to ``count`` of a set. Skip invalid rows of `trials.tsv` with a warning on stderr.

    Raises:
        OSError: the folder has no `trials.tsv`.
    """
    attempts: dict[int, list[tuple[int, int, bool]]] = {}
    with (folder / "trials.tsv").open(encoding="utf-8", errors="replace", newline="") as lines:
        for row in csv.DictReader(lines, _COLUMNS, delimiter="\t"):
            if row["trial"] == _COLUMNS[0]:
                continue
            try:
                number, seed, status = (int(row[name]) for name in ("trial", "seed", "status"))
            except (TypeError, ValueError):
                # A full disk may have truncated the row. The trial's log still has its outcome.
                got = " ".join(str(value) for value in row.values() if value)
                print(f"warning: {lines.name}: skipped '{got}', expected {', '.join(_COLUMNS)}", file=sys.stderr)
                continue
            # The launchers write "-" for a result that they recovered from the log.
            attempts.setdefault(number, []).append((seed, status, row["started"] != "-"))
    return [_build_trial(folder, number, attempts.get(number, [])) for number in range(1, count + 1)]


def _build_trial(folder: Path, number: int, attempts: list[tuple[int, int, bool]]) -> Trial:
    log = folder / f"trial_{number}" / "result_0.txt"
    result = read_result(log) if log.exists() else None
    seed, status = attempts[-1][:2] if attempts else (None, None)
    if status not in _TRAINING_ENDED and (folder / f"result_{number}.txt").exists() and result is not None:
        # The row could not be written, but the launcher published the result, so the training ended.
        status = result.exit_code
    # A killed launcher has written no row, and a resumed trial keeps its folder.
    folders = len(list(folder.glob(f"trial_{number}_attempt_*"))) + (folder / f"trial_{number}").exists()
    rows = sum(started for _, _, started in attempts)
    return Trial(number, max(rows, folders), seed, status, result)


def exit_code_of_set(trials: list[Trial]) -> ExitCode:
    """Return 0 if all trials converged, else 1 if one failed or is missing, else 5, else 3."""
    statuses = {trial.status for trial in trials}
    if not statuses <= set(_TRAINING_ENDED):
        return ExitCode.FAILED
    if ExitCode.NOT_COMPLIANT in statuses:
        return ExitCode.NOT_COMPLIANT
    return ExitCode.CONVERGED if statuses == {ExitCode.CONVERGED} else ExitCode.NOT_CONVERGED


def count_outcomes(folder: Path, trials: list[Trial]) -> str:
    """Return the heading of the table: the outcomes of the trials, with their numbers."""
    outcomes = Counter(trial.outcome for trial in trials)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return f"{len(trials)} trials in {folder}: {counts}"


def build_table(trials: list[Trial]) -> Table:
    """Return a table with one row per trial."""
    table = Table()
    for name in ("trial", "seed", "minutes", "samples", "final loss", "attempts"):
        table.add_column(name, justify="right")
    table.add_column("outcome")
    for trial in trials:
        seed = "" if trial.seed is None else str(trial.seed)
        *figures, reason = _format_result(trial.result) if trial.result else ("", "", "", "")
        table.add_row(str(trial.number), seed, *figures, str(trial.attempts), trial.outcome + reason)
    return table


def _format_result(result: Result) -> tuple[str, str, str, str]:
    """Return minutes, samples, loss and reason as text."""
    minutes = "" if result.minutes is None else f"{result.minutes:.3f}"
    loss = "" if result.loss is None else f"{result.loss:.4f}"
    reason = f"{result.status}, {result.reason}" if result.status.startswith("unfinished") else result.reason
    return minutes, f"{result.samples:,}", loss, f": {reason}" if reason else ""
