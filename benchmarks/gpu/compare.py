"""Our step and its baselines on one GPU: `python -m benchmarks.gpu.compare --scenario S1 --out FOLDER`.

Each baseline runs in a separate process, one after the other, on the same tokens and weights. Its first loss and
gradient norms must be ours before it is timed. The best baseline and ours then have a second trial each, so these two
are timed in the order A, B, B, A. FOLDER holds every finished trial; the same command resumes with the rest.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import ValidationError

from gptoss20b.config import ConfigError
from gptoss20b.durable import atomic_write
from gptoss20b.run_metadata import git_commit, versions
from gptoss20b.tools.bench.scenarios import SCENARIOS, ScenarioName, configure
from system_info.accelerators import read_gpus

from .baselines import BASELINES, Attempt, Baseline, attempts
from .records import Request, Settings, Trial
from .results import Comparison
from .table import markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "results.json"
# Seconds for the timed steps of one kind, with or without the optimizer: 20 steps of 1.5 s.
STEPS_LIMIT_S = 30.0
_LOGS = "logs"
# A trial needs at least this long to start.
_MIN_TRIAL_S = 15.0


class OutOfTimeError(RuntimeError):
    """The time for the whole comparison is over."""


class Session:
    """The trials that are still to run into an existing folder, within ``seconds`` in all."""

    def __init__(self, folder: Path, comparison: Comparison, seconds: float) -> None:
        self.folder, self.comparison = folder, comparison
        self._end = time.monotonic() + seconds

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
        """Run a baseline with the first attempt that fits, unless this trial is final.

        Raises:
            OutOfTimeError: the trial could not be finished.
        """
        if self.comparison.is_final(name, number):
            return
        trial = Trial(baseline=name, number=number, status="out of memory", reason="its attention scores do not fit")
        for attempt in self._attempts(name, number):
            recompute = attempt.recompute or "as set"
            print(f"{name}, trial {number}: micro batch {attempt.micro_batch_size}, RECOMPUTE {recompute}")
            trial = self._run(name, number, attempt)
            if trial.status != "out of memory":
                break
        print(f"  {trial.status} {trial.reason}")
        self.comparison = self.comparison.with_trial(trial)
        atomic_write(self.folder / RESULTS, self.comparison.model_dump_json(indent=2) + "\n")

    def _attempts(self, name: str, number: int) -> Iterator[Attempt]:
        first = self.comparison.trial(name, 1)
        if number > 1 and first and first.result:
            yield Attempt(first.result.micro_batch_size, first.result.recompute)
            return
        known = self.comparison.any_result()
        memory = known.device_memory_bytes if known else None
        yield from attempts(BASELINES[name], self.comparison.scenario, self.comparison.sequences, memory)

    def _run(self, name: str, number: int, attempt: Attempt) -> Trial:
        remaining = self._end - time.monotonic()
        if remaining < _MIN_TRIAL_S:
            raise OutOfTimeError(f"{remaining:.0f} s are left, and {name} has not had trial {number}")
        logs = self.folder / _LOGS
        logs.mkdir(exist_ok=True)
        request, outcome = logs / "request.json", logs / "outcome.json"
        outcome.unlink(missing_ok=True)
        request.write_text(self._request(name, attempt).model_dump_json(), encoding="utf-8")
        with (logs / f"{name}-{number}.log").open("w", encoding="utf-8") as log:
            try:
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.gpu.trial", request.resolve(), outcome.resolve(), str(number)],
                    cwd=ROOT,
                    env=os.environ | _environment(BASELINES[name], attempt),
                    check=False,
                    stdout=log,
                    stderr=log,
                    timeout=remaining,
                )
            except subprocess.TimeoutExpired as error:
                raise OutOfTimeError(
                    f"{name} did not finish trial {number} in the {remaining:.0f} s that were left"
                ) from error
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
    out: Annotated[Path, typer.Option(help="Folder of the results; an existing comparison is resumed.")],
    scenario: Annotated[ScenarioName, typer.Option(help="S1, S3 or tiny.")] = "S1",
    only: Annotated[str, typer.Option(help="Baselines, with commas; ours comes with them.")] = ",".join(BASELINES),
    sequences: Annotated[int, typer.Option(min=0, help="Sequences per step; the scenario's if 0.")] = 0,
    warmup: Annotated[int, typer.Option(min=1, help="Warm-up steps.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps; fewer where they take more than 30 s.")] = 20,
    seconds: Annotated[float, typer.Option(help="Start nothing and stop a running trial after this time.")] = 580.0,
) -> None:
    """Compare this project's training step with its baselines."""
    names = only.split(",")
    if unknown := set(names) - set(BASELINES):
        raise typer.BadParameter(f"--only: got {', '.join(sorted(unknown))}, expected some of {', '.join(BASELINES)}")
    if not SCENARIOS[scenario].has_optimizer:
        raise typer.BadParameter(
            f"--scenario: got {scenario}, which has no optimizer. Use `python -m gptoss20b bench`."
        )
    variants = {BASELINES[name].variant for name in names}
    names += [name for name, each in BASELINES.items() if each.is_ours and each.variant in variants]
    try:
        found = identity(scenario)
    except ConfigError as error:
        raise typer.BadParameter(f"this machine and its settings: {error}") from error
    new = Comparison(
        scenario=scenario,
        sequences=sequences or SCENARIOS[scenario].micro_batch_size,
        warmup=warmup,
        steps=steps,
        identity=found,
        trials=[],
    )
    out.mkdir(parents=True, exist_ok=True)
    session = Session(out, _resume_or_start(out, new), seconds)
    try:
        session.first_trials(names)
        session.second_trials()
    except OutOfTimeError as error:
        print(f"stopped: {error}. Run the same command again to resume.", file=sys.stderr)
        raise typer.Exit(1) from error
    finally:
        print(markdown(session.comparison))


