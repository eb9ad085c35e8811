"""What is refused before anything is started or written."""

from __future__ import annotations

import errno
from unittest.mock import Mock

import pytest

from tests.support.launch_stubs import SCRIPTS, Sandbox, assert_refused, cases, read_pairs
from tests.support.local_runs import mounted

JOB = read_pairs("SLURM_JOB_ID=77 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=n[1-2]")
# "sets" are the launchers of trials, and "node" the two scripts that a user starts on each node.
GROUPS = {"all": [*SCRIPTS], "sets": [*SCRIPTS][1:], "node": ["run_and_time.sh", "run_local.sh"]}


@cases("""
scripts            | given                                         | facts
sets               | NEXP=0                                        | NEXP: got '0', .*1 to 1000
sets               | NEXP=ten                                      | NEXP: got 'ten'
sets               | NEXP=010                                      | NEXP: got '010'
sets               | SEED_BASE=-1                                  | SEED_BASE: got '-1'
sets               | SEED_BASE=999999999999999999                  | SEED_BASE
sets               | STOP_ON_FAILURE=yes                           | STOP_ON_FAILURE: got 'yes', .*0 1
sets               | CHECK_COMPLIANCE=yes                          | CHECK_COMPLIANCE: got 'yes', .*0 1
sets               | CLEAR_CACHES=done                             | CLEAR_CACHES: got 'done'
sets               | NEXP=2 SEED=7                                 | SEED: got 7, .*all 2 trials.*SEED_BASE=7
sets               | NEXP=1 SEED=7 SEED_BASE=8                     | SEED
sets               | SAVE_DIR=/c                                   | SAVE_DIR: '/c'.*LOGDIR/trial_<i>/checkpoints
sets               | NEXP=2 MASTER_PORT=65535                      | MASTER_PORT.*1 to 65534
all                | DGXSYSTEM=                                    | DGXSYSTEM: not set.*source config_CPU_1x2.sh
all                | DGXNGPU=                                      | DGXNGPU: not set
all                | DATADIR=                                      | DATADIR: not set
all                | DGXSYSTEM=B300_1x8                            | DGXSYSTEM: .*config_B300_1x8.sh.*config_B200_1x8
all                | DATADIR=/no/such                              | DATADIR.*/no/such.*download_dataset.*make_sample
all                | DGXNNODES=two                                 | DGXNNODES: got 'two', .*integer
all                | RESUME=Y LOGDIR=                              | RESUME: got 'Y', .*LOGDIR
node               | DGXNNODES=2 MASTER_ADDR=a NODE_RANK=          | NODE_RANK: not set
node               | DGXNNODES=2 MASTER_ADDR= NODE_RANK=0          | MASTER_ADDR: not set
node               | DGXNNODES=2 MASTER_ADDR=a NODE_RANK=2         | NODE_RANK: got '2', .*0 to 1
run_local.sh       | DGXNNODES=2 MASTER_ADDR=a NODE_RANK=0 LOGDIR= | LOGDIR: not set
run_and_time.sh    | CLEAR_CACHES=yes                              | CLEAR_CACHES: got 'yes', .*0 1 done
run_and_time.sh    | BINDCMD=/no/such                              | BINDCMD: '/no/such'
run.sub            | DGXNNODES=2                                   | DGXNNODES.*2 nodes, .*job has 1.*sbatch --nodes=2
run.sub            | CONT=image                                    | CONT.*no pyxis.*'image'.*Unset CONT
run.sub            | SLURM_JOB_ID=                                 | SLURM_JOB_ID.*sbatch run.sub
run_with_docker.sh | CUDA_VISIBLE_DEVICES=                         | DGXSYSTEM: CPU_1x2.*nvidia-smi
run_with_docker.sh | PATH=/no/such                                 | docker.*./run_local.sh
""")
def test_a_bad_value_is_refused_and_nothing_is_started(sandbox: Sandbox, scripts: str, given: str, facts: str) -> None:
    for script in GROUPS.get(scripts, [scripts]):
        assert_refused(sandbox.run(script, **(JOB | read_pairs(given))), facts)
    assert not any(word in ("train", "preflight", "result") for call in sandbox.calls() for word in call)
    if scripts in GROUPS:  # the others may ask docker or Slurm first
        assert sandbox.calls() == [] and not sandbox.set.exists() and not (sandbox.scripts / "results").exists()


