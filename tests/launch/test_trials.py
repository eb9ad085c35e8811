"""The leader's and the workers' part of a set of trials."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.launch_stubs import Sandbox, assert_refused


def test_the_defaults_are_ten_trials_and_random_seeds(sandbox: Sandbox) -> None:
    assert sandbox.run().returncode == 0
    first = sandbox.seeds
    assert len(first) == 10
    assert first == list(range(first[0], first[0] + 10))
    assert sandbox.run(LOGDIR=str(sandbox.folder / "other")).returncode == 0
    assert len(sandbox.seeds) == 20  # they overlap with a probability of 1 in 200 million


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


@pytest.mark.parametrize("status", [1, 3, 4, 5, 137])
def test_a_failed_trial_is_recorded_and_the_next_one_started(sandbox: Sandbox, status: int) -> None:
    sandbox.control(status_6=status, outcome=3)
    assert sandbox.run(NEXP="3", SEED_BASE="5").returncode == 3  # the exit status of the summary
    assert sandbox.rows == [["1", "5", "0"], ["2", "6", str(status)], ["3", "7", "0"]]
    # Only a trial whose training ended has a result.
    assert (sandbox.result(2) is not None) == (status in (3, 4, 5))
    assert sandbox.result(3) is not None


@pytest.mark.parametrize(("status", "stop"), [(3, "1"), (2, "0")])
def test_a_set_stops_on_request_or_after_a_bad_configuration(sandbox: Sandbox, status: int, stop: str) -> None:
    sandbox.control(status_6=status, outcome=1)
    done = sandbox.run(NEXP="3", SEED_BASE="5", STOP_ON_FAILURE=stop)
    assert (done.returncode, sandbox.seeds) == (1, [5, 6])
    assert "the table" in done.stderr and "the verdict" not in done.stderr
    assert "not checked: a trial failed" in done.stderr


@pytest.mark.parametrize(("outcome", "verdict", "status"), [(0, 3, 5), (3, 0, 3), (3, 1, 3), (5, 1, 5)])
def test_the_exit_status_is_the_trials_and_then_the_sets(
    sandbox: Sandbox, outcome: int, verdict: int, status: int
) -> None:
    sandbox.control(outcome=outcome, verdict=verdict)
    done = sandbox.run(NEXP="3")
    assert done.returncode == status and "the verdict" in done.stderr


def test_a_bad_configuration_is_refused(sandbox: Sandbox) -> None:
    sandbox.control(preflight_fails="")
    done = sandbox.run()
    assert (done.returncode, done.stderr, sandbox.seeds) == (2, "error: 1 problem\n", [])


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
    assert (previous / "result_0.txt").read_text() == "log of seed 6\n" and (previous / "output.log").exists()
    # A finished set is only reported again.
    done = sandbox.run(NEXP="4")
    assert (done.returncode, len(sandbox.rows), done.stderr) == (0, 5, "the table\nthe verdict\n")


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
    assert (checkpoints.exists(), (sandbox.set / "trial_1_attempt_1").exists()) == (resumed, not resumed)
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


def unpublished(sandbox: Sandbox) -> None:
    """Run a trial whose launcher is killed before it can publish the result."""
    sandbox.run(NEXP="1", SEED_BASE="5")
    (sandbox.set / "result_1.txt").unlink()
    sandbox.clear("trial_5.env")


@pytest.mark.parametrize("status", [125, 126, 127, 137])
def test_an_unreadable_log_is_not_trained_again(sandbox: Sandbox, status: int) -> None:
    unpublished(sandbox)
    sandbox.control(log_status=status)
    assert_refused(sandbox.run(NEXP="1"), "LOGDIR", "trial_1/result_0.txt", str(status))
    assert sandbox.seeds == []


# --- workers: a hook of the trial acts as the leader, whose first seed is 5


@pytest.fixture
def worker(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the variables of a worker whose seconds are a hundredth as long."""
    clock = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100))
    monkeypatch.setattr("launch.trials.time", clock)
    sandbox.set.mkdir()
    (sandbox.set / "seed_base").write_text("5\n")
    return {"DGXNNODES": "2", "MASTER_ADDR": "leader", "NODE_RANK": "1", "NEXP": "2", "MASTER_PORT": "4000"}


def announce(sandbox: Sandbox, first: str, *others: str) -> None:
    """Announce a trial, and each time that a trial starts the next one. At last the leader ends."""
    (sandbox.set / "current").write_text(f"{first}\n")
    (sandbox.set / "next").write_text("".join(f"{trial}\n" for trial in others))
    sandbox.control(
        hook=f"""cd '{sandbox.set}'; echo "$SEED $MASTER_PORT" >> "$STUB/started"
        if read -r trial < next; then echo "$trial" > current; sed -i 1d next; else rm -f current; fi"""
    )


def test_a_worker_runs_the_trials_that_the_leader_announces(sandbox: Sandbox, worker: dict[str, str]) -> None:
    # At last, the leader was killed and restarted before the worker noticed: the same trial, another id.
    announce(sandbox, "2 77_1", "1 77_1", "1 78_1")
    assert sandbox.run(**worker).returncode == 0
    assert sandbox.record("started") == "6 4001\n5 4000\n5 4000\n"
    assert "stdout of seed 6" in (sandbox.set / "node_1" / "trial_2.log").read_text()
    assert sandbox.calls() == [] and not (sandbox.set / "result_1.txt").exists()


@pytest.mark.parametrize(
    ("status", "seeds", "expected"), [(1, [5, 6], 1), (137, [5, 6], 1), (3, [5, 6], 3), (2, [6], 2)]
)
def test_a_worker_returns_its_worst_status(
    sandbox: Sandbox, worker: dict[str, str], status: int, seeds: list[int], expected: int
) -> None:
    sandbox.control(status_6=status)
    announce(sandbox, "2 77_1", "1 77_1")
    assert sandbox.run(**worker).returncode == expected
    assert sandbox.seeds == seeds


def test_a_worker_stops_a_trial_that_the_leader_has_left(sandbox: Sandbox, worker: dict[str, str]) -> None:
    """A killed leader leaves its announcement behind until it starts another trial."""
    announce(sandbox, "2 77_1", "1 77_1")
    hook = sandbox.record("hook")
    sandbox.control(hook=f"[[ $SEED == 6 ]] || rm '{sandbox.folder}/stub/sleep'\nsleep 0.5\n{hook}", sleep="")
    assert sandbox.run(**worker).returncode == 1  # a failure: the worker itself got no signal
    assert sandbox.record("signals") == "TERM\n"
    assert sandbox.record("started") == "6 4001\n5 4000\n"


def test_a_worker_has_nothing_to_do_in_a_finished_set(sandbox: Sandbox, worker: dict[str, str]) -> None:
    for i in (1, 2):
        (sandbox.set / f"result_{i}.txt").touch()
    assert sandbox.run(**worker).returncode == 0
    assert sandbox.seeds == []


def test_a_worker_without_the_leaders_folder_is_refused(
    sandbox: Sandbox, worker: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.trials.RENDEZVOUS_TIMEOUT", 7)
    assert_refused(sandbox.run(**worker), "LOGDIR", str(sandbox.set), "7 s", "shared folder")
