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
from benchmarks.gpu.records import Expected, Request, Turn
from benchmarks.gpu.results import RESULTS, Comparison, read, write
from benchmarks.gpu.table import markdown, rewrite
from gptoss20b.bench.scenarios import SCENARIOS, Name
from gptoss20b.record import git_commit

ROOT = Path(__file__).resolve().parents[2]
README = Path(__file__).with_name("README.md")
# Relative differences of loss and gradient norm between contestants that compute the same.
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
# Seconds that the timed steps of one kind, with or without the optimizer, may take.
_TIMED = 12.0
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
        if self.comparison.turn(name, number):
            return
        turn = Turn(contestant=name, number=number, status="out of memory", reason="its attention scores do not fit")
        for way in self._ways(name, number):
            print(f"{name}, turn {number}: micro batch {way.micro_batch_size}, RECOMPUTE {way.recompute or 'as set'}")
            turn = self._run(name, number, way)
            if turn.status != "out of memory":
                break
        print(f"  {turn.status} {turn.reason}")
        self.comparison = self.comparison.model_copy(update={"turns": [*self.comparison.turns, turn]})
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
        request, outcome = self.folder / "request.json", self.folder / "outcome.json"
        outcome.unlink(missing_ok=True)
        request.write_text(self._request(name, way).model_dump_json(), encoding="utf-8")
        with (self.folder / f"{name}-{number}.log").open("w", encoding="utf-8") as log:
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
            tolerance = TOLERANCE["fp32" if ours.result.precision == "fp32" else "bf16"]
            expected = Expected(loss=ours.result.loss, grad_norm=ours.result.grad_norm, tolerance=tolerance)
        return Request(
            contestant=name,
            scenario=c.scenario,
            micro_batch_size=way.micro_batch_size,
            sequences=c.sequences,
            warmup=c.warmup,
            steps=c.steps,
            limit=_TIMED,
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
    steps: Annotated[int, typer.Option(min=1, help="Timed steps; fewer where they take more than 12 s.")] = 20,
    seconds: Annotated[float, typer.Option(help="Begin nothing and stop what runs after this time.")] = 580.0,
    readme: Annotated[
        bool, typer.Option("--readme", help="Only write the results into this folder's README.md.")
    ] = False,
) -> None:
    """Compare this project's training step with its peers'."""
    if readme:
        rewrite(README, markdown(read(out)))
        return
    names = only.split(",")
    if unknown := set(names) - set(CONTESTANTS):
        raise typer.BadParameter(f"--only: got {', '.join(sorted(unknown))}, expected some of {', '.join(CONTESTANTS)}")
    if not SCENARIOS[scenario].updates:
        raise typer.BadParameter(
            f"--scenario: got {scenario}, which has no optimizer. Use `python -m gptoss20b bench`."
        )
    names += [name for name, each in CONTESTANTS.items() if each.ours and _variant_of(names, each.variant)]
    new = Comparison(
        scenario=scenario,
        sequences=sequences or SCENARIOS[scenario].micro_batch_size,
        warmup=warmup,
        steps=steps,
        git_commit=git_commit() or os.environ.get("GIT_COMMIT", "unknown"),
        turns=[],
    )
    out.mkdir(parents=True, exist_ok=True)
    held = read(out) if (out / RESULTS).exists() else new
    if held.model_copy(update={"turns": []}) != new:
        raise typer.BadParameter(f"--out: {out} has results of other code or settings. Name another folder.")
    session = Session(out, held, seconds)
    try:
        session.first_turns(names)
        session.second_turns()
    except OutOfTimeError as error:
        print(f"stopped: {error}. The same command goes on from here.", file=sys.stderr)
        raise typer.Exit(1) from error
    finally:
        print(markdown(session.comparison))


def _variant_of(names: list[str], variant: str) -> bool:
    return any(CONTESTANTS[name].variant == variant for name in names)


if __name__ == "__main__":
    typer.run(main)