def test_an_unwritable_folder_or_a_missing_model_is_refused(sandbox: Sandbox) -> None:
    assert_refused(sandbox.run(MODELDIR="no/such"), f"MODELDIR: folder '{sandbox.folder}/no/such'")
    sandbox.set.rmdir()
    (sandbox.folder / "file").write_text("")
    for script in SCRIPTS:
        done = sandbox.run(script, **JOB, LOGDIR=str(sandbox.folder / "file" / "set"))
        assert_refused(done, "LOGDIR: cannot write to '.*/file/set'.*writable")
    with mounted(sandbox.set, "ro,size=1m"):
        assert_refused(sandbox.run(), "LOGDIR: cannot write")
    assert sandbox.seeds == []


def test_a_file_system_without_locks_is_refused(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.trial_set.fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "no locks")))
    for script in GROUPS["node"]:
        assert_refused(sandbox.run(script), f"LOGDIR: cannot lock '{sandbox.set}': no locks")


def test_what_preflight_refuses_does_not_start(sandbox: Sandbox) -> None:
    sandbox.control(preflight_fails="")
    for script in SCRIPTS:
        done = sandbox.run(script, **JOB)
        assert (done.returncode, done.stderr, sandbox.seeds) == (2, "error: 1 problem\n", [])


def test_a_result_is_never_overwritten(sandbox: Sandbox) -> None:
    log = sandbox.set / "result_0.txt"
    sandbox.set.mkdir()
    log.write_text("precious")
    sandbox.control(no_log="", log=0)
    for resume in ("", "no"):
        assert_refused(sandbox.run("run_and_time.sh", RESUME=resume), f"LOGDIR: '{log}'.*never overwritten")
    # The leader may have created the log a second before a worker starts. A resumed run has a log, and checks it.
    for given in ("DGXNNODES=2 MASTER_ADDR=a NODE_RANK=1", "RESUME=1"):
        assert sandbox.run("run_and_time.sh", **read_pairs(given)).returncode == 0
    assert log.read_text() == "precious"


# --- folders in containers


@pytest.mark.parametrize(("name", "separator"), [("LOGDIR", ":"), ("DATADIR", ","), ("MODELDIR", ":")])
def test_a_path_with_a_separator_of_mounts_is_refused(sandbox: Sandbox, name: str, separator: str) -> None:
    sandbox.control(pyxis="")
    folder = sandbox.folder / f"a{separator}b"
    folder.mkdir()
    given = JOB | {name: str(folder), "NEXP": "1"}
    for script in ("run.sub", "run_with_docker.sh"):
        assert_refused(sandbox.run(script, **given, CONT="gptoss20b"), f"{name}.*a{separator}b.*without ':' and ','")
    assert sandbox.run("run.sub", **given).returncode == 0


def test_extra_mounts_exist_are_absolute_and_hide_no_other(sandbox: Sandbox) -> None:
    sandbox.control(pyxis="")
    for script in ("run.sub", "run_with_docker.sh"):
        for bad in (
            "/no/such:/x",
            "relative:/x",
            "/tmp",
            "/tmp:x",
            "/tmp:/x:rx",
            "/tmp:/x:ro:z",
            "/tmp:/data/",
            "/usr:/t",
        ):
            done = sandbox.run(script, **JOB, EXTRA_MOUNTS=f"/tmp:/t,{bad}", CONT="gptoss20b")
            assert_refused(done, f"EXTRA_MOUNTS: got '{bad}'")


def test_a_missing_or_outdated_image_is_refused(sandbox: Sandbox) -> None:
    sandbox.control(settings="")
    assert_refused(sandbox.run("run_with_docker.sh", CONT="gptoss20b:old"), "CONT: image 'gptoss20b:old'.*settings")
    sandbox.control(no_image="")
    assert_refused(sandbox.run("run_with_docker.sh", CONT="mine"), "CONT: image 'mine'.*docker build")
