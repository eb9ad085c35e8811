"""Test run.sub as a job of a real Slurm: the losses on two nodes, and the end of a trial after `scancel`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_runs import records, values
from tests.support.paths import ROOT
from tests.support.ranks import NO_GPU, run_ranks
from tests.support.slurm_cluster import Slurm, cluster
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with cluster(tmp_path_factory.mktemp("slurm").resolve()) as running:
        yield running


def submit(slurm: Slurm, folder: Path, settings: dict[str, str]) -> int:
    """Submit one trial on two nodes, and return the job's id."""
    command = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={folder / 'output'}", "run.sub"]
    base = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "DGXSYSTEM": "CPU_1x2"}
    return int(slurm.run(command, base | NO_GPU | settings | {"DGXNNODES": "2"}, ROOT))


def test_a_job_on_two_nodes_has_the_losses_of_one_node(slurm: Slurm, short: dict[str, str], tmp_path: Path) -> None:
    ended = slurm.wait(submit(slurm, tmp_path, short), 150)
    output = (tmp_path / "output").read_text()
    assert ended == ("FAILED", 3), output
    assert "1 not converged" in output

    one_node = {"DGXNGPU": "2", "SEED": "1234", "LOGDIR": str(tmp_path / "alone")}
    for code, printed in run_ranks("train", 2, variables=short | one_node):
        assert code == 3, printed
    for key in ("train_loss", "eval_accuracy"):
        expected = values(tmp_path / "alone" / "result_0.txt", key)
        assert len(expected) >= 2
        assert values(tmp_path / "set" / "result_1.txt", key) == expected


@pytest.mark.parametrize("options", [["--signal=TERM", "--batch"], []], ids=["time limit", "scancel"])
def test_a_cancelled_job_ends_its_log(slurm: Slurm, short: dict[str, str], tmp_path: Path, options: list[str]) -> None:
    job = submit(slurm, tmp_path, short | {"MAX_STEPS": "100000", "EVAL_INTERVAL_SAMPLES": "400000"})
    log = tmp_path / "set" / "trial_1" / "result_0.txt"
    wait_until(lambda: log.exists() and "train_loss" in log.read_text(), 90, "the first step")
    slurm.run(["scancel", *options, str(job)])
    state, status = slurm.wait(job, 60)
    output = (tmp_path / "output").read_text()
    assert status == 143 or state == "CANCELLED", output
    stop = records(log)[-1]
    assert (stop["key"], stop["metadata"]["status"]) == ("run_stop", "aborted"), output
    assert stop["metadata"]["reason"] == "received SIGTERM"
    assert not (tmp_path / "set" / "result_1.txt").exists()
    assert "143" in (tmp_path / "set" / "trials.tsv").read_text().splitlines()[1].split("\t")
