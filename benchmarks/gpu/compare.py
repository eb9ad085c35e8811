"""Ours and its peers in one go on one GPU: `python -m benchmarks.gpu.compare --scenario S1 --out FOLDER`.

Each baseline runs in a process of its own, one after the other, on the same tokens and weights. Its first loss and
gradient norm must be ours before it is timed. The best peer and ours then have a second trial each, so that these two
were timed in the order A, B, B, A. What is finished is in FOLDER at once; the same command goes on with the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu.baselines import BASELINES, Attempt, Baseline, attempts
from benchmarks.gpu.identity import IdentityError, doubtful, identity
from benchmarks.gpu.records import Expected, Request, Trial
from benchmarks.gpu.results import RESULTS, Comparison, ResultsError, read, write
from benchmarks.gpu.table import markdown, rewrite
from gptoss20b.tools.bench.scenarios import SCENARIOS, Name

ROOT = Path(__file__).resolve().parents[2]
README = Path(__file__).with_name("README.md")
# Relative differences of the loss, and of gradient norms, between baselines that compute the same. In bf16 on a CPU
# (width 2,880 in 4 layers, and 720 in 24 at a std of as large scores) peers and fp32 were within 1.4e-4 and 6.5e-3 of
# ours, and some norm was off by 3.4e-2 and more without windows, sinks or rotation, with another activation or with
# equal routing weights.
TOLERANCE = {"fp32": (1e-4, 1e-4), "bf16": (1e-3, 2e-2)}
# Seconds that the timed steps of one kind, with or without the optimizer, may take: 20 of 1.5 s.
TIMED = 30.0
# Beside the results, which are then easily found.
_LOGS = "logs"
# A trial is not begun with less time than it takes to start.
_SHORTEST_TRIAL = 15.0


class OutOfTimeError(RuntimeError):
    """The time for the whole comparison is over."""


class Session:
    """The trials that are still to be taken, as far as the time allows.

    Args:
        folder: for the results; made if it is not there.
        comparison: what it holds so far.
        seconds: for everything.
    """

    def __init__(self, folder: Path, comparison: Comparison, seconds: float) -> None:
        self.folder, self.comparison = folder, comparison
        self._end = time.monotonic() + seconds

    def first_trials(self, names: list[str]) -> None:
        """Everybody's first trial, ours of a variant before the peers that are compared with it."""
        for name in (name for name in BASELINES if name in names):
            peer_of = self.comparison.ours(BASELINES[name].variant)
            if BASELINES[name].ours or (peer_of and peer_of.result):
                self.run_trial(name, 1)

    def second_trials(self) -> None:
        """The best peer once more, then ours."""
        best = self.comparison.best_peer()
        if best is None:
            return
        variant = BASELINES[best].variant
        self.run_trial(best, 2)
        self.run_trial(next(name for name, each in BASELINES.items() if each.ours and each.variant == variant), 2)

    def run_trial(self, name: str, number: int) -> None:
        """Run a baseline in the first way that fits, unless it has had this trial.

        Raises:
            OutOfTimeError: it could not be finished.
        """
        if self.comparison.settled(name, number):
            return
        trial = Trial(baseline=name, number=number, status="out of memory", reason="its attention scores do not fit")
        for way in self._ways(name, number):
            print(f"{name}, trial {number}: micro batch {way.micro_batch_size}, RECOMPUTE {way.recompute or 'as set'}")
            trial = self._run(name, number, way)
            if trial.status != "out of memory":
                break
        print(f"  {trial.status} {trial.reason}")
        self.comparison = self.comparison.with_trial(trial)
        write(self.folder, self.comparison)

    def _ways(self, name: str, number: int) -> Iterator[Attempt]:
        first = self.comparison.trial(name, 1)
        if number > 1 and first and first.result:
            yield Attempt(first.result.micro_batch_size, first.result.recompute)
            return
        ours = next((trial.result for trial in self.comparison.trials if trial.result), None)
        memory = ours.device_memory_bytes if ours else None
        yield from attempts(BASELINES[name], self.comparison.scenario, self.comparison.sequences, memory)

    def _run(self, name: str, number: int, way: Attempt) -> Trial:
        left = self._end - time.monotonic()
        if left < _SHORTEST_TRIAL:
            raise OutOfTimeError(f"{left:.0f} s are left, and {name} has not had trial {number}")
        logs = self.folder / _LOGS
        logs.mkdir(exist_ok=True)
        request, outcome = logs / "request.json", logs / "outcome.json"
        outcome.unlink(missing_ok=True)
        request.write_text(self._request(name, way).model_dump_json(), encoding="utf-8")
        with (logs / f"{name}-{number}.log").open("w", encoding="utf-8") as log:
            try:
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.gpu.trial", request.resolve(), outcome.resolve(), str(number)],
                    cwd=ROOT,
                    env=os.environ | _environment(BASELINES[name], way),
                    check=False,
                    stdout=log,
                    stderr=log,
                    timeout=left,
                )
            except subprocess.TimeoutExpired as error:
                raise OutOfTimeError(
                    f"{name} did not finish trial {number} in the {left:.0f} s that were left"
                ) from error
        if outcome.exists():
            return Trial.model_validate_json(outcome.read_text(encoding="utf-8"))
        return Trial(baseline=name, number=number, status="failed", reason=f"its process ended; see {log.name}")

    def _request(self, name: str, way: Attempt) -> Request:
        c = self.comparison
        ours = c.ours(BASELINES[name].variant)
        expected = None
        if ours and ours.result:
            of_loss, of_norms = TOLERANCE["fp32" if ours.result.precision == "fp32" else "bf16"]
            expected = Expected(
                loss=ours.result.loss,
                grad_norm=ours.result.grad_norm,
                norms=ours.result.norms,
                loss_tolerance=of_loss,
                norm_tolerance=of_norms,
            )
        return Request(
            baseline=name,
            scenario=c.scenario,
            micro_batch_size=way.micro_batch_size,
            sequences=c.sequences,
            warmup=c.warmup,
            steps=c.steps,
            limit=TIMED,
            expected=expected,
        )


