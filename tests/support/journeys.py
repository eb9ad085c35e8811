"""The README's journeys: read from it, and run line by line by one shell in a clone of their own.

A journey is a fenced block after `<!-- journey: NAME -->`. A line that is indented belongs to the one before it, and so
does a closing bracket. `# -> TEXT` says what the command before it shows, with `...` for what differs between runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.local_runs import kill_all
from tests.support.paths import ROOT

SHOWS = "# -> "


@dataclass
class Step:
    """A command and what it is said to show; what it did show, once it has run."""

    command: str
    shows: list[str]
    output: str = ""


@dataclass(frozen=True)
class Journey:
    """A journey that has ended well, and the clone that it was made in."""

    clone: Path
    steps: list[Step]

    def output(self, words: str) -> str:
        """What the one command that starts with these words showed, on stdout and stderr."""
        found = [step.output for step in self.steps if step.command.startswith(words)]
        assert len(found) == 1, f"{len(found)} commands of the README's journey start with {words!r}, expected one"
        return found[0]


def read_steps(name: str, readme: str) -> list[Step]:
    blocks = re.findall(rf"^<!-- journey: {name} -->\n```\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, f"the README has {len(blocks)} journeys called {name!r}"
    steps: list[Step] = []
    for line in blocks[0].splitlines():
        if line.startswith(SHOWS):
            steps[-1].shows.append(line.removeprefix(SHOWS))
        elif line.startswith((" ", ")")):
            steps[-1].command += f"\n{line}"
        elif not line.startswith("#"):
            steps.append(Step(line, []))
    return steps


def change(steps: list[Step], changes: Mapping[str, str]) -> None:
    """Replace words in commands and in what they show. Each must be there: else the README is no longer what it was."""
    for old, new in changes.items():
        assert any(old in text for step in steps for text in (step.command, *step.shows)), f"no {old!r} in the README"
        for step in steps:
            step.command = step.command.replace(old, new)
            step.shows = [text.replace(old, new) for text in step.shows]


def make_clone(place: Path) -> None:
    """A clone with what is not committed yet, as it would be if it were."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(place)], check=True)
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    subprocess.run(["git", "-C", str(place), "reset", "--quiet"], check=True)


def state(clone: Path) -> str:
    """Commit and what differs from it, the ignored places (.venv, data/, results/) aside."""
    command = ["git", "-C", str(clone), "status", "--porcelain", "--branch", "--untracked-files=all"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def travel(clone: Path, steps: list[Step], environment: Mapping[str, str], limit_s: float) -> None:
    """Run the steps in one shell up to the first that fails, and hold each to what it is said to show."""
    outputs = Path(tempfile.mkdtemp(dir=clone.parent))
    before = state(clone)
    lines = [f"{{ {step.command}\n}} > {outputs}/{i} 2>&1 || exit" for i, step in enumerate(steps)]
    process = subprocess.Popen(
        ["bash", "--norc", "-c", "\n".join(lines)], cwd=clone, env=dict(environment), start_new_session=True
    )
    status: int | str = f"nothing within {limit_s:g} s"
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(limit_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        kill_all(clone)
    for step, output in zip(steps, sorted(outputs.iterdir(), key=lambda path: int(path.name)), strict=False):
        step.output = output.read_text()
    last = steps[len(list(outputs.iterdir())) - 1]
    assert status == 0, f"{last.command}\nended with {status}:\n{last.output[-3000:]}"
    for step in steps:
        for text in step.shows:
            pattern = ".*".join(map(re.escape, text.split("...")))
            output = " ".join(step.output.split())  # long lines may be wrapped
            assert re.search(pattern, output), f"{step.command}\ndid not show {text!r}:\n{step.output[-3000:]}"
    assert state(clone) == before, "something is left beside .venv, data/ and results/"