def identity(scenario: ScenarioName) -> dict[str, str]:
    """Return what all trials share by name: device, versions, commit and the environment's settings.

    The vendor's library names the device: torch would hold device memory for a context.

    Raises:
        ConfigError: unsuitable settings.
    """
    report = read_gpus()
    execution = configure(scenario, "reference", "torch", torch.cuda.is_available()).execution
    found = versions("triton", "transformer-engine-torch", "transformers")
    return {
        "device": str(report.gpus[0].name) if report and report.gpus else f"CPU ({platform.machine()})",
        "commit": git_commit() or os.environ.get("GIT_COMMIT") or "unknown",
        **{name: getattr(execution, name) for name in ("precision", "recompute", "compile_mode")},
        **{name: version or "none" for name, version in found.items()},
        "torch": torch.__version__,  # with the local build tag, which the package metadata may lack
    }


def _resume_or_start(out: Path, new: Comparison) -> Comparison:
    """Return the comparison in the folder, or the new one if there is none.

    Raises:
        typer.BadParameter: the folder holds another comparison, or one that cannot be told from this one.
    """
    doubt = _why_not_resumable(new.identity["commit"])
    if not (out / RESULTS).exists():
        if doubt:
            print(f"warning: {doubt}. These results cannot be resumed later.", file=sys.stderr)
        return new
    try:
        held = Comparison.model_validate_json((out / RESULTS).read_bytes())
    except (OSError, ValidationError) as error:
        raise typer.BadParameter(
            f"--out: {out / RESULTS}: {error}. Name the folder of a comparison, or a new one."
        ) from error
    if doubt:
        raise typer.BadParameter(f"--out: {out} has results, and {doubt}. Name another folder, or commit.")
    if other := held.differences(new):
        raise typer.BadParameter(
            f"--out: {out} has results of other code or settings: {'; '.join(other)}. Name another folder."
        )
    return held


def _why_not_resumable(commit: str) -> str:
    """Return why results of this commit cannot be resumed; empty if they can."""
    if commit == "unknown":
        return "the commit is unknown: set GIT_COMMIT where there is no .git"
    return "the working tree differs from its commit" if commit.endswith("-dirty") else ""


if __name__ == "__main__":
    typer.run(main)
