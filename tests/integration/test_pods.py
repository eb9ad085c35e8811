"""Two pods of launch/kubernetes as two processes on loopback: they meet, train, and never repeat a finished trial."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_runs import kill_all, values
from tests.support.paths import ROOT
from tests.support.pods import MANIFESTS, container_of, pod_environment, read_resources
from tests.support.ranks import free_port

pytestmark = pytest.mark.slow

# Generous: both pods and other tests share the cores.
LIMIT_S = 120.0
CONFIG = "config_PODS_2x1.sh"
# A target that the first evaluation reaches. Its log is too short to be compliant.
QUICK = {"DGXNNODES": "2", "DGXNGPU": "1", "TARGET_LOSS": "9", "WARMUP_PASSES": "0", "CHECK_COMPLIANCE": "0"}


@pytest.fixture
def image(short: dict[str, str], tmp_path: Path) -> Iterator[Path]:
    """Return the code's folder in a container, with a configuration of two nodes of one CPU rank each."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    for name in ("gptoss20b", "launch", "system_info"):
        (folder / name).symlink_to(ROOT / name)
    for script in [*ROOT.glob("run_*.sh"), ROOT / "config_common.sh", ROOT / "config_CPU_1x2.sh"]:
        shutil.copy2(script, folder)
    own = {name: value for name, value in (short | QUICK).items() if name not in {"LOGDIR", "NEXP", "SEED_BASE"}}
    exports = "".join(f"export {name}={value}\n" for name, value in own.items())
    cpu = (folder / "config_CPU_1x2.sh").read_text()
    (folder / CONFIG).write_text(cpu + exports)
    yield folder
    kill_all(tmp_path / "results")


def start_pods(image: Path) -> list[subprocess.Popen[str]]:
    """Start the pods of the trial's Job: their command and variables, on loopback, with a shared folder for results."""
    (job,) = read_resources((MANIFESTS / "trial" / "job.yaml").read_text())
    container = container_of(job)
    container["env"].append({"name": "CONFIG", "value": CONFIG})
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "SUBMISSION_ORG": "Example"}
    pods = []
    for index in range(2):
        variables = pod_environment(job, index)
        variables["LOGDIR"] = variables["LOGDIR"].replace("/results", f"{image.parent}/results", 1)
        host = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHON": sys.executable}
        pods.append(
            subprocess.Popen(
                [*container["command"], *container["args"], "SEED_BASE=1234"],
                cwd=image,
                env=host | variables | here,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return pods


def wait_for(pods: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Return the exit statuses and the outputs of pods."""
    outputs = [pod.communicate(timeout=LIMIT_S)[0] for pod in pods]
    return [pod.returncode for pod in pods], outputs


def test_two_pods_train_one_trial_and_a_second_start_trains_none(image: Path) -> None:
    statuses, outputs = wait_for(start_pods(image))
    assert statuses == [0, 0], outputs
    logdir = image.parent / "results" / "gptoss20b"
    result = logdir / "result_1.txt"
    assert values(result, "seed") == [1234]
    assert len(values(result, "train_loss")) > 0
    assert values(result, "submission_platform") == ["PODS_2x1"]
    published = result.stat().st_mtime_ns

    statuses, outputs = wait_for(start_pods(image))
    assert statuses == [0, 0], outputs
    assert result.stat().st_mtime_ns == published
    assert [path.name for path in logdir.glob("trial_1*")] == ["trial_1"]
    assert (logdir / "trials.tsv").read_text().count("\n1\t") == 1
