"""Run every command of the journeys in README and docs, each in a new clone.

A journey is a fenced block after `<!-- journey: NAME -->`. An indented line, and a closing bracket, continue the line
before. `# -> TEXT` is expected in the output of the command before it; `...` stands for any text.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.local_runs import kill_all, values
from tests.support.paths import ROOT, files_in_git

pytestmark = pytest.mark.slow

TEXT = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FAKE_PIP = ROOT / "tests" / "support" / "fake_pip.py"
LIMIT_S = 600.0

# --- differences from the text

# `pip` is fake_pip.py, which links this Python's packages instead of downloading them.
ENVIRONMENT = {"python3 -m venv": f"{sys.executable} -m venv --without-pip"}
# The CPU configuration with half its batch size, which reaches the open division's 3.34 at the first evaluation. The
# seeds are fixed, so that the runs are the same every time.
QUICK = (
    "GLOBAL_BATCH_SIZE=2 LEARNING_RATE=1e-2 WARMUP_STEPS=1 EVAL_INTERVAL_SAMPLES=26 EVAL_SAMPLES=2 MAX_STEPS=72"
    " TARGET_LOSS=3.34 WARMUP_PASSES=0"
)
THREE_TRIALS = {
    "NEXP=10": f"NEXP=3 SEED_BASE=6 {QUICK}",
    "10 trials": "3 trials",
    "10 converged": "3 converged",
    "compliance package": "compliance package --runs 3",
    "check-package": "check-package --runs 3",
}
CHECKED_AS_THREE = {
    f"compliance {name}": f"compliance {name} --runs 3" for name in ("check-set", "check-package", "report")
}
# The first set is the submitter's, so its trials are already done. The second has other seeds.
TWO_TRIALS = {
    "NEXP=10": f"NEXP=2 {QUICK}",
    "LEARNING_RATE=4e-3": "LEARNING_RATE=9e-3 SEED_BASE=9",
    "10 converged": "2 converged",
    "0.006 in A, 0.004 in B": "0.01 in A, 0.009 in B",
}
# The environment that `make run` makes, and a run of the submitter as its result.
MADE = "python3 -m venv --without-pip .venv && source .venv/bin/activate && pip install '.[run,data,compliance]'"
# Without GPUs, docker and 86 GB of disk, these commands are only recorded. docker lists a setting, which
# run_with_docker.sh asks for.
RECORDED = ("docker", "nvidia-smi", "recording-python")
RECORDER = f"""#!/bin/bash
[[ "$1 $2" != "-m launch" ]] || exec {sys.executable} "$@"
{{ printf "%s\\x1f" "${{0##*/}}" "$@"; echo; }} >> "$CALLS"
[[ "${{*: -1}}" != settings ]] || echo SEED
"""

# --- reading and running a journey


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
        (output,) = [step.output for step in self.steps if step.command.startswith(start)]
        return output

    def logs(self, folder: str, count: int = 3) -> list[Path]:
        return [self.clone / folder / f"result_{i}.txt" for i in range(1, count + 1)]


def read_steps(name: str, changes: Mapping[str, str]) -> list[Step]:
    """Return the steps of a journey with texts replaced. Fail if the journey does not contain one of the texts."""
    (block,) = re.findall(rf"^<!-- journey: {name} -->\n```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for old, new in changes.items():
        assert old in block, f"no {old!r} in the journey"
        block = block.replace(old, new)
    steps: list[Step] = []
    for line in block.splitlines():
        if line.startswith("# -> "):
            steps[-1].expected.append(line.removeprefix("# -> "))
        elif line.startswith((" ", ")")):
            steps[-1].command += f"\n{line}"
        elif not line.startswith("#"):
            steps.append(Step(line, []))
    return steps


def make_clone(folder: Path) -> None:
    """Clone the repository, with its uncommitted files."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(folder)], check=True)
    for name in files_in_git():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    git(folder, "reset", "--quiet")


