"""Test launch/trials.sh through run_local.sh: seeds, results, failures, restarts, refusals, signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.launch_stubs import Sandbox, assert_refused
from tests.support.local_runs import mounted
from tests.support.waiting import wait_until


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_trials_have_their_configuration_consecutive_seeds_results_and_complete_output(sandbox: Sandbox) -> None:
    done = sandbox.run(NEXP="3", SEED_BASE="5", LEARNING_RATE="1e-3", MASTER_PORT="4000")
    assert done.returncode == 0, done.stderr
    assert sandbox.seeds == [5, 6, 7]
    given = {"LEARNING_RATE": "1e-3", "MASTER_PORT": "4001", "DGXSYSTEM": "CPU_1x2", "CLEAR_CACHES": "0"}
    assert (given | {"DATADIR": str(sandbox.scripts / "data" / "sample")}).items() <= sandbox.trial(6).items()
    assert [sandbox.result(i) for i in (1, 2, 3)] == [f"log of seed {seed}\n" for seed in (5, 6, 7)]
    assert sandbox.rows == [["1", "5", "0"], ["2", "6", "0"], ["3", "7", "0"]]
    for i, seed in ((1, 5), (2, 6), (3, 7)):
        assert sandbox.trial(seed)["LOGDIR"] == str(sandbox.set / f"trial_{i}")
        output = (sandbox.set / f"trial_{i}" / "output.log").read_text()
        assert output.startswith(f"trial {i} of 3: seed {seed}, started at ")
        for stream in ("stdout", "stderr"):
            assert f"{stream} of seed {seed}\n" in output
            assert f"{stream} of seed {seed}\n" in done.stdout
    assert sandbox.calls() == [
        ["stub-python", "-m", "gptoss20b", "preflight"],
        ["stub-python", "-m", "gptoss20b", "result", "--trials", "3", str(sandbox.set)],
        ["stub-python", "-m", "compliance", "check-set", "--runs", "3", str(sandbox.set)],
    ]
    assert done.stderr.endswith("the table\nthe verdict\n")
    assert (sandbox.set / "summary.txt").read_text() == "the table\n"
    assert (sandbox.set / "compliance.txt").read_text() == "the verdict\n"


def test_the_defaults_are_ten_trials_and_random_seeds(sandbox: Sandbox) -> None:
    assert sandbox.run().returncode == 0
    first = sandbox.seeds
    assert len(first) == 10
    assert first == list(range(first[0], first[0] + 10))
    assert sandbox.run(LOGDIR=str(sandbox.folder / "other")).returncode == 0
    second = [seed for seed in sandbox.seeds if seed not in first]
    assert len(second) == 10  # they overlap with a probability of 1 in 200 million


@pytest.mark.parametrize(
    ("count", "check", "runs"),
    [("2", "1", []), ("3", "1", ["3"]), ("10", "1", ["10"]), ("12", "1", ["10"]), ("3", "0", [])],
)
def test_a_set_is_checked_from_three_runs_on_and_ten_count(
    sandbox: Sandbox, count: str, check: str, runs: list[str]
) -> None:
    sandbox.control(verdict=1)
    done = sandbox.run(NEXP=count, SEED_BASE="5", CHECK_COMPLIANCE=check)
    assert [call[5] for call in sandbox.calls() if "check-set" in call] == runs
    assert done.returncode == (5 if runs else 0)
    assert ("not checked" in done.stderr) == (count == "2")
    assert sandbox.trial(5)["CHECK_COMPLIANCE"] == check


def test_without_logdir_a_set_has_a_new_folder_and_latest_points_to_it(sandbox: Sandbox) -> None:
    assert sandbox.run(NEXP="1", SEED_BASE="5", LOGDIR="").returncode == 0
    folder = Path(sandbox.trial(5)["LOGDIR"]).parent
    results = sandbox.scripts / "results"
    assert folder.parent == results
    assert folder.name.startswith("CPU_1x2_")
    assert (results / "latest").resolve() == folder
    # The link can name the set at the next start.
    assert sandbox.run(NEXP="2", LOGDIR="scripts/results/latest", CDPATH=".:/tmp").returncode == 0
    assert sandbox.trial(6)["LOGDIR"] == str(folder / "trial_2")
    assert (results / "latest").resolve() == folder


@pytest.mark.parametrize("elsewhere", [True, False])
def test_only_a_link_in_our_results_is_updated_and_a_failure_is_a_warning(sandbox: Sandbox, elsewhere: bool) -> None:
    results = (sandbox.folder if elsewhere else sandbox.scripts) / "results"
    (results / "latest").mkdir(parents=True)
    done = sandbox.run(NEXP="1", LOGDIR=str(results / "set"))
    assert done.returncode == 0
    assert ("warning:" in done.stderr and "results/latest" in done.stderr) == (not elsewhere)
    assert sorted(path.name for path in results.iterdir()) == ["latest", "set"]


# --- failures


@pytest.mark.parametrize("status", [1, 3, 4, 5, 137])
def test_a_failed_trial_is_recorded_and_the_next_one_started(sandbox: Sandbox, status: int) -> None:
    sandbox.control(status_6=status, outcome=3)
    done = sandbox.run(NEXP="3", SEED_BASE="5")
    assert done.returncode == 3  # the exit status of the summary
    assert sandbox.rows == [["1", "5", "0"], ["2", "6", str(status)], ["3", "7", "0"]]
    # Only a trial whose training ended has a result.
    assert (sandbox.result(2) is not None) == (status in (3, 4, 5))
    assert sandbox.result(3) is not None


@pytest.mark.parametrize(("status", "stop", "seeds"), [(3, "1", [5, 6]), (2, "0", [5, 6])])
def test_a_set_stops_on_request_or_after_a_bad_configuration(
    sandbox: Sandbox, status: int, stop: str, seeds: list[int]
) -> None:
    sandbox.control(status_6=status, outcome=1)
    done = sandbox.run(NEXP="3", SEED_BASE="5", STOP_ON_FAILURE=stop)
    assert done.returncode == 1
    assert sandbox.seeds == seeds
    assert "the table" in done.stderr
    assert "the verdict" not in done.stderr
    assert "not checked: a trial failed" in done.stderr


@pytest.mark.parametrize(("outcome", "verdict", "status"), [(0, 3, 5), (3, 0, 3), (3, 1, 3), (5, 1, 5)])
def test_the_exit_status_is_the_trials_and_then_the_sets(
    sandbox: Sandbox, outcome: int, verdict: int, status: int
) -> None:
    sandbox.control(outcome=outcome, verdict=verdict)
    done = sandbox.run(NEXP="3")
    assert done.returncode == status
    assert "the verdict" in done.stderr


# --- restarts


def test_a_restart_runs_the_missing_trials_with_the_same_seeds(sandbox: Sandbox) -> None:
    sandbox.control(status_6=1, status_7=4)
    sandbox.run(NEXP="3", SEED_BASE="5")
    sandbox.clear("trial_5.env", "trial_6.env", "trial_7.env", "status_6")
    assert sandbox.run(NEXP="4").returncode == 0
    assert sandbox.seeds == [6, 8]
    assert [sandbox.result(i) for i in (1, 2, 3, 4)] == [f"log of seed {seed}\n" for seed in (5, 6, 7, 8)]
    assert sandbox.rows[3:] == [["2", "6", "0"], ["4", "8", "0"]]
    previous = sandbox.set / "trial_2_attempt_1"
    assert (previous / "result_0.txt").read_text() == "log of seed 6\n"
    assert (previous / "output.log").exists()
    # A finished set is only reported again.
    done = sandbox.run(NEXP="4")
    assert (done.returncode, len(sandbox.rows)) == (0, 5)
    assert done.stderr.endswith("the table\nthe verdict\n")


def interrupted(sandbox: Sandbox, **environment: str) -> Path:
    """Run a single trial that fails after it has saved a checkpoint, and return the folder of its checkpoints."""
    sandbox.control(status_5=1)
    sandbox.run(NEXP="1", SEED_BASE="5", **environment)
    checkpoints = sandbox.set / "trial_1" / "checkpoints"
    (checkpoints / "step_00000012").mkdir(parents=True)
    return checkpoints


@pytest.mark.parametrize(
    ("resume", "checkpoint", "resumed"),
    [
        *[(value, "step_00000012", True) for value in ("1", "True", "t", "YES", "y", "on")],
        *[(value, "step_00000012", False) for value in ("0", "off", "")],
        ("true", ".step_00000012.part", False),
    ],
)
def test_a_trial_resumes_from_its_checkpoint_if_asked(
    sandbox: Sandbox, resume: str, checkpoint: str, resumed: bool
) -> None:
    checkpoints = interrupted(sandbox)
    (checkpoints / "step_00000012").rename(checkpoints / checkpoint)
    sandbox.run(NEXP="1", RESUME=resume)
    assert checkpoints.exists() == resumed
    assert (sandbox.set / "trial_1_attempt_1").exists() == (not resumed)
    # RESUME reaches the trial, but is no setting of the set, which would differ from its first start.
    assert sandbox.trial(5).get("RESUME", "") == resume
    assert [row[0] for row in sandbox.rows] == ["1", "1"]


@pytest.mark.parametrize("log_status", [0, 3, 4])
def test_a_trial_that_failed_after_the_end_of_its_training_starts_anew(sandbox: Sandbox, log_status: int) -> None:
    """Its log is no result, and the run would refuse to resume it, at every restart. Trial 2 was interrupted."""
    sandbox.control(status_5=1, status_6=1, log_status_trial_1=log_status)
    sandbox.run(NEXP="2", SEED_BASE="5")
    for i in (1, 2):
        (sandbox.set / f"trial_{i}" / "checkpoints" / "step_00000012").mkdir(parents=True)
    sandbox.run(NEXP="2", RESUME="1")
    folders = ["trial_1", "trial_1_attempt_1", "trial_2"]
    assert sorted(path.name for path in sandbox.set.glob("trial_*")) == folders
    sandbox.clear("status_5")
    sandbox.run(NEXP="2")
    assert sorted(path.name for path in sandbox.set.glob("trial_1*")) == [*folders[:2], "trial_1_attempt_2"]
    assert sandbox.result(1) == "log of seed 5\n"


def unpublished(sandbox: Sandbox) -> None:
    """Run a trial whose launcher is killed before it can publish the result."""
    sandbox.run(NEXP="1", SEED_BASE="5")
    (sandbox.set / "result_1.txt").unlink()
    sandbox.clear("trial_5.env")


@pytest.mark.parametrize(
    ("log", "check", "row"),
    [(0, 0, "0"), (0, 1, "5"), (3, 0, "3"), (4, 0, "4"), (1, 0, None), (143, 0, None)],
)
def test_a_killed_launchers_result_is_recovered_and_checked_or_its_trial_repeated(
    sandbox: Sandbox, log: int, check: int, row: str | None
) -> None:
    unpublished(sandbox)
    sandbox.control(log_status=log, check_status=check)
    assert sandbox.run(NEXP="2").returncode == 0
    assert ["stub-python", "-m", "gptoss20b", "result", str(sandbox.set / "trial_1")] in sandbox.calls()
    assert sandbox.result(1) == "log of seed 5\n"
    assert sandbox.seeds == ([6] if row else [5, 6])
    assert sandbox.rows == [["1", "5", "0"], ["1", "5", row or "0"], ["2", "6", "0"]]
    checked = [call[-1] for call in sandbox.calls() if "mlperf_logging.compliance_checker" in call]
    assert checked == ([str(sandbox.set / "trial_1" / "result_0.txt")] if log == 0 else [])


def test_a_signal_while_a_log_is_read_starts_no_trial(sandbox: Sandbox) -> None:
    unpublished(sandbox)
    sandbox.control(reading_sleeps="")
    process = sandbox.start("run_local.sh", "config_CPU_1x2.sh", NEXP="1")
    sandbox.wait_for("reading", process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert sandbox.rows == [["1", "5", "0"]]
    assert not (sandbox.set / "trial_1_attempt_1").exists()
    sandbox.clear("reading_sleeps")
    sandbox.control(log_status=0)
    assert sandbox.run(NEXP="1").returncode == 0
    assert sandbox.seeds == []


def test_an_unreadable_log_is_not_trained_again(sandbox: Sandbox) -> None:
    unpublished(sandbox)
    sandbox.control(log_status=137)
    assert_refused(sandbox.run(NEXP="1"), "LOGDIR", "trial_1/result_0.txt", "137")


def test_a_truncated_row_does_not_damage_the_next(sandbox: Sandbox) -> None:
    sandbox.run(NEXP="1", SEED_BASE="5")
    with (sandbox.set / "trials.tsv").open("a") as rows:
        rows.write("2\t6\t20")
    assert sandbox.run(NEXP="2").returncode == 0
    lines = (sandbox.set / "trials.tsv").read_text().splitlines()
    assert lines[2] == "2\t6\t20"
    assert lines[3].startswith("2\t6\t")
    assert lines[3].endswith("\t0")


def test_a_restart_with_another_seed_is_refused(sandbox: Sandbox) -> None:
    sandbox.run(NEXP="1", SEED_BASE="5")
    assert_refused(sandbox.run(NEXP="2", SEED_BASE="6"), "SEED_BASE: got 6", "started with 5", "another LOGDIR")
    assert sandbox.run(NEXP="2", SEED_BASE="5").returncode == 0


OTHER_RATE = ["<LEARNING_RATE = 1e-3, ", ">LEARNING_RATE = 2e-3, "]


def differences(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line[0] + line[2:24] for line in done.stderr.splitlines()[:2]]


@pytest.mark.parametrize(
    ("status", "restart"),
    [
        (1, {"NEXP": "2"}),
        (1, {"NEXP": "2", "RESUME": "1"}),
        (1, {"NEXP": "1"}),
        (1, {"NEXP": "1", "RESUME": "0"}),
        (0, {"NEXP": "1", "RESUME": "1"}),  # the trial has a result
    ],
)
def test_a_restart_with_other_settings_is_refused_and_shows_them(
    sandbox: Sandbox, status: int, restart: dict[str, str]
) -> None:
    sandbox.control(status_5=status)
    sandbox.run(NEXP="1", SEED_BASE="5", LEARNING_RATE="1e-3")
    settings = (sandbox.set / "settings.txt").read_text()
    sandbox.clear("calls")
    done = sandbox.run(LEARNING_RATE="2e-3", **restart)
    assert_refused(done, "LOGDIR", "other settings", "Restore")
    assert differences(done) == OTHER_RATE
    assert len(sandbox.calls()) == 1
    assert (sandbox.set / "settings.txt").read_text() == settings


def test_a_single_trial_resumes_with_other_settings_and_shows_them(sandbox: Sandbox) -> None:
    checkpoints = interrupted(sandbox, LEARNING_RATE="1e-3")
    done = sandbox.run(NEXP="1", RESUME="1", LEARNING_RATE="2e-3")
    assert done.returncode == 0, done.stderr  # the exit status of the summary
    assert differences(done) == OTHER_RATE
    assert done.stderr.splitlines()[2].startswith(f"warning: LOGDIR: '{sandbox.set}' ")
    assert sandbox.trial(5)["LEARNING_RATE"] == "2e-3"
    assert checkpoints.exists()
    assert "LEARNING_RATE = 2e-3, " in (sandbox.set / "settings.txt").read_text()
    # These are the settings of the set from now on.
    assert "other settings" not in sandbox.run(NEXP="1", RESUME="1", LEARNING_RATE="2e-3").stderr


# --- refusals before any trial


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
    sandbox: Sandbox, given: dict[str, str], facts: tuple[str, ...]
) -> None:
    assert_refused(sandbox.run(**given), *facts)
    assert not sandbox.set.exists()
    assert not (sandbox.scripts / "results").exists()
    assert sandbox.calls() == []


def test_one_trial_takes_its_seed_from_seed_and_ignores_a_false_resume(sandbox: Sandbox) -> None:
    assert sandbox.run(NEXP="1", SEED="7", RESUME="0", LOGDIR="").returncode == 0
    assert sandbox.seeds == [7]


@pytest.mark.parametrize("content", ["abc", "\n", "-1"])
def test_a_damaged_first_seed_is_refused(sandbox: Sandbox, content: str) -> None:
    sandbox.set.mkdir()
    (sandbox.set / "seed_base").write_text(content)
    assert_refused(sandbox.run(NEXP="1"), "LOGDIR", "seed_base", f"'{content.strip()}'")


def test_an_unwritable_folder_or_a_missing_model_is_refused(sandbox: Sandbox) -> None:
    assert_refused(sandbox.run(MODELDIR="no/such"), "MODELDIR", "no/such'")
    shutil.rmtree(sandbox.set)
    (sandbox.folder / "file").write_text("")
    assert_refused(sandbox.run(LOGDIR=str(sandbox.folder / "file" / "set")), "LOGDIR", "write", "file/set")
    with mounted(sandbox.set, "ro,size=1m"):
        assert_refused(sandbox.run(), "LOGDIR", "write")
    assert sandbox.seeds == []


def test_a_bad_configuration_is_refused(sandbox: Sandbox) -> None:
    sandbox.control(dry_run_fails="")
    done = sandbox.run()
    assert done.returncode == 2
    assert done.stderr == "error: 1 problem\n"
    assert sandbox.seeds == []


# --- several nodes


@pytest.mark.parametrize("missing", ["NODE_RANK", "MASTER_ADDR", "LOGDIR"])
def test_a_missing_variable_of_several_nodes_is_refused(sandbox: Sandbox, missing: str) -> None:
    given = {"NODE_RANK": "0", "MASTER_ADDR": "leader", "LOGDIR": str(sandbox.set)} | {missing: ""}
    assert_refused(sandbox.run(DGXNNODES="2", **given), missing, "not set")


TWO_NODES = {"DGXNNODES": "2", "MASTER_ADDR": "leader", "NEXP": "2", "MASTER_PORT": "4000"}
WORKER = TWO_NODES | {"NODE_RANK": "1"}


def announce(sandbox: Sandbox, current: str) -> None:
    """Act as a leader whose first seed is 5."""
    sandbox.set.mkdir(exist_ok=True)
    (sandbox.set / "seed_base").write_text("5\n")
    (sandbox.set / "current").write_text(f"{current}\n")


def test_a_worker_uses_the_leaders_seeds_and_ends_with_it(sandbox: Sandbox) -> None:
    sandbox.control(sleep="")
    with sandbox.running(**WORKER) as worker:
        time.sleep(1)
        assert sandbox.seeds == []  # it waits for the leader
        with sandbox.running(NODE_RANK="0", SEED_BASE="5", **TWO_NODES) as leader:
            sandbox.wait_for("running", leader)
            sandbox.clear("sleep")
            log = sandbox.set / "node_1" / "trial_1.log"
            sandbox.wait_for(log, leader, worker)
            assert sandbox.trial(5)["MASTER_PORT"] == "4000"
            time.sleep(1.5)
            assert worker.poll() is None  # its part of the trial has ended, and it waits for the leader's
            leader.send_signal(signal.SIGTERM)
            leader.communicate(timeout=30)
            assert leader.returncode == 143
        # The trial of a worker that began to sleep fails: it is stopped `leave_grace` (30 s) after the leader left it.
        assert worker.wait(timeout=60) in (0, 1)
    assert sandbox.seeds == [5]
    assert "seed 5" in log.read_text()
    assert not (sandbox.set / "current").exists()


def test_a_worker_runs_the_trials_that_the_leader_announces(sandbox: Sandbox) -> None:
    announce(sandbox, "2 77_1")
    with sandbox.running(**WORKER) as worker:
        # At last, the leader was killed and restarted before the worker noticed: the same trial, another id.
        for current, seed, port in (("2 77_1", 6, "4001"), ("1 77_1", 5, "4000"), ("1 78_1", 5, "4000")):
            announce(sandbox, current)
            sandbox.wait_for(f"trial_{seed}.env", worker)
            assert sandbox.trial(seed)["MASTER_PORT"] == port
            sandbox.clear(f"trial_{seed}.env")
        (sandbox.set / "current").unlink()
        assert worker.wait(timeout=30) == 0
    assert sandbox.calls() == []
    assert not (sandbox.set / "result_1.txt").exists()


def test_a_worker_stops_a_trial_that_the_leader_has_left(sandbox: Sandbox) -> None:
    """A killed leader leaves its announcement behind until it starts another trial."""
    sandbox.edit("launch/trials.py", "LEAVE_GRACE = 30", "LEAVE_GRACE = 2")
    announce(sandbox, "2 77_1")
    sandbox.control(sleep="")
    with sandbox.running(**WORKER) as worker:
        sandbox.wait_for("running", worker)
        time.sleep(3.5)
        assert sandbox.record("signals") is None
        sandbox.clear("sleep")
        announce(sandbox, "1 77_1")
        sandbox.wait_for("trial_5.env", worker)
        assert sandbox.record("signals") == "TERM\n"
        (sandbox.set / "current").unlink()
        assert worker.wait(timeout=30) == 1  # a failure: the worker itself got no signal
    assert sandbox.seeds == [5, 6]


def test_stopping_on_failure_stops_all_nodes(sandbox: Sandbox) -> None:
    sandbox.control(status_5=3, sleep="")
    given = {"STOP_ON_FAILURE": "1", "SEED_BASE": "5"}
    with sandbox.running(NODE_RANK="0", **TWO_NODES, **given) as leader:
        sandbox.wait_for("running", leader)
        sandbox.clear("sleep")
        with sandbox.running(**WORKER, **given) as worker:
            sandbox.wait_for(sandbox.set / "node_1" / "trial_1.log", leader, worker)
            os.kill(int(sandbox.record("running") or ""), signal.SIGUSR1)
            assert leader.wait(timeout=30) == 0  # the exit status of the summary
            assert worker.wait(timeout=30) == 3
    assert sandbox.seeds == [5]


def test_a_worker_has_nothing_to_do_in_a_finished_set(sandbox: Sandbox) -> None:
    sandbox.run(NEXP="2", SEED_BASE="5")
    sandbox.clear("calls")
    assert sandbox.run(**WORKER).returncode == 0
    assert sandbox.calls() == []


def test_a_worker_without_the_leaders_folder_is_refused(sandbox: Sandbox) -> None:
    sandbox.edit("launch/trials.py", "RENDEZVOUS_TIMEOUT = 600", "RENDEZVOUS_TIMEOUT = 1")
    assert_refused(sandbox.run(**WORKER), "LOGDIR", str(sandbox.set), "1 s", "shared folder")


# --- signals and locks


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_a_signal_ends_the_trial_and_a_restart_continues_the_set(
    sandbox: Sandbox, number: signal.Signals, status: int
) -> None:
    sandbox.control(sleep="")
    process = sandbox.start("run_local.sh", "config_CPU_1x2.sh", NEXP="3", SEED_BASE="5")
    sandbox.wait_for("running", process)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert sandbox.record("signals") == ("INT\n" if number == signal.SIGINT else "TERM\n")
    assert sandbox.seeds == [5]
    assert sandbox.rows == [["1", "5", "143"]]
    assert sandbox.result(1) is None
    assert "the table\n" in err and err.splitlines()[-1].count(f"LOGDIR={sandbox.set}") == 1
    sandbox.clear("sleep")
    assert sandbox.run(NEXP="3").returncode == 0
    assert sandbox.seeds == [5, 6, 7]


def test_a_killed_launcher_takes_its_trial_with_it(sandbox: Sandbox) -> None:
    sandbox.control(sleep="")
    process = sandbox.start("run_local.sh", "config_CPU_1x2.sh", NEXP="3", SEED_BASE="5")
    trial = int(sandbox.wait_for("running", process))
    process.kill()
    process.wait()
    wait_until(lambda: not Path(f"/proc/{trial}").exists(), 10, "the end of the trial")
    assert sandbox.record("signals") == "TERM\n"
    assert sandbox.rows == []


def test_two_launchers_never_share_a_folder(sandbox: Sandbox) -> None:
    sandbox.control(sleep="")
    with sandbox.running(NEXP="1", SEED_BASE="5") as leader:
        sandbox.wait_for("running", leader)
        assert_refused(sandbox.run(NEXP="1"), "LOGDIR", "already running", "another folder")
    with sandbox.running(LOGDIR=str(sandbox.folder / "other"), **WORKER):
        wait_until((sandbox.folder / "other" / ".lock_1").exists, 30, "the worker's lock")
        assert_refused(sandbox.run(LOGDIR=str(sandbox.folder / "other"), **WORKER), "LOGDIR", "already running")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_does_not_end_the_set(sandbox: Sandbox, stream: str) -> None:
    process = sandbox.start("run_local.sh", "config_CPU_1x2.sh", NEXP="2", SEED_BASE="5")
    getattr(process, stream).close()
    assert process.wait(timeout=30) == 0
    assert (sandbox.set / "summary.txt").read_text() == "the table\n"
    assert "stderr of seed 6" in (sandbox.set / "trial_2" / "output.log").read_text()
