"""The trials of one set, as the launchers leave them: a folder with `trials.tsv`, `result_<i>.txt` and `trial_<i>/`."""

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

# Statuses of a trial whose log says how training ended; any other was cut short, and a second start repeats it.
_ENDED = (ExitCode.CONVERGED, ExitCode.NOT_CONVERGED, ExitCode.DIVERGED, ExitCode.NOT_COMPLIANT)


@dataclass(frozen=True)
class Trial:
    """One trial's last attempt.

    Attributes:
        number: from 1.
        attempts: how often it was started; an adopted log counts as none.
        seed: its seed, None before the first attempt.
        status: exit status of the last attempt, None before the first.
        result: what its log says, None without a log.
    """

    number: int
    attempts: int
    seed: int | None
    status: int | None
    result: Result | None

    @property
    def outcome(self) -> str:
        """In words: converged, not converged, ..., or missing."""
        if self.status is None:
            return "missing"
        known = {code.value: code.name.lower().replace("_", " ") for code in ExitCode}
        return known.get(self.status, f"failed ({self.status})")


def read_trials(folder: Path, count: int) -> list[Trial]:
    """Trials 1 to ``count`` of a set. A line of `trials.tsv` that no launcher writes is left out, with a warning.

    Raises:
        OSError: no `trials.tsv` there.
    """
    attempts: dict[int, list[tuple[int, int, bool]]] = {}
    with (folder / "trials.tsv").open(encoding="utf-8", errors="replace", newline="") as lines:
        for row in csv.DictReader(lines, _COLUMNS, delimiter="\t"):
            if row["trial"] == _COLUMNS[0]:
                continue
            try:
                number, seed, status = (int(row[name]) for name in ("trial", "seed", "status"))
            except (TypeError, ValueError):
                # Most likely the disk was full. What else the file says still holds, and the trial's log says the rest.
                got = " ".join(str(value) for value in row.values() if value)
                print(
                    f"warning: {lines.name}: got '{got}', expected {', '.join(_COLUMNS)}; left out",
                    file=sys.stderr,
                )
                continue
            attempts.setdefault(number, []).append((seed, status, row["started"] != "-"))
    return [_trial(folder, number, attempts.get(number, [])) for number in range(1, count + 1)]


def _trial(folder: Path, number: int, attempts: list[tuple[int, int, bool]]) -> Trial:
    log = folder / f"trial_{number}" / "result_0.txt"
    result = read_result(log) if log.exists() else None
    seed, status = attempts[-1][:2] if attempts else (None, None)
    if status not in _ENDED and (folder / f"result_{number}.txt").exists() and result is not None:
        # Its line could not be written; the launchers keep a log only if it says how training ended.
        status = result.exit_code
    return Trial(number, sum(started for _, _, started in attempts), seed, status, result)


def exit_code_of_set(trials: list[Trial]) -> ExitCode:
    """0 if all converged, else the gravest: 1 for a trial that failed or is missing, then 5, then 3."""
    statuses = {trial.status for trial in trials}
    if not statuses <= set(_ENDED):
        return ExitCode.FAILED
    if ExitCode.NOT_COMPLIANT in statuses:
        return ExitCode.NOT_COMPLIANT
    return ExitCode.CONVERGED if statuses == {ExitCode.CONVERGED} else ExitCode.NOT_CONVERGED


def summary(folder: Path, trials: list[Trial]) -> Table:
    """A table of the trials: one row each, and the count of every outcome."""
    outcomes = Counter(trial.outcome for trial in trials)
    counted = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    table = Table(title=f"{len(trials)} trials in {folder}: {counted}", title_justify="left", min_width=100)
    for name in ("trial", "seed", "minutes", "samples", "final loss", "attempts"):
        table.add_column(name, justify="right")
    table.add_column("outcome")
    for trial in trials:
        table.add_row(*_cells(trial))
    return table


def _cells(trial: Trial) -> list[str]:
    result = trial.result
    minutes = "" if result is None or result.minutes is None else f"{result.minutes:.3f}"
    samples = "" if result is None else f"{result.samples:,}"
    loss = "" if result is None or result.loss is None else f"{result.loss:.4f}"
    why = f": {result.reason}" if result is not None and result.reason else ""
    seed = "" if trial.seed is None else str(trial.seed)
    return [str(trial.number), seed, minutes, samples, loss, str(trial.attempts), trial.outcome + why]
