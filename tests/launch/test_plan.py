"""Refusals of a set before anything is started or written."""

from __future__ import annotations

import shutil

import pytest

from tests.support.launch_stubs import Sandbox, assert_refused
from tests.support.local_runs import mounted

JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n[1-2]"}


@pytest.mark.parametrize("script", ["run_local.sh", "run_with_docker.sh", "run.sub"])
@pytest.mark.parametrize(
    ("given", "facts"),
    [
        *[
            ({"NEXP": value}, ("NEXP", f"'{value}'", "1 to 1000"))
            for value in ("0", "-1", "ten", "3.0", "010", "1001", "99999999999999999999")
        ],
        *[
            ({"NEXP": "2", "SEED_BASE": value}, ("SEED_BASE", f"'{value}'"))
            for value in ("-1", "x", "1e3", "08", "999999999999999999")
        ],
        *[({name: "yes"}, (name, "'yes'", "0 1")) for name in ("STOP_ON_FAILURE", "CHECK_COMPLIANCE", "CLEAR_CACHES")],
        *[({name: ""}, (name, "not set", "source")) for name in ("DGXSYSTEM", "DGXNGPU", "DATADIR")],
        ({"NEXP": "2", "SEED": "7"}, ("SEED: got 7", "all 2 trials", "SEED_BASE=7")),
        ({"NEXP": "1", "SEED": "7", "SEED_BASE": "8"}, ("SEED",)),
        ({"SAVE_DIR": "/c"}, ("SAVE_DIR", "'/c'", "LOGDIR/trial_<i>/checkpoints", "Unset it")),
        *[({"RESUME": value, "LOGDIR": ""}, ("RESUME", f"'{value}'", "LOGDIR")) for value in ("1", "true", "Y")],
        ({"DGXNNODES": "two"}, ("DGXNNODES", "'two'", "integer")),
        ({"NEXP": "2", "MASTER_PORT": "65535"}, ("MASTER_PORT", "1 to 65534")),
        ({"DGXSYSTEM": "B300_1x8"}, ("DGXSYSTEM", "'B300_1x8'", "config_B300_1x8.sh", "config_CPU_1x2.sh")),
        ({"DATADIR": "/no/such"}, ("DATADIR", "'/no/such'", "data_scripts/download_dataset.sh")),
    ],
)
def test_a_bad_value_is_refused_and_nothing_is_written(
    sandbox: Sandbox, script: str, given: dict[str, str], facts: tuple[str, ...]
) -> None:
    assert_refused(sandbox.run(script, **JOB, **given), *facts)
    assert not sandbox.set.exists() and not (sandbox.scripts / "results").exists()
    assert sandbox.calls() == []


@pytest.mark.parametrize("missing", ["NODE_RANK", "MASTER_ADDR", "LOGDIR"])
def test_a_missing_variable_of_several_nodes_is_refused(sandbox: Sandbox, missing: str) -> None:
    given = {"NODE_RANK": "0", "MASTER_ADDR": "leader", "LOGDIR": str(sandbox.set)} | {missing: ""}
    assert_refused(sandbox.run(DGXNNODES="2", **given), missing, "not set")


def test_an_unwritable_folder_or_a_missing_model_is_refused(sandbox: Sandbox) -> None:
    assert_refused(sandbox.run(MODELDIR="no/such"), "MODELDIR", f"{sandbox.folder}/no/such'")
    shutil.rmtree(sandbox.set)
    (sandbox.folder / "file").write_text("")
    assert_refused(sandbox.run(LOGDIR=str(sandbox.folder / "file" / "set")), "LOGDIR", "write", "file/set")
    with mounted(sandbox.set, "ro,size=1m"):
        assert_refused(sandbox.run(), "LOGDIR", "write")
    assert sandbox.seeds == []


def test_one_trial_takes_its_seed_from_seed_and_ignores_a_false_resume(sandbox: Sandbox) -> None:
    assert sandbox.run(NEXP="1", SEED="7", RESUME="0", LOGDIR="").returncode == 0
    assert sandbox.seeds == [7]
