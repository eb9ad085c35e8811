"""Our step and its baselines on one GPU: `python -m benchmarks.gpu.compare --scenario S1 --out FOLDER`.

Each baseline runs in a separate process, one after the other, on the same tokens and weights. Its first loss and
gradient norms must be ours before it is timed. The best baseline and ours then have a second trial each, so these two
are timed in the order A, B, B, A. FOLDER holds every finished trial.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from gptoss20b.durable import atomic_write
from gptoss20b.run_metadata import versions
from gptoss20b.tools.bench.scenarios import SCENARIOS, ScenarioName

from .baselines import BASELINES, Attempt, Baseline, attempts
from .results import Comparison, Request, Settings, Trial
from .table import markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "results.json"
# Seconds for the timed steps of one kind, with or without the optimizer: 20 steps of 1.5 s.
STEPS_LIMIT_S = 30.0
_LOGS = "logs"


class Session:
    """The trials of a comparison, which run into an existing folder."""

    def __init__(self, folder: Path, comparison: Comparison) -> None:
        self.folder, self.comparison = folder, comparison

    def first_trials(self, names: list[str]) -> None:
        """Run all first trials. A baseline runs only if our trial of its architecture has a result."""
        for name in (name for name in BASELINES if name in names):
            ours = self.comparison.our_trial(BASELINES[name].variant)
            if BASELINES[name].is_ours or (ours and ours.result):
                self.run_trial(name, 1)

    def second_trials(self) -> None:
        """Run the best baseline once more, then ours."""
        best = self.comparison.best_baseline()
        if best is None:
            return
        variant = BASELINES[best].variant
        self.run_trial(best, 2)
        self.run_trial(next(name for name, each in BASELINES.items() if each.is_ours and each.variant == variant), 2)

    def run_trial(self, name: str, number: int) -> None:
        """Run a baseline with the first attempt that fits, and keep the trial."""
        for attempt in self._attempts(name, number):
            recompute = attempt.recompute or "as set"
            print(f"{name}, trial {number}: micro batch {attempt.micro_batch_size}, RECOMPUTE {recompute}")
            trial = self._run(name, number, attempt)
            if trial.status != "out of memory":
                break
        print(f"  {trial.status} {trial.reason}")
        self.comparison.trials.append(trial)
        atomic_write(self.folder / RESULTS, self.comparison.model_dump_json(indent=2) + "\n")

    def _attempts(self, name: str, number: int) -> list[Attempt]:
        first = self.comparison.trial(name, 1)
        if number > 1 and first and first.result:
            return [Attempt(first.result.micro_batch_size, first.result.recompute)]
        return attempts(BASELINES[name], self.comparison.sequences)

    def _run(self, name: str, number: int, attempt: Attempt) -> Trial:
        logs = self.folder / _LOGS
        logs.mkdir(exist_ok=True)
        request, outcome = logs / "request.json", logs / "outcome.json"
        outcome.unlink(missing_ok=True)
        request.write_text(self._request(name, attempt).model_dump_json(), encoding="utf-8")
        with (logs / f"{name}-{number}.log").open("w", encoding="utf-8") as log:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.gpu.trial", request.resolve(), outcome.resolve(), str(number)],
                cwd=ROOT,
                env=os.environ | _environment(BASELINES[name], attempt),
                check=False,
                stdout=log,
                stderr=log,
            )
        if outcome.exists():
            return Trial.model_validate_json(outcome.read_text(encoding="utf-8"))
        return Trial(baseline=name, number=number, status="failed", reason=f"its process ended; see {log.name}")

    def _request(self, name: str, attempt: Attempt) -> Request:
        ours = self.comparison.our_trial(BASELINES[name].variant)
        return Request(
            **self.comparison.model_dump(include=set(Settings.model_fields)),
            baseline=name,
            micro_batch_size=attempt.micro_batch_size,
            limit=STEPS_LIMIT_S,
            expected=ours.result.outcome if ours and ours.result else None,
        )


def _environment(baseline: Baseline, attempt: Attempt) -> dict[str, str]:
    # transformers' model ignores these settings, so its results must not carry other values of them.
    plain = {"RECOMPUTE": "none", "COMPILE": "kernels"} if baseline.backend is None else {}
    return plain | ({"RECOMPUTE": attempt.recompute} if attempt.recompute else {})


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results, without those of another comparison.")],
    scenario: Annotated[ScenarioName, typer.Option(help="S1, S3 or tiny.")] = "S1",
    only: Annotated[str, typer.Option(help="Baselines, with commas; ours comes with them.")] = ",".join(BASELINES),
    sequences: Annotated[int, typer.Option(min=0, help="Sequences per step; the scenario's if 0.")] = 0,
    warmup: Annotated[int, typer.Option(min=1, help="Warm-up steps.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps; fewer where they take more than 30 s.")] = 20,
) -> None:
    """Compare this project's training step with its baselines."""
    names = only.split(",")
    if unknown := set(names) - set(BASELINES):
        raise typer.BadParameter(f"--only: got {', '.join(sorted(unknown))}, expected some of {', '.join(BASELINES)}")
    if not SCENARIOS[scenario].has_optimizer:
        raise typer.BadParameter(
            f"--scenario: got {scenario}, which has no optimizer. Use `python -m gptoss20b bench`."
        )
    if (out / RESULTS).exists():
        raise typer.BadParameter(f"--out: {out} has the results of another comparison. Name another folder.")
    variants = {BASELINES[name].variant for name in names}
    names += [name for name, each in BASELINES.items() if each.is_ours and each.variant in variants]
    # torch names its local build tag, which the package metadata may lack.
    found = versions("triton", "transformers") | {"torch": torch.__version__}
    comparison = Comparison(
        scenario=scenario,
        sequences=sequences or SCENARIOS[scenario].micro_batch_size,
        warmup=warmup,
        steps=steps,
        versions=found,
        trials=[],
    )
    out.mkdir(parents=True, exist_ok=True)
    session = Session(out, comparison)
    session.first_trials(names)
    session.second_trials()
    print(markdown(comparison))


if __name__ == "__main__":
    typer.run(main)
