"""Ours and its peers in one go on one GPU: `python -m benchmarks.gpu.compare --scenario S1 --out FOLDER`.

Each contestant runs in a process of its own, one after the other, on the same tokens and weights. Its first loss and
gradient norm must be ours before it is timed. The best peer and ours then have a second turn each, so that these two
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

from benchmarks.gpu.contestants import CONTESTANTS, Attempt, Contestant, attempts
from benchmarks.gpu.identity import IdentityError, doubtful, identity
from benchmarks.gpu.records import Expected, Request, Turn
from benchmarks.gpu.results import RESULTS, Comparison, ResultsError, read, write
from benchmarks.gpu.table import markdown, rewrite
from gptoss20b.tools.bench.scenarios import SCENARIOS, Name

ROOT = Path(__file__).resolve().parents[2]
README = Path(__file__).with_name("README.md")
# Relative differences of the loss, and of gradient norms, between contestants that compute the same. In bf16 on a CPU
# (width 2,880 in 4 layers, and 720 in 24 at a std of as large scores) peers and fp32 were within 1.4e-4 and 6.5e-3 of
# ours, and some norm was off by 3.4e-2 and more without windows, sinks or rotation, with another activation or with
# equal routing weights.
TOLERANCE = {"fp32": (1e-4, 1e-4), "bf16": (1e-3, 2e-2)}
# Seconds that the timed steps of one kind, with or without the optimizer, may take: 20 of 1.5 s.
TIMED = 30.0
# Beside the results, which are then easily found.
_LOGS = "logs"
# A turn is not begun with less time than it takes to start.
_SHORTEST_TURN = 15.0


class OutOfTimeError(RuntimeError):
    """The time for the whole comparison is over."""


class Session:
    """The turns that are still to be taken, as far as the time allows.

    Args:
        folder: for the results; made if it is not there.
        comparison: what it holds so far.
        seconds: for everything.
    """

    def __init__(self, folder: Path, comparison: Comparison, seconds: float) -> None:
        self.folder, self.comparison = folder, comparison
        self._end = time.monotonic() + seconds

    def first_turns(self, names: list[str]) -> None:
        """Everybody's first turn, ours of a variant before the peers that are compared with it."""
        for name in (name for name in CONTESTANTS if name in names):
            peer_of = self.comparison.ours(CONTESTANTS[name].variant)
            if CONTESTANTS[name].ours or (peer_of and peer_of.result):
                self.take(name, 1)

    def second_turns(self) -> None:
        """The best peer once more, then ours."""
        best = self.comparison.best_peer()
        if best is None:
            return
        variant = CONTESTANTS[best].variant
        self.take(best, 2)
        self.take(next(name for name, each in CONTESTANTS.items() if each.ours and each.variant == variant), 2)

    def take(self, name: str, number: int) -> None:
        """Run a contestant in the first way that fits, unless it has had this turn.

        Raises:
            OutOfTimeError: it could not be finished.
        """
        if self.comparison.settled(name, number):
            return
        turn = Turn(contestant=name, number=number, status="out of memory", reason="its attention scores do not fit")
        for way in self._ways(name, number):
            print(f"{name}, turn {number}: micro batch {way.micro_batch_size}, RECOMPUTE {way.recompute or 'as set'}")
            turn = self._run(name, number, way)
            if turn.status != "out of memory":
                break
        print(f"  {turn.status} {turn.reason}")
        self.comparison = self.comparison.with_turn(turn)
        write(self.folder, self.comparison)

    def _ways(self, name: str, number: int) -> Iterator[Attempt]:
        first = self.comparison.turn(name, 1)
        if number > 1 and first and first.result:
            yield Attempt(first.result.micro_batch_size, first.result.recompute)
            return
        ours = next((turn.result for turn in self.comparison.turns if turn.result), None)
        memory = ours.device_memory_bytes if ours else None
        yield from attempts(CONTESTANTS[name], self.comparison.scenario, self.comparison.sequences, memory)

    def _run(self, name: str, number: int, way: Attempt) -> Turn:
        left = self._end - time.monotonic()
        if left < _SHORTEST_TURN:
            raise OutOfTimeError(f"{left:.0f} s are left, and {name} has not had turn {number}")
        logs = self.folder / _LOGS
        logs.mkdir(exist_ok=True)
        request, outcome = logs / "request.json", logs / "outcome.json"
        outcome.unlink(missing_ok=True)
        request.write_text(self._request(name, way).model_dump_json(), encoding="utf-8")
        with (logs / f"{name}-{number}.log").open("w", encoding="utf-8") as log:
            try:
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.gpu.turn", request.resolve(), outcome.resolve(), str(number)],
                    cwd=ROOT,
                    env=os.environ | _environment(CONTESTANTS[name], way),
                    check=False,
                    stdout=log,
                    stderr=log,
                    timeout=left,
                )
            except subprocess.TimeoutExpired as error:
                raise OutOfTimeError(
                    f"{name} did not finish turn {number} in the {left:.0f} s that were left"
                ) from error
        if outcome.exists():
            return Turn.model_validate_json(outcome.read_text(encoding="utf-8"))
        return Turn(contestant=name, number=number, status="failed", reason=f"its process ended; see {log.name}")

    def _request(self, name: str, way: Attempt) -> Request:
        c = self.comparison
        ours = c.ours(CONTESTANTS[name].variant)
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
            contestant=name,
            scenario=c.scenario,
            micro_batch_size=way.micro_batch_size,
            sequences=c.sequences,
            warmup=c.warmup,
            steps=c.steps,
            limit=TIMED,
            expected=expected,
        )


def _environment(contestant: Contestant, way: Attempt) -> dict[str, str]:
    # transformers' model knows nothing of these settings, and its results must not claim them.
    plain = {"RECOMPUTE": "none", "COMPILE": "kernels"} if contestant.backend is None else {}
    return plain | ({"RECOMPUTE": way.recompute} if way.recompute else {})


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results; one that has some is gone on with.")],
    scenario: Annotated[Name, typer.Option(help="S1, S3 or tiny.")] = "S1",
    only: Annotated[str, typer.Option(help="Contestants, with commas; ours comes with them.")] = ",".join(CONTESTANTS),
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
    if unknown := set(names) - set(CONTESTANTS):
        raise typer.BadParameter(f"--only: got {', '.join(sorted(unknown))}, expected some of {', '.join(CONTESTANTS)}")
    if not SCENARIOS[scenario].updates:
        raise typer.BadParameter(
            f"--scenario: got {scenario}, which has no optimizer. Use `python -m gptoss20b bench`."
        )
    names += [name for name, each in CONTESTANTS.items() if each.ours and _variant_of(names, each.variant)]
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
        turns=[],
    )
    out.mkdir(parents=True, exist_ok=True)
    session = Session(out, _begun(out, new), seconds)
    try:
        session.first_turns(names)
        session.second_turns()
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
    return any(CONTESTANTS[name].variant == variant for name in names)


if __name__ == "__main__":
    typer.run(main)
