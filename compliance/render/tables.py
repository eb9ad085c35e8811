"""Tables and lists of terms of the HTML and Markdown report, as formatted text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..findings import Official, Rcp, RcpTest, RunSummary, SetResult, Spread, Variance
from .formatting import NOTHING, common_folder, energy_units, group_by, number, places, run_ranges, system_name
from .plot_parts import phase_bars, rate_summary

Cell = Callable[[RunSummary], str]
MAX_EVALUATIONS = 200  # rows of the table of losses; a run has about twenty evaluations


@dataclass(frozen=True)
class Table:
    """A table of formatted text.

    Attributes:
        columns: titles.
        rows: cells.
        numeric: indices of the columns that are aligned to the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()


def score_terms(result: SetResult) -> list[tuple[str, str]]:
    """Return the parts of the score as (term, value)."""
    score = result.score
    if score is None:
        return []
    numbers = {run.file: n for n, run in enumerate(result.runs, 1)}
    window = [numbers[file] for file in score.window if file in numbers]
    dropped = [
        f"run {numbers[file]} ({which})"
        for which, file in zip(("fastest", "slowest"), score.dropped, strict=False)
        if file in numbers
    ]
    energy = result.energy
    joules = (
        ("Energy, mean of the same runs", None if energy is None else energy.olympic_joules),
        ("Energy, normalised", None if energy is None else energy.normalized_joules),
    )
    pace = result.seconds_per_sample
    parts = [
        ("Normalised", score.normalized_minutes, 3, " minutes"),
        ("Raw: olympic mean of run_start to run_stop", score.olympic_minutes, 3, " minutes"),
        ("Normalisation factor", score.normalization, 6, ""),
        ("Olympic mean to the first passing evaluation", score.olympic_minutes_to_target, 3, " minutes"),
        ("Olympic mean of samples to target", score.olympic_samples, 1, ""),
        ("Seconds per sample", pace, 4, f" ({number(1 / pace, 2)} samples per second)" if pace else ""),
    ]
    return [
        ("System", system_name(result)),
        ("Accelerators" if result.system else "Ranks, by the logged sizes", number(result.accelerators)),
        *((term, number(value, digits) + unit) for term, value, digits, unit in parts if value is not None),
        *((term, "{} kJ, {} kWh".format(*energy_units(value))) for term, value in joules if value is not None),
        ("Window, by start time", f"runs {run_ranges(window)}" if window else NOTHING),
        ("Dropped from it", ", ".join(dropped) or NOTHING),
    ]


def runs_table(runs: Sequence[RunSummary]) -> tuple[list[tuple[str, str]], Table | None]:
    """Return the values that all runs share as (term, value), and a table of the others; no table without runs."""
    folder = common_folder(runs)
    always: dict[str, Cell] = {
        "File": lambda run: run.file[len(folder) + 1 :] if folder else run.file,
        "Status": lambda run: run.status.replace("_", " "),
        "Seed": lambda run: str(run.seed) if run.seed is not None else NOTHING,
        "Samples to target": lambda run: number(run.samples_to_target),
        "Minutes": lambda run: number(run.minutes, 3),
        "Minutes to target": lambda run: number(run.minutes_to_target, 3),
        "Final loss": lambda run: number(run.final_eval_loss, 4),
    }
    shareable: dict[str, Cell] = {
        "Folder": lambda _: folder or NOTHING,
        "Platform": lambda run: run.platform or NOTHING,
        "Organisation": lambda run: run.organisation or NOTHING,
        "Division": lambda run: run.division or NOTHING,
        "Global batch size": lambda run: number(run.global_batch_size),
        "Learning rate": lambda run: f"{run.learning_rate:g}" if run.learning_rate is not None else NOTHING,
        "Warm-up steps": lambda run: number(run.warmup_steps),
        "Target loss": lambda run: f"{run.target:g}",
    }
    if not runs:
        return [], None
    shared = {name: cell(runs[0]) for name, cell in shareable.items() if len({cell(run) for run in runs}) == 1}
    differing = {name: cell for name, cell in shareable.items() if name not in shared}
    return list(shared.items()), _by_run({**always, **differing}, runs, 3)


def phases_table(runs: Sequence[RunSummary]) -> Table | None:
    """Return the numbers behind the pictures of learning rate and time; None without runs."""

    def total(run: RunSummary, phase: str) -> str:
        return number(sum(length for _, length in phase_bars(run).get(phase, [])), 1)

    cells: dict[str, Cell] = {
        "Minutes of init": lambda run: total(run, "init"),
        "Of training": lambda run: total(run, "training"),
        "Of evaluation": lambda run: total(run, "evaluation"),
        "Evaluations": lambda run: number(len(run.evaluations)),
        "First loss": lambda run: number(run.first_eval_loss, 4),
        "Logged s per step": lambda run: number(run.tracked.get("step_s"), 4),
        "Logged samples per s": lambda run: number(_logged_speed(run), 2),
        "Logged s per evaluation": lambda run: number(run.tracked.get("validation_s"), 2),
        "Largest rate": lambda run: rate_summary(run)[0],
        "Largest relative difference": lambda run: rate_summary(run)[1],
    }
    empty = {name for name, cell in cells.items() if name.startswith("Logged") and {*map(cell, runs)} <= {NOTHING}}
    return _by_run({name: cell for name, cell in cells.items() if name not in empty}, runs, 1) if runs else None


def _logged_speed(run: RunSummary) -> float | None:
    """Return the logged samples per second, or those of the logged step time."""
    step, batch = run.tracked.get("step_s"), run.global_batch_size
    return run.tracked.get("throughput", batch / step if step and batch else None)


