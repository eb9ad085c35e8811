"""Test run.sub as a job of a real Slurm: the losses on two nodes, and the end of a trial after `scancel`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.local_runs import records, values
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


def submit(slurm: Slurm, cwd: Path, output: Path, *arguments: str, **environment: str) -> int:
    """Submit a job on two nodes from the folder ``cwd``, and return its id."""
    command = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={output}", *arguments]
    base = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return int(slurm.run(command, base | NO_GPU | environment, cwd))


def submit_trial(slurm: Slurm, folder: Path, settings: dict[str, str]) -> int:
    nodes = {"DGXSYSTEM": "CPU_1x2", "DGXNNODES": "2"}
    return submit(slurm, ROOT, folder / "output", "run.sub", **settings | nodes)


def test_a_job_on_two_nodes_has_the_losses_of_one_node(slurm: Slurm, short: dict[str, str], tmp_path: Path) -> None:
    ended = slurm.wait(submit_trial(slurm, tmp_path, short), LIMIT_S)
    output = (tmp_path / "output").read_text()
    assert ended == ("FAILED", 3), output + slurm.logs()
    assert "1 not converged" in output

    one_node = {"DGXNGPU": "2", "SEED": "1234", "LOGDIR": str(tmp_path / "alone")}
    for code, printed in run_ranks("train", 2, variables=short | one_node):
        assert code == 3, printed
    for key in ("train_loss", "eval_accuracy"):
        expected = values(tmp_path / "alone" / "result_0.txt", key)
        assert len(expected) >= 2
        assert values(tmp_path / "set" / "result_1.txt", key) == expected


@pytest.mark.parametrize("options", [["--signal=TERM", "--batch"], []], ids=["the script", "the job"])
def test_a_cancelled_job_ends_its_log(slurm: Slurm, short: dict[str, str], tmp_path: Path, options: list[str]) -> None:
    job = submit_trial(slurm, tmp_path, short | {"MAX_STEPS": "100000", "EVAL_INTERVAL_SAMPLES": "400000"})
    log = tmp_path / "set" / "trial_1" / "result_0.txt"
    try:
        wait_until(lambda: log.exists() and "train_loss" in log.read_text(), 90, "the first step")
    except AssertionError as error:
        raise AssertionError((tmp_path / "output").read_text() + slurm.logs()) from error
    slurm.run(["scancel", *options, str(job)])
    state, status = slurm.wait(job, 60)
    output = (tmp_path / "output").read_text()
    assert status == 143 or state == "CANCELLED", output
    stop = records(log)[-1]
    assert (stop["key"], stop["metadata"]["status"]) == ("run_stop", "aborted"), output
    assert stop["metadata"]["reason"] == "received SIGTERM"
    assert not (tmp_path / "set" / "result_1.txt").exists()
    assert "143" in (tmp_path / "set" / "trials.tsv").read_text().splitlines()[1].split("\t")


# --- the cluster of these tests must not disturb the machine


def test_the_daemons_listen_on_the_loopback_address_alone(slurm: Slurm) -> None:
    listening = [
        connection.laddr.ip
        for daemon in slurm.daemons
        for connection in psutil.Process(daemon).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"] * 3  # the controller and two nodes; munged has a Unix socket


KILLED_TESTS = """
import sys, time, pathlib
from tests.support import slurm_cluster
with slurm_cluster.cluster(pathlib.Path(sys.argv[1])) as slurm:
    print(*slurm.daemons, flush=True)
    time.sleep(60)
"""
# Ignores TERM, and starts an orphan in another session.
STUBBORN_TASK = """#!/usr/bin/env bash
trap "" TERM
((SLURM_PROCID)) || (env -i setsid bash -c 'trap "" TERM; echo $$ > hidden.pid; sleep 300; true' &)
echo $$ > task.$SLURM_PROCID.pid
sleep 300
true
"""


def test_a_cluster_whose_tests_were_killed_leaves_no_process(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = tmp_path_factory.mktemp("slurm")
    (tmp_path / "task").write_text(STUBBORN_TASK)
    (tmp_path / "task").chmod(0o755)
    files = [tmp_path / f"{name}.pid" for name in ("task.0", "task.1", "hidden")]
    command = [sys.executable, "-c", KILLED_TESTS, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        slurm = Slurm(folder, [int(number) for number in tests.stdout.readline().split()])
        submit(slurm, tmp_path, tmp_path / "output", "--export=NONE", "--wrap", "srun ./task")
        wait_until(lambda: all(path.exists() and path.read_text() for path in files), 20, "the tasks")
        keeper = psutil.Process(slurm.daemons[0]).parent()
        assert keeper is not None
        steps = [process for process in keeper.children(recursive=True) if process.name() == "slurmstepd"]
        assert len(steps) == 3  # one for the batch script, and one for each node's task
        left = steps + [psutil.Process(pid) for pid in [*(int(path.read_text()) for path in files), *slurm.daemons]]
        tests.kill()
        assert psutil.wait_procs(left, timeout=10)[1] == []
