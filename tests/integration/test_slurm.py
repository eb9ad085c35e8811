"""run.sub as a real job of a real Slurm: two nodes, the losses of one, and what `scancel` does to a trial."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_runs import NO_COMPILER, records, values
from tests.support.paths import ROOT
from tests.support.ranks import NO_GPU, run_ranks
from tests.support.slurm_cluster import Slurm, cluster, unavailable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unavailable() is not None, reason=f"no Slurm: {unavailable()}"),
]
LIMIT_S = 150.0


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def short(tiny: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """One trial of 4 steps on two nodes of one rank that ends without its target."""
    return tiny | {
        "DGXSYSTEM": "CPU_1x2",
        "DGXNNODES": "2",
        "EXPERT_PARALLEL": "2",
        "NEXP": "1",
        "SEED_BASE": "1234",
        "MAX_STEPS": "4",
        "EVAL_INTERVAL_SAMPLES": "16",
        "TARGET_LOSS": "0.01",
        "LOGDIR": str(tmp_path / "set"),
    }


def submit(slurm: Slurm, settings: dict[str, str], tmp_path: Path) -> int:
    arguments = ["--nodes=2", f"--output={tmp_path}/output", "run.sub"]
    own = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment = own | NO_GPU | NO_COMPILER | settings
    return slurm.sbatch(arguments, ROOT, environment)


def test_a_job_on_two_nodes_has_the_losses_of_one_node(slurm: Slurm, short: dict[str, str], tmp_path: Path) -> None:
    ended = slurm.wait(submit(slurm, short, tmp_path), LIMIT_S)
    output = (tmp_path / "output").read_text()
    assert (ended.state, ended.status) == ("FAILED", 3), output + slurm.logs()
    assert "1 not converged" in output

    one_node = {"DGXNNODES": "1", "DGXNGPU": "2", "SEED": "1234", "LOGDIR": str(tmp_path / "alone")}
    for code, shown in run_ranks("train", 2, variables=short | one_node):
        assert code == 3, shown
    for key in ("train_loss", "eval_accuracy"):
        apart = values(tmp_path / "alone" / "result_0.txt", key)
        assert len(apart) >= 2
        assert values(tmp_path / "set" / "result_1.txt", key) == apart


@pytest.mark.parametrize("how", [["--signal=TERM", "--batch"], []], ids=["the script", "the job"])
def test_a_cancelled_job_ends_its_log_and_another_goes_on(
    slurm: Slurm, short: dict[str, str], tmp_path: Path, how: list[str]
) -> None:
    job = submit(slurm, short | {"MAX_STEPS": "100000", "EVAL_INTERVAL_SAMPLES": "400000"}, tmp_path)
    log = tmp_path / "set" / "trial_1" / "result_0.txt"
    end = time.monotonic() + 90
    while not log.exists() or "train_loss" not in log.read_text():
        assert time.monotonic() < end, (tmp_path / "output").read_text() + slurm.logs()
        time.sleep(0.1)
    slurm.run(["scancel", *how, str(job)])
    ended = slurm.wait(job, 60)
    output = (tmp_path / "output").read_text()
    assert ended.status == 143 or ended.state == "CANCELLED", output
    stop = records(log)[-1]
    assert (stop["key"], stop["metadata"]["status"]) == ("run_stop", "aborted"), output
    assert stop["metadata"]["reason"] == "received SIGTERM"
    assert not (tmp_path / "set" / "result_1.txt").exists()
    assert "143" in (tmp_path / "set" / "trials.tsv").read_text().splitlines()[1].split("\t")


def test_a_job_with_too_few_nodes_is_refused(slurm: Slurm, short: dict[str, str], tmp_path: Path) -> None:
    ended = slurm.wait(submit(slurm, short | {"DGXNNODES": "3"}, tmp_path), 60)
    assert ended.status == 2
    assert "error: DGXNNODES: CPU_1x2 wants 3 nodes, the job has 2" in (tmp_path / "output").read_text()
