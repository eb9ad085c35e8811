"""Test run.sub as a job of a real Slurm: the losses on two nodes, and the end of a trial after `scancel`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_runs import NO_COMPILER, records, values
from tests.support.paths import ROOT
from tests.support.ranks import NO_GPU, run_ranks
from tests.support.slurm_cluster import Slurm, cluster, unavailable
from tests.support.waiting import wait_until

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
    """Return the settings of a trial of 4 steps, on two nodes of one rank, that does not reach its target."""
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
    base = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment = base | NO_GPU | NO_COMPILER | settings
    return slurm.sbatch(arguments, ROOT, environment)


def test_a_job_on_two_nodes_has_the_losses_of_one_node(slurm: Slurm, short: dict[str, str], tmp_path: Path) -> None:
    ended = slurm.wait(submit(slurm, short, tmp_path), LIMIT_S)
    output = (tmp_path / "output").read_text()
    assert (ended.state, ended.status) == ("FAILED", 3), output + slurm.logs()
    assert "1 not converged" in output

    one_node = {"DGXNNODES": "1", "DGXNGPU": "2", "SEED": "1234", "LOGDIR": str(tmp_path / "alone")}
    for code, printed in run_ranks("train", 2, variables=short | one_node):
        assert code == 3, printed
    for key in ("train_loss", "eval_accuracy"):
        expected = values(tmp_path / "alone" / "result_0.txt", key)
        assert len(expected) >= 2
        assert values(tmp_path / "set" / "result_1.txt", key) == expected


@pytest.mark.parametrize("options", [["--signal=TERM", "--batch"], []], ids=["the script", "the job"])
def test_a_cancelled_job_ends_its_log(slurm: Slurm, short: dict[str, str], tmp_path: Path, options: list[str]) -> None:
    job = submit(slurm, short | {"MAX_STEPS": "100000", "EVAL_INTERVAL_SAMPLES": "400000"}, tmp_path)
    log = tmp_path / "set" / "trial_1" / "result_0.txt"
    try:
        wait_until(lambda: log.exists() and "train_loss" in log.read_text(), 90, "the first step")
    except AssertionError as error:
        raise AssertionError((tmp_path / "output").read_text() + slurm.logs()) from error
    slurm.run(["scancel", *options, str(job)])
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
    output = (tmp_path / "output").read_text()
    assert all(fact in output for fact in ("error: DGXNNODES: CPU_1x2 ", "3 nodes", "job has 2")), output