def _environment(baseline: Baseline, way: Attempt) -> dict[str, str]:
    # transformers' model knows nothing of these settings, and its results must not claim them.
    plain = {"RECOMPUTE": "none", "COMPILE": "kernels"} if baseline.backend is None else {}
    return plain | ({"RECOMPUTE": way.recompute} if way.recompute else {})


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results; one that has some is gone on with.")],
    scenario: Annotated[Name, typer.Option(help="S1, S3 or tiny.")] = "S1",
    only: Annotated[str, typer.Option(help="Contestants, with commas; ours comes with them.")] = ",".join(BASELINES),
    sequences: Annotated[int, typer.Option(min=0, help="Per step; the scenario's if 0.")] = 0,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before the timed ones.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps; fewer where they take more than 30 s.")] = 20,
    seconds: Annotated[float, typer.Option(help="Begin nothing and stop what runs after this time.")] = 580.0,
    readme: Annotated[
        bool, typer.Option("--readme", help="When everything was run, write the results into benchmarks/gpu/README.md.")
    ] = False,
    only_readme: Annotated[
        bool, typer.Option("--only-readme", help="Run nothing: write the results there that are in --out.")
    ] = False,
) -> None:
    """Compare this project's training step with its peers'."""
    if only_readme:
        _write_readme(_read(out))
        return
    names = only.split(",")
    if unknown := set(names) - set(BASELINES):
        raise typer.BadParameter(f"--only: got {', '.join(sorted(unknown))}, expected some of {', '.join(BASELINES)}")
    if not SCENARIOS[scenario].has_optimizer:
        raise typer.BadParameter(
            f"--scenario: got {scenario}, which has no optimizer. Use `python -m gptoss20b bench`."
        )
    names += [name for name, each in BASELINES.items() if each.ours and _variant_of(names, each.variant)]
    try:
        found = identity(scenario)
    except IdentityError as error:
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
    session = Session(out, _begun(out, new), seconds)
    try:
        session.first_trials(names)
        session.second_trials()
    except OutOfTimeError as error:
        print(f"stopped: {error}. The same command goes on from here.", file=sys.stderr)
        raise typer.Exit(1) from error
    finally:
        print(markdown(session.comparison))
    if readme:
        _write_readme(session.comparison)


def _begun(out: Path, new: Comparison) -> Comparison:
    """What the folder holds of this comparison, or the new one.

    Raises:
        typer.BadParameter: it holds another, or nobody can tell whether it is the same.
    """
    doubt = doubtful(new.identity["commit"])
    if not (out / RESULTS).exists():
        if doubt:
            print(f"warning: {doubt}. These results cannot be gone on with later.", file=sys.stderr)
        return new
    held = _read(out)
    if doubt:
        raise typer.BadParameter(f"--out: {out} has results, and {doubt}. Name another folder, or commit.")
    if other := held.differences(new):
        raise typer.BadParameter(
            f"--out: {out} has results of other code or settings: {'; '.join(other)}. Name another folder."
        )
    return held


def _read(out: Path) -> Comparison:
    try:
        return read(out)
    except ResultsError as error:
        raise typer.BadParameter(f"--out: {error}. Name the folder of a comparison, or a new one.") from error


def _write_readme(comparison: Comparison) -> None:
    try:
        rewrite(README, markdown(comparison))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _variant_of(names: list[str], variant: str) -> bool:
    return any(BASELINES[name].variant == variant for name in names)


if __name__ == "__main__":
    typer.run(main)
