"""Test run_local.sh without stubs: interrupted trials, and restarts."""

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
    """Return the settings of one trial that takes some seconds and does not reach its target."""
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


def wait_for_first_step(launch: Launch) -> None:
    log = launch.logdir / "trial_1" / "result_0.txt"
    wait_until(lambda: log.exists() and '"train_loss"' in log.read_text(), 90, "the first step")


def attempts(logdir: Path) -> list[tuple[str, str]]:
    """Return (seed, status) of each row of trials.tsv, which are all of trial 1."""
    header, *rows = [line.split("\t") for line in (logdir / "trials.tsv").read_text().splitlines()]
    assert header == ["trial", "seed", "started", "seconds", "status"]
    assert all(row[0] == "1" for row in rows)
    return [(row[1], row[4]) for row in rows]


def restart(settings: dict[str, str]) -> tuple[Path, str]:
    """Run the trial to its end. Check its result, and return it with the output."""
    with launched(settings) as launch:
        status, output = launch.wait(120)
    assert status == 3, output
    result = launch.logdir / "result_1.txt"
    assert result.read_bytes() == (launch.logdir / "trial_1" / "result_0.txt").read_bytes()
    assert values(result, "seed") == [77]
    assert len(values(result, "train_loss")) == 100
    return result, output


def assert_restart_repeats(settings: dict[str, str], failed: list[tuple[str, str]]) -> None:
    """Check that a restart repeats the trial with its seed, and keeps the interrupted attempt."""
    del settings["SEED_BASE"]
    result, _ = restart(settings)
    assert attempts(result.parent) == [*failed, ("77", "3")]
    # The attempt ended before its last step. A full disk may have truncated its last record.
    log = (result.parent / "trial_1_attempt_1" / "result_0.txt").read_text()
    assert 0 < log.count('"train_loss"') < 100


def assert_restart_resumes(settings: dict[str, str]) -> None:
    """Check that a restart resumes the trial from its checkpoint, with another setting that may change."""
    result, output = restart(settings | {"COLLECTIVE_TIMEOUT": "61"})
    assert "other settings" in output
    assert attempts(result.parent) == [("77", "3")]
    assert not (result.parent / "trial_1_attempt_1").exists()
    (resumed_at,) = values(result, "resumed")
    assert 0 < resumed_at < 400


KILLED = {
    "a rank": ["-u", "-m", "gptoss20b", "train"],
    "torchrun": ["torch.distributed.run"],
    "the run": ["run_and_time.sh"],
}


@pytest.mark.slow
@pytest.mark.parametrize("killed", KILLED)
def test_a_killed_process_ends_the_trial(trial: dict[str, str], killed: str) -> None:
    with launched(trial) as launch:
        wait_for_first_step(launch)
        launch.find(*KILLED[killed]).kill()
        status, output = launch.wait(30)
        assert launch.processes() == []
    assert status == 1, output
    assert f"1 trials in {launch.logdir}: 1 failed" in output
    assert attempts(launch.logdir) == [("77", "137" if killed == "the run" else "1")]
    assert not (launch.logdir / "result_1.txt").exists()


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_process_and_a_restart_repeats_or_resumes_the_trial(
    trial: dict[str, str], tmp_path: Path
) -> None:
    trial["SAVE_INTERVAL"] = "160"
    with launched(trial | {"RESUME": "1"}) as launch:
        checkpoint = launch.logdir / "trial_1" / "checkpoints" / "step_00000040"
        wait_until(checkpoint.exists, 90, "the first checkpoint")
        launch.process.kill()
        wait_until(lambda: launch.processes() == [], 30, "the end of all its processes")
    assert attempts(launch.logdir) == []
    assert not (launch.logdir / "result_1.txt").exists()
    shutil.copytree(launch.logdir, tmp_path / "resumed")
    assert_restart_resumes(trial | {"LOGDIR": str(tmp_path / "resumed"), "RESUME": "1"})
    assert_restart_repeats(trial, [])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_launcher_or_a_closed_terminal_ends_the_log(trial: dict[str, str], number: signal.Signals) -> None:
    with launched(trial) as launch:
        wait_for_first_step(launch)
        if number == signal.SIGHUP:  # the kernel signals all processes of the terminal
            os.killpg(launch.process.pid, number)
        else:
            launch.process.terminate()
        status, output = launch.wait(30)
        assert launch.processes() == []
    assert status == 128 + signal.SIGTERM, output
    stop = records(launch.logdir / "trial_1" / "result_0.txt")[-1]
    assert (stop["key"], stop["metadata"]["status"]) == ("run_stop", "aborted")
    assert stop["metadata"]["reason"] in {"received SIGTERM", f"received {number.name}"}
    assert not (launch.logdir / "result_1.txt").exists()
    assert attempts(launch.logdir) == [("77", "143")]


@pytest.mark.slow
def test_a_full_disk_ends_the_trial_and_a_restart_with_more_space_repeats_it(trial: dict[str, str]) -> None:
    logdir = Path(trial["LOGDIR"])
    with mounted(logdir, "size=64k"):
        with launched(trial) as launch:
            status, output = launch.wait(90)
            assert launch.processes() == []
        assert status == 1, output
        assert "rank 0 aborted: OSError: [Errno 28] No space left on device" in output
        assert not (logdir / "result_1.txt").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", str(logdir)], check=True)
        assert_restart_repeats(trial, attempts(logdir))