def evaluations_table(runs: Sequence[RunSummary]) -> Table | None:
    """Return losses by training samples, a column per run; None without evaluations."""
    losses = [{point.samples: f"{point.loss:.4f}" for point in reversed(run.evaluations)} for run in runs]
    rows = [
        (number(samples), *(by_samples.get(samples, NOTHING) for by_samples in losses))
        for samples in sorted({samples for by_samples in losses for samples in by_samples})
    ]
    columns = ("Samples", *(f"Run {n}" for n in range(1, len(runs) + 1)))
    cut = [("...",) * len(columns)] if len(rows) > MAX_EVALUATIONS else []
    return Table(columns, cut + rows[-MAX_EVALUATIONS:], frozenset(range(len(columns)))) if rows else None


def _by_run(cells: dict[str, Cell], runs: Sequence[RunSummary], texts: int) -> Table:
    """Return a table with a numbered row per run, whose columns from index ``texts`` on are numeric."""
    rows = [(str(n), *(cell(run) for cell in cells.values())) for n, run in enumerate(runs, 1)]
    return Table(("Run", *cells), rows, frozenset(range(texts, len(cells) + 1)))


def variance_table(variance: Variance | None) -> Table | None:
    """Return the variance of samples to target and of minutes; None if neither is known."""
    if variance is None or (variance.samples is None and variance.minutes is None):
        return None
    limit = variance.limit_percent
    terms: dict[str, Callable[[Spread], str]] = {
        "Runs": lambda spread: number(spread.runs),
        "Mean": lambda spread: number(spread.mean, 2),
        "Standard deviation": lambda spread: number(spread.sd, 2),
        "Coefficient of variation (CV)": lambda spread: f"{number(spread.cv_percent, 3)} %",
        "Limit of the CV": lambda spread: f"{limit:g} %, {'exceeded' if spread.cv_percent > limit else 'kept'}",
        "Smallest": lambda spread: number(spread.minimum, 2),
        "Largest": lambda spread: number(spread.maximum, 2),
        "Quantum": lambda spread: number(spread.quantum),
        "Quantum of the mean": lambda s: NOTHING if s.quantum_percent is None else f"{number(s.quantum_percent, 2)} %",
    }
    spreads = (variance.samples, variance.minutes)
    rows = [(term, *(cell(spread) if spread else NOTHING for spread in spreads)) for term, cell in terms.items()]
    return Table(("", "Samples to target", "Minutes"), rows, frozenset({1, 2}))


def rcp_table(rcp: Rcp | None) -> Table | None:
    """Return the RCP test, with a column for the pruned and one for the full RCPs; None without a test."""
    if rcp is None:
        return None
    outcome = {True: "passed", False: "failed", None: "nothing to test"}
    terms: dict[str, Callable[[RcpTest], str]] = {
        "RCP": lambda test: test.kind,
        "Its mean": lambda test: number(test.mean, 3),
        "Smallest accepted mean": lambda test: number(test.minimum, 3),
        "Olympic mean of the set": lambda test: number(test.submission_mean, 3),
        "Margin": lambda test: number(test.margin_samples, 3),
        "Normalisation factor": lambda test: number(test.normalization, 6),
        "Outcome": lambda test: outcome[test.passed],
    }
    rows = [(term, cell(rcp.pruned), cell(rcp.full)) for term, cell in terms.items()]
    return Table((f"Global batch size {rcp.global_batch_size:,}", "Pruned (decides)", "Full"), rows, frozenset({1, 2}))


def energy_table(result: SetResult) -> Table | None:
    """Return the energy of each run, numbered in the order of the runs; None without power logs."""
    if result.energy is None:
        return None
    numbers = {run.file: (n, run.minutes) for n, run in enumerate(result.runs, 1)}
    rows = []
    for energy in sorted(result.energy.runs, key=lambda each: numbers[each.file]):
        n, minutes = numbers[energy.file]
        watts = energy.joules / (60 * minutes) if energy.joules is not None and minutes else None
        counts = (energy.nodes, energy.switches, energy.readings, energy.missing)
        rows.append((str(n), *energy_units(energy.joules), number(watts, 1), *map(number, counts)))
    columns = ("Run", "kJ", "kWh", "Mean W", "Nodes", "Switches", "Readings", "Missing samples")
    return Table(columns, rows, frozenset(range(1, len(columns))))


def official_tables(official: Official) -> dict[str, Any]:
    """Return the official verdicts. Files with the same verdict and messages of a tool share a row."""
    by_verdict = group_by(official.results, lambda each: (each.tool, each.verdict, each.decides, each.messages))
    differ = group_by(official.divergences, lambda each: (each.tool, each.ours, each.official, each.reason))
    results = []
    for (tool, verdict, decides, messages), same in by_verdict:
        seconds = number(sum(each.seconds for each in same), 1)
        subjects = places(each.subject for each in same)
        shown = verdict if decides or verdict == "pass" else f"{verdict} (does not decide)"
        results.append((tool, subjects, shown, seconds, "; ".join(messages) or NOTHING))
    divergences = [(tool, places(each.subject for each in same), *outcome) for (tool, *outcome), same in differ]
    return {
        "version": official.version,
        "verdict": official.verdict,
        "results": Table(("Tool", "Subject", "Verdict", "Seconds", "Messages"), results, frozenset({3})),
        "divergences": Table(("Tool", "Subject", "Ours", "Theirs", "Reason"), divergences),
    }