def git(clone: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(clone), *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout


def run_steps(clone: Path, steps: list[Step], environment: dict[str, str]) -> None:
    """Run the steps in one shell until one fails, and check their outputs."""
    outputs = Path(tempfile.mkdtemp(dir=clone.parent))
    list_changes = ["status", "--porcelain", "--branch", "--untracked-files=all"]
    before = git(clone, *list_changes)
    lines = [f"{{ {step.command}\n}} > {outputs}/{i} 2>&1 || exit" for i, step in enumerate(steps)]
    command = ["bash", "--norc", "-c", "\n".join(lines)]
    process = subprocess.Popen(command, cwd=clone, env=environment, start_new_session=True)
    status: int | str = f"no exit within {LIMIT_S:g} s"
    try:
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(LIMIT_S)
    finally:
        with suppress(ProcessLookupError):
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
    assert git(clone, *list_changes) == before, "the journey changed files outside of .venv, data/ and results/"


@dataclass(frozen=True)
class Workspace:
    """Run journeys one after the other in the same folder: the settings of a set contain the path of its data."""

    folder: Path

    def run(self, name: str, changes: dict[str, str], inputs: dict[Path, str], **environment: str) -> Journey:
        """Run a journey. `inputs` are folders to copy into its clone first."""
        steps = read_steps(name, ENVIRONMENT | changes)
        clone = self.folder / "clone"
        shutil.copytree(self.folder / "fresh", clone)
        for source, target in inputs.items():
            shutil.copytree(source, clone / target)
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        final = self.folder / name.replace(" ", "_")
        try:
            run_steps(clone, steps, {"PATH": path, "HOME": "/nonexistent"} | environment)
        finally:
            clone.rename(final)
        return Journey(final, steps)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("journeys")
    # Once, so that all journeys start from the same commit.
    make_clone(folder / "fresh")
    (folder / "bin").mkdir()
    for name in RECORDED:
        (folder / "bin" / name).write_text(RECORDER)
    (folder / "bin" / "pip").write_text(f'#!/bin/bash\nexec "{sys.executable}" "{FAKE_PIP}" "$@"\n')
    for stub in (folder / "bin").iterdir():
        stub.chmod(0o755)
    return Workspace(folder)


@pytest.fixture(scope="module")
def submitter(workspace: Workspace) -> Journey:
    return workspace.run("submitter", THREE_TRIALS, {})


@pytest.fixture(scope="module")
def reviewer(workspace: Workspace, submitter: Journey) -> Journey:
    return workspace.run("reviewer", CHECKED_AS_THREE, {submitter.clone / "results/submission": "results/submission"})


@pytest.fixture(scope="module")
def vendor(workspace: Workspace, submitter: Journey) -> Journey:
    # The submitter's organisation is one of the settings of the set, which must not change.
    ten = {submitter.clone / "results/ten": "results/before"}
    return workspace.run("vendor", TWO_TRIALS, ten, SUBMISSION_ORG="Example")


def test_the_submitters_trials_converge_with_consecutive_seeds_and_the_set_passes(submitter: Journey) -> None:
    ten = submitter.logs("results/ten")
    assert [values(log, "seed") for log in ten] == [[6], [7], [8]]
    losses = [values(log, "eval_accuracy") for log in ten]
    assert all(len(one) == 1 and one[0] <= 3.34 for one in losses)
    assert len({tuple(values(log, "train_loss")) for log in ten}) == 3
    verdict = (submitter.clone / "results/ten/compliance.txt").read_text()
    assert "compliance_checker: 3 pass" in verdict
    assert "No divergence from our verdict." in verdict


def test_the_submitters_package_has_the_code_of_a_clone_and_a_complete_system(submitter: Journey) -> None:
    tree = submitter.clone / "results/submission"
    system = json.loads((tree / "systems/CPU_1x2.json").read_text())
    assert (system["submitter"], system["accelerators_per_node"]) == ("Example", "0")
    assert not [name for name, value in system.items() if value.startswith("TODO")]
    code = tree / "benchmarks/gpt_oss_20b/implementations/CPU_1x2"
    for name in ("run_local.sh", "launch/trials.py", "config_CPU_1x2.sh", "gptoss20b/train.py"):
        assert (code / name).read_bytes() == (submitter.clone / name).read_bytes()
    assert os.access(code / "run_local.sh", os.X_OK)
    assert not (code / "results").exists() and not (code / "data").exists()


def test_the_official_tools_find_only_that_seven_logs_are_missing(submitter: Journey) -> None:
    """Ten runs would take too long. The number of logs must be the only difference."""
    shown = " ".join(submitter.output("python -m compliance check-package").split())
    assert "compliance_checker: 3 pass" in shown
    assert "system_desc_checker: 1 pass" in shown
    assert "package_checker: 1 fail" in shown
    assert shown.count("DIVERGENCE") == 1
    assert "found 3, expected 10" in shown.split("DIVERGENCE package_checker: ours pass, official fail")[1]


def test_a_submitter_with_gpus_downloads_the_data_and_starts_ten_containers(workspace: Workspace) -> None:
    calls, data = workspace.folder / "calls", workspace.folder / "data"
    data.mkdir()
    workspace.run(
        "submitter with GPUs",
        {" /data": f" {data}", "=/data": f"={data}"},
        {},
        CALLS=str(calls),
        PYTHON="recording-python",
    )
    made = [line.rstrip("\x1f").split("\x1f") for line in calls.read_text().splitlines()]
    commit = git(workspace.folder / "fresh", "rev-parse", "HEAD").strip()
    assert re.fullmatch(rf"GIT_COMMIT={commit}(-dirty)?", made[0].pop(3))
    assert made[0] == ["docker", "build", "--build-arg", "-t", "gptoss20b", "."]
    data_scripts = ["recording-python", "-m", "data_scripts"]
    assert made[1:3] == [[*data_scripts, name, str(data)] for name in ("download", "verify")]
    assert ["docker", "image", "inspect", "gptoss20b"] in made
    trials = [call for call in made if call[-1] == "./run_and_time.sh"]
    assert len(trials) == 10
    for call in trials:
        assert call[:2] == ["docker", "run"] and call[-2] == "gptoss20b"
        assert f"--volume={data}:/data:ro" in call and "--gpus=all" in call
        assert f"--volume={workspace.folder}/clone/results/ten:/results" in call


def test_the_reviewer_gets_the_submitters_verdict_and_a_report(submitter: Journey, reviewer: Journey) -> None:
    assert " 1 run " in reviewer.output("python -m compliance check-run").splitlines()[0]
    kept = (submitter.clone / "results/ten/compliance.txt").read_text()
    checked = reviewer.output("python -m compliance check-set")
    assert checked.splitlines()[0] == kept.splitlines()[0]
    runs = re.findall(r"result_\d\.txt +(converged .*)", checked)
    assert len(runs) == 3 and runs == re.findall(r"result_\d\.txt +(converged .*)", kept)
    assert "found 3, expected 10" in " ".join(reviewer.output("python -m compliance check-package").split())
    shown = (reviewer.clone / "results/report.html").read_text()
    for log in submitter.logs("results/ten"):
        assert f"{values(log, 'eval_accuracy')[0]:.4f}" in shown


def test_the_vendor_plans_and_compares_two_sets_with_another_learning_rate(vendor: Journey) -> None:
    after = vendor.logs("results/after", 2)
    assert [values(log, "seed") for log in after] == [[9], [10]]
    assert [values(log, "opt_base_learning_rate") for log in after] == [[0.009], [0.009]]
    shown = vendor.output("python -m compliance compare")
    assert shown.startswith("A: results/before\nB: results/after\n")
    differing = shown.split("\nLogged settings that differ\n")[1].split("\n\n")[0]
    assert [line.split(":")[0].strip() for line in differing.splitlines()] == [
        "opt_base_learning_rate",
        "opt_end_learning_rate",
    ]


def test_a_newcomer_s_commands_work_in_one_environment(workspace: Workspace, submitter: Journey) -> None:
    """Instead of `make run`, use a trial of the submitter, its data, and an environment with the same extras."""
    steps = [step for name in ("quick start", "first run", "examples") for step in read_steps(name, {})]
    clone = workspace.folder / "newcomer"
    shutil.copytree(workspace.folder / "fresh", clone)
    for source, target in {"results/ten/trial_1": "results/latest", "data/sample": "data/sample"}.items():
        shutil.copytree(submitter.clone / source, clone / target)
    made = Step(MADE.replace("python3", sys.executable, 1), [])
    path = f"{workspace.folder / 'bin'}:{os.environ['PATH']}"
    run_steps(clone, [made, *steps], {"PATH": path, "HOME": "/nonexistent"})
    assert (clone / "results/ten_runs.html").stat().st_size > 100_000
