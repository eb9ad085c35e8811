"""Test the Slurm of the tests: it starts, it ends completely, and it handles jobs and signals as run.sub expects."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import slurm_cluster
from tests.support.paths import ROOT
from tests.support.slurm_cluster import JobEnd, Slurm, cluster, unavailable
from tests.support.waiting import wait_until

needs_slurm = pytest.mark.skipif(unavailable() is not None, reason=f"no Slurm: {unavailable()}")
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--output=output"]
# Forwards TERM to the tasks by scancel, like run.sub. srun would kill them without TERM.
FORWARDING = """\
trap 'echo "batch TERM" >> events; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
srun ./task &
echo "$!" > srun.pid
while kill -0 "$!" 2> /dev/null; do status=0; wait "$!" || status=$?; done
echo "batch saw $status" >> events
exit "$status"
"""
# Takes half a second to end, so that a task that is killed in the meantime does not record its end.
SLOW_TASK = """\
trap 'echo "task TERM" >> events; sleep 0.5; echo "task left" >> events; exit 7' TERM
touch "started.$SLURM_PROCID"
for _ in {1..300}; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for a cluster, with a shorter path than ``tmp_path``, which contains the name of the test."""
    return tmp_path_factory.mktemp("slurm")


def write_script(path: Path, text: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)
    return path


def wait_for_files(*paths: Path) -> None:
    wait_until(lambda: all(path.exists() for path in paths), 20, f"the files {paths}")


# --- jobs


@needs_slurm
def test_the_tasks_of_a_step_run_on_two_nodes(slurm: Slurm, tmp_path: Path) -> None:
    job = write_script(
        tmp_path / "job",
        'echo "${BASH_SOURCE[0]}"; pwd; scontrol show hostnames "$SLURM_JOB_NODELIST"\n'
        "srun --label bash -c 'echo $SLURM_NODEID $SLURM_NNODES $SLURMD_NODENAME $COLOUR' | sort",
    )
    number = slurm.sbatch([*TWO_NODES, str(job)], tmp_path, {"PATH": os.environ["PATH"], "COLOUR": "blue"})
    assert slurm.wait(number, 30) == JobEnd("COMPLETED", 0, 0), slurm.logs()
    source, folder, *rest = (tmp_path / "output").read_text().splitlines()
    # Slurm runs a copy in another folder.
    assert Path(source) == slurm.folder / "n1" / f"job{number:05}" / "slurm_script"
    assert folder == str(tmp_path)
    assert rest == ["n1", "n2", "0: 0 2 n1 blue", "1: 1 2 n2 blue"]


@needs_slurm
@pytest.mark.parametrize("first", [3, 7])
def test_a_step_ends_with_the_highest_status_of_its_tasks(slurm: Slurm, tmp_path: Path, first: int) -> None:
    wrapped = f"srun bash -c 'exit $((SLURM_PROCID ? {10 - first} : {first}))'"
    number = slurm.sbatch([*TWO_NODES, "--wrap", wrapped], tmp_path)
    assert slurm.wait(number, 30) == JobEnd("FAILED", 7, 0)


def signal_job(slurm: Slurm, folder: Path, *command: str) -> tuple[JobEnd, list[str]]:
    """Run a command when a job's tasks have started. Return the end of the job, and the recorded events in order.

    In the command, JOB is replaced by the job's id and SRUN by the process id of srun.
    """
    write_script(folder / "task", SLOW_TASK)
    number = slurm.sbatch([*TWO_NODES, str(write_script(folder / "job", FORWARDING))], folder)
    wait_for_files(folder / "started.0", folder / "started.1")
    words = {"JOB": str(number), "SRUN": (folder / "srun.pid").read_text().strip()}
    done = slurm.run([words.get(part, part) for part in command])
    assert done.returncode == 0, done.stderr
    ended = slurm.wait(number, 30)
    return ended, (folder / "events").read_text().splitlines()


ALL_TASKS_END = ["task TERM", "task TERM", "task left", "task left", "batch saw 7"]


@needs_slurm
@pytest.mark.parametrize(
    ("command", "end", "expected"),
    [
        # To the batch script, which forwards it to the tasks by scancel.
        ("scancel --signal=TERM --batch JOB", JobEnd("FAILED", 7, 0), ["batch TERM", *ALL_TASKS_END]),
        # To the tasks alone.
        ("scancel --signal=TERM JOB", JobEnd("FAILED", 7, 0), ALL_TASKS_END),
        # To srun, which kills its tasks without TERM.
        ("kill -TERM SRUN", JobEnd("FAILED", 137, 0), ["batch saw 137"]),
    ],
)
def test_who_gets_a_signal(slurm: Slurm, tmp_path: Path, command: str, end: JobEnd, expected: list[str]) -> None:
    assert signal_job(slurm, tmp_path, *command.split()) == (end, expected)


@needs_slurm
def test_scancel_of_a_job_reaches_tasks_and_batch_script_and_waits(slurm: Slurm, tmp_path: Path) -> None:
    ended, events = signal_job(slurm, tmp_path, "scancel", "JOB")
    assert {"batch TERM", "task TERM"} == set(events[:3])
    assert events[-3:] == ["task left", "task left", "batch saw 7"]
    assert ended == JobEnd("CANCELLED", 7, 0)
    # The tasks have the signal already. Slurm refuses to send it again, and the script continues.
    assert "Invalid job id specified" in (tmp_path / "output").read_text()


# --- the cluster itself


@needs_slurm
def test_the_daemons_listen_on_the_loopback_address_alone(slurm: Slurm) -> None:
    listening = [
        connection.laddr.ip
        for daemon in slurm.daemons
        for connection in psutil.Process(daemon).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"] * 3  # the controller and two nodes; munged has a Unix socket


def stubborn_job(slurm: Slurm, folder: Path) -> list[psutil.Process]:
    """Start a job that ignores TERM and starts an orphan. Return all processes that must end with the cluster."""
    hidden = "env -i setsid bash -c 'trap \"\" TERM; echo $$ > hidden.pid; sleep 300; true'"
    # The orphan's parent ends at once.
    text = f"trap '' TERM; ((SLURM_PROCID)) || ({hidden} &)\necho $$ > task.$SLURM_PROCID.pid; sleep 300; true"
    write_script(folder / "task", text)
    slurm.sbatch([*TWO_NODES, "--export=NONE", "--wrap", "srun ./task"], folder)
    files = [folder / f"{name}.pid" for name in ("task.0", "task.1", "hidden")]
    wait_for_files(*files)
    time.sleep(0.1)  # until their content is written
    keeper = psutil.Process(slurm.daemons[0]).parent()
    assert keeper is not None
    steps = [process for process in keeper.children(recursive=True) if process.name() == "slurmstepd"]
    assert len(steps) == 3  # one for the batch script, and one for each node's task
    return steps + [psutil.Process(pid) for pid in [*(int(path.read_text()) for path in files), *slurm.daemons]]


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=10)[1]


@needs_slurm
def test_a_cluster_whose_test_failed_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), cluster(folder) as slurm:
        started = stubborn_job(slurm, tmp_path)
        assert len(started) == 10
        began = time.monotonic()
        raise ZeroDivisionError
    assert time.monotonic() - began < 5
    assert not any(process.is_running() for process in started)


@needs_slurm
def test_a_cluster_whose_tests_were_killed_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    lines = [
        "import sys, time, pathlib; from tests.support import slurm_cluster",
        "with slurm_cluster.cluster(pathlib.Path(sys.argv[1])) as slurm:",
        "    print(*slurm.daemons, flush=True)",
        "    time.sleep(60)",
    ]
    with subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as tests:
        assert tests.stdout is not None
        daemons = [int(number) for number in tests.stdout.readline().split()]
        environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        started = stubborn_job(Slurm(folder, environment, ("n1", "n2"), daemons), tmp_path)
        assert len(started) == 10
        tests.kill()
        assert gone(started)


@needs_slurm
def test_a_cluster_that_cannot_start_raises_with_its_logs_and_leaves_no_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_cluster, "CONFIGURATION", slurm_cluster.CONFIGURATION + "Colour=blue\n")
    began = time.monotonic()
    with (
        pytest.raises(RuntimeError, match=r"(?s)no Slurm: waited for 2 idle nodes.*unrecognized key: Colour"),
        cluster(folder),
    ):
        pytest.fail("the cluster started")
    assert time.monotonic() - began < 5
    munged = int((folder / "munge" / "pid").read_text())
    assert not psutil.pid_exists(munged)


@needs_slurm
def test_a_job_that_takes_too_long_is_shown_with_the_logs(slurm: Slurm, tmp_path: Path) -> None:
    number = slurm.sbatch(["--hold", "--wrap", "true"], tmp_path)
    with pytest.raises(TimeoutError, match=rf"(?s)job {number} is PENDING after 0.2 s\n.*--- slurmd-n2.log"):
        slurm.wait(number, 0.2)
    assert slurm.run(["scancel", str(number)]).returncode == 0
    assert slurm.wait(number, 30) == JobEnd("CANCELLED", 0, 0)


@needs_slurm
def test_a_job_that_is_refused_or_unknown(slurm: Slurm, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"--nodes=3.*exit status 1\n.*Node count specification invalid"):
        slurm.sbatch(["--nodes=3", "--wrap", "true"], tmp_path)
    with pytest.raises(AssertionError, match="job 4711: unknown"):
        slurm.wait(4711, 1)


@needs_slurm
def test_a_slurm_job_around_the_tests_is_invisible(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SLURM_CONF"):
        monkeypatch.setenv(name, "another")
    names = dict(line.split("=", 1) for line in slurm.run(["env"]).stdout.splitlines() if "=" in line)
    assert names["SLURM_CONF"] == str(slurm.folder / "slurm.conf")
    assert not {"SLURM_JOB_ID", "SBATCH_PARTITION"} & names.keys()


@pytest.mark.parametrize("missing", [{"slurmd"}, {"munged", "srun"}, set()])
def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: set[str]) -> None:
    for name in {*slurm_cluster.DAEMONS, *slurm_cluster.CLIENTS} - missing:
        write_script(tmp_path / name, "")
    monkeypatch.setattr(slurm_cluster, "SBIN", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("bash") is None
    reason = unavailable()
    if not missing:
        assert reason is None
    else:
        assert reason is not None
        assert reason.startswith(f"{', '.join(sorted(missing))} not installed: apt-get install ")


def test_a_folder_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long for Slurm's sockets"):
        cluster(tmp_path / ("x" * 100)).__enter__()
    assert list(tmp_path.iterdir()) == []
