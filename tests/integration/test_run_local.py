"""Test the launcher without stubs: the run of `make run`, interrupted trials, and restarts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.local_runs import Launch, launched, mounted, records, values
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("killed", ["-u -m gptoss20b train", "gptoss20b.launch", "-m launch .* run$"])
def test_a_killed_process_ends_the_trial(trial: dict[str, str], killed: str) -> None:
    with launched(trial) as launch:
        wait_for_first_step(launch)
        next(process for process in launch.processes() if re.search(killed, " ".join(process.cmdline()))).kill()
        status, output = launch.wait(30)
        assert launch.processes() == []
    assert status == 1, output
    assert f"1 trials in {launch.logdir}: 1 failed" in output
    assert attempts(launch.logdir) == [("77", "137" if "run" in killed else "1")]
    assert not (launch.logdir / "result_1.txt").exists()


def test_a_killed_launcher_leaves_no_process_and_a_restart_resumes_the_trial(trial: dict[str, str]) -> None:
    trial["SAVE_INTERVAL"] = "160"
    with launched(trial | {"RESUME": "1"}) as launch:
        checkpoint = launch.logdir / "trial_1" / "checkpoints" / "step_00000040"
        wait_until(checkpoint.exists, 90, "the first checkpoint")
        launch.process.kill()
        wait_until(lambda: launch.processes() == [], 30, "the end of all its processes")
    assert attempts(launch.logdir) == []
    assert not (launch.logdir / "result_1.txt").exists()
    del trial["SEED_BASE"]
    result, output = restart(trial | {"RESUME": "1", "COLLECTIVE_TIMEOUT": "61"})  # a setting that may change
    assert "other settings" in output
    assert attempts(result.parent) == [("77", "3")]
    assert not (result.parent / "trial_1_attempt_1").exists()
    (resumed_at,) = values(result, "resumed")
    assert 0 < resumed_at < 400


def test_a_full_disk_ends_the_trial_and_a_restart_with_more_space_repeats_it(trial: dict[str, str]) -> None:
    logdir = Path(trial["LOGDIR"])
    with mounted(logdir, "size=1g"):
        with launched(trial) as launch:
            wait_for_first_step(launch)
            subprocess.run(["mount", "-o", "remount,size=64k", str(logdir)], check=True)
            status, output = launch.wait(90)
            assert launch.processes() == []
        assert status == 1, output
        assert f"LOGDIR: cannot write {logdir}/trial_1/result_0.txt: No space left on device" in output
        assert not (logdir / "result_1.txt").exists()
        subprocess.run(["mount", "-o", "remount,size=1g", str(logdir)], check=True)
        failed = attempts(logdir)
        del trial["SEED_BASE"]
        restart(trial)
        assert attempts(logdir) == [*failed, ("77", "3")]
        # The attempt ended before its last step. The full disk may have truncated its last record.
        log = (logdir / "trial_1_attempt_1" / "result_0.txt").read_text()
        assert 0 < log.count('"train_loss"') < 100


def test_the_cpu_configuration_converges_and_its_log_is_compliant(tmp_path: Path) -> None:
    sample, logdir = tmp_path / "sample", tmp_path / "log"
    subprocess.run([sys.executable, "-m", "data_scripts.make_sample_data", str(sample)], cwd=ROOT, check=True)
    done = subprocess.run(
        ["bash", "-c", f"source config_CPU_1x2.sh && DATADIR={sample} LOGDIR={logdir} ./run_and_time.sh"],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=420,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compliance checker (6.1.0): passed" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("success: ")

    log = logdir / "result_0.txt"
    logged = {record["key"]: record["value"] for record in records(log)}
    assert logged["max_sequence_length"] == 8192
    assert logged["submission_division"] == "open"
    assert logged["submission_platform"] == "CPU_1x2"
    assert logged["config_filename"] == "config_CPU_1x2.sh"
    assert logged["cache_clear"] is False
    losses = values(log, "train_loss")
    # Bytes of English text. The loss starts at the uniform distribution over 256 bytes, ln(256) = 5.5 nats.
    assert losses[0] > 5.4
    assert logged["eval_accuracy"] <= logged["target_accuracy"] < 3.34
    assert (logdir / "compliance_checker.log").exists()
    assert json.loads((logdir / "config.json").read_text())["eval_tokens_sha256"] == logged["eval_tokens_sha256"]
