"""run_local.sh with nothing stubbed: trials that are cut short, and second starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.local_runs import Launch, launched, mounted, records, values
from tests.support.waiting import wait_until


@pytest.fixture
def trial(tiny: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """One trial that takes some seconds and ends without its target."""
    return tiny | {
        "NEXP": "1",
        "SEED_BASE": "77",
        "DGXNGPU": "2",
        "EXPERT_PARALLEL": "2",
        "GLOBAL_BATCH_SIZE": "4",
        "MAX_STEPS": "100",
        "EVAL_INTERVAL_SAMPLES": "400",
        "TARGET_LOSS": "0.01",
        "LOGDIR": str(tmp_path / "set"),
    }


def until_it_trains(launch: Launch) -> None:
    log = launch.logdir / "trial_1" / "result_0.txt"
    wait_until(lambda: log.exists() and '"train_loss"' in log.read_text(), 90, "a first step")


def attempts(logdir: Path) -> list[tuple[str, str]]:
    """(seed, status) of each line of trials.tsv, which are all of trial 1."""
    first, *rest = [line.split("\t") for line in (logdir / "trials.tsv").read_text().splitlines()]
    assert first == ["trial", "seed", "started", "seconds", "status"]
    assert all(row[0] == "1" for row in rest)
    return [(row[1], row[4]) for row in rest]


def assert_that_a_second_start_ends_it(settings: dict[str, str], failed: list[tuple[str, str]]) -> None:
    """The trial is repeated with its seed, beside what the first attempt left."""
    del settings["SEED_BASE"]
    logdir = Path(settings["LOGDIR"])
    with launched(settings) as again:
        status, shown = again.wait(120)
    assert status == 3, shown
    assert attempts(logdir) == [*failed, ("77", "3")]
    assert (logdir / "result_1.txt").read_bytes() == (logdir / "trial_1" / "result_0.txt").read_bytes()
    assert values(logdir / "result_1.txt", "seed") == [77]
    assert len(values(logdir / "result_1.txt", "train_loss")) == 100
    # It was ended before its last step, not left to train on. A full disk may have cut its last record short.
    assert 0 < (logdir / "trial_1_attempt_1" / "result_0.txt").read_text().count('"train_loss"') < 100


def assert_that_a_second_start_goes_on(settings: dict[str, str]) -> None:
    """The trial goes on in its folder from its checkpoint, here with a setting that may be another one."""
    logdir = Path(settings["LOGDIR"])
    with launched(settings | {"COLLECTIVE_TIMEOUT": "61"}) as again:
        status, shown = again.wait(120)
    assert status == 3, shown
    assert "was begun with other settings" in shown
    assert attempts(logdir) == [("77", "3")]
    assert not (logdir / "trial_1_attempt_1").exists()
    assert (logdir / "result_1.txt").read_bytes() == (logdir / "trial_1" / "result_0.txt").read_bytes()
    (went_on_from,) = values(logdir / "result_1.txt", "resumed")
    assert 0 < went_on_from < 400
    assert values(logdir / "result_1.txt", "seed") == [77]
    assert len(values(logdir / "result_1.txt", "train_loss")) == 100


KILLED = {
    "a rank": ["-u", "-m", "gptoss20b", "train"],
    "torchrun": ["torch.distributed.run"],
    "the run": ["run_and_time.sh"],
}


@pytest.mark.slow
@pytest.mark.parametrize("killed", KILLED)
def test_a_killed_process_ends_the_trial(trial: dict[str, str], killed: str) -> None:
    with launched(trial) as launch:
        until_it_trains(launch)
        launch.find(*KILLED[killed]).kill()
        status, shown = launch.wait(30)
        assert launch.processes() == []
    assert status == 1, shown
    assert f"1 trials in {launch.logdir}: 1 failed" in shown
    assert attempts(launch.logdir) == [("77", "137" if killed == "the run" else "1")]
    assert not (launch.logdir / "result_1.txt").exists()


@pytest.mark.slow
def test_a_killed_launcher_leaves_nothing_behind_and_a_second_start_repeats_the_trial(
    trial: dict[str, str], tmp_path: Path
) -> None:
    """Or goes on with it, where RESUME asks for that."""
    trial["SAVE_INTERVAL"] = "160"
    with launched(trial | {"RESUME": "1"}) as launch:
        checkpoint = launch.logdir / "trial_1" / "checkpoints" / "step_00000040"
        wait_until(checkpoint.exists, 90, "a first checkpoint")
        launch.process.kill()
        wait_until(lambda: launch.processes() == [], 30, "the end of all that the launcher started")
    assert attempts(launch.logdir) == []
    assert not (launch.logdir / "result_1.txt").exists()
    shutil.copytree(launch.logdir, tmp_path / "resumed")
    assert_that_a_second_start_goes_on(trial | {"LOGDIR": str(tmp_path / "resumed"), "RESUME": "1"})
    assert_that_a_second_start_ends_it(trial, [])


@pytest.mark.slow
def test_a_terminated_launcher_ends_the_log(trial: dict[str, str]) -> None:
    with launched(trial) as launch:
        until_it_trains(launch)
        launch.process.terminate()
        status, shown = launch.wait(30)
        assert launch.processes() == []
    assert status == 128 + signal.SIGTERM, shown
    stop = records(launch.logdir / "trial_1" / "result_0.txt")[-1]
    assert stop["key"] == "run_stop"
    assert stop["metadata"]["status"] == "aborted"
    assert stop["metadata"]["reason"] == "received SIGTERM"
    assert not (launch.logdir / "result_1.txt").exists()
    assert attempts(launch.logdir) == [("77", "143")]


@pytest.mark.slow
def test_a_terminal_that_goes_away_ends_the_log(trial: dict[str, str]) -> None:
    """The kernel signals all processes of the terminal, not only the launcher."""
    with launched(trial) as launch:
        until_it_trains(launch)
        os.killpg(launch.process.pid, signal.SIGHUP)
        status, shown = launch.wait(30)
        assert launch.processes() == []
    assert status == 128 + signal.SIGTERM, shown
    stop = records(launch.logdir / "trial_1" / "result_0.txt")[-1]
    assert stop["key"] == "run_stop"
    assert stop["metadata"]["reason"] in ("received SIGHUP", "received SIGTERM")


@pytest.mark.slow
def test_a_full_disk_ends_the_trial_and_with_room_a_second_start_repeats_it(trial: dict[str, str]) -> None:
    logdir = Path(trial["LOGDIR"])
    with mounted(logdir, "size=64k"):
        with launched(trial) as launch:
            status, shown = launch.wait(90)
            assert launch.processes() == []
        assert status == 1, shown
        assert "rank 0 aborted: OSError: [Errno 28] No space left on device" in shown
        assert not (logdir / "result_1.txt").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", str(logdir)], check=True)
        assert_that_a_second_start_ends_it(trial, attempts(logdir))
