"""The README's journeys: read from the README and run line by line, by one shell, in a new clone.

A journey is a fenced block after `<!-- journey: NAME -->`. An indented line, and a closing bracket, continue the line
before. `# -> TEXT` is expected in the output of the command before it; `...` stands for any text.
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
from tests.support.paths import ROOT, files_in_git

EXPECT = "# -> "


@dataclass
class Step:
    """A command, the texts expected in its output, and its output after the run."""

    command: str
    expected: list[str]
    output: str = ""


@dataclass(frozen=True)
class Journey:
    """A journey that succeeded, and its clone."""

    clone: Path
    steps: list[Step]

    def output(self, start: str) -> str:
        """Return the output of the only command with this start."""
        outputs = [step.output for step in self.steps if step.command.startswith(start)]
        assert len(outputs) == 1, f"{len(outputs)} commands of the README's journey start with {start!r}, expected one"
        return outputs[0]


def read_steps(name: str, readme: str) -> list[Step]:
    """Return the steps of a journey."""
    blocks = re.findall(rf"^<!-- journey: {name} -->\n```\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, f"the README has {len(blocks)} journeys {name!r}, expected one"
    steps: list[Step] = []
    for line in blocks[0].splitlines():
        if line.startswith(EXPECT):
            steps[-1].expected.append(line.removeprefix(EXPECT))
        elif line.startswith((" ", ")")):
            steps[-1].command += f"\n{line}"
        elif not line.startswith("#"):
            steps.append(Step(line, []))
    return steps


def replace_in_steps(steps: list[Step], changes: Mapping[str, str]) -> None:
    """Replace texts in commands and expected outputs. Fail if the README does not contain one of them."""
    for old, new in changes.items():
        texts = [text for step in steps for text in (step.command, *step.expected)]
        assert any(old in text for text in texts), f"no {old!r} in the README"
        for step in steps:
            step.command = step.command.replace(old, new)
            step.expected = [text.replace(old, new) for text in step.expected]


def make_clone(folder: Path) -> None:
    """Clone the repository, with its uncommitted files."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(folder)], check=True)
    for name in files_in_git():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["git", "-C", str(folder), "reset", "--quiet"], check=True)


def git_status(clone: Path) -> str:
    """Return the commit and the changed files, without the ignored folders (.venv, data/, results/)."""
    command = ["git", "-C", str(clone), "status", "--porcelain", "--branch", "--untracked-files=all"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run_steps(clone: Path, steps: list[Step], environment: Mapping[str, str], limit_s: float) -> None:
    """Run the steps in one shell until one fails, and check their outputs."""
    outputs = Path(tempfile.mkdtemp(dir=clone.parent))
    before = git_status(clone)
    lines = [f"{{ {step.command}\n}} > {outputs}/{i} 2>&1 || exit" for i, step in enumerate(steps)]
    process = subprocess.Popen(
        ["bash", "--norc", "-c", "\n".join(lines)], cwd=clone, env=dict(environment), start_new_session=True
    )
    status: int | str = f"no exit within {limit_s:g} s"
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(limit_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        kill_all(clone)
    started = len(list(outputs.iterdir()))
    for i, step in enumerate(steps[:started]):
        step.output = (outputs / str(i)).read_text()
    last = steps[started - 1]
    assert status == 0, f"{last.command}\nexit status {status}:\n{last.output[-3000:]}"
    for step in steps:
        output = " ".join(step.output.split())  # long lines may be wrapped
        for text in step.expected:
            pattern = ".*".join(map(re.escape, text.split("...")))
            assert re.search(pattern, output), f"{step.command}\nexpected {text!r}, got:\n{step.output[-3000:]}"
    assert git_status(clone) == before, "the journey changed files outside of .venv, data/ and results/"
