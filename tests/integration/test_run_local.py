"""Test the launcher without stubs: the run of `make run`, interrupted trials, and restarts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.local_runs import launched, records, values
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_whatever_is_killed_a_restart_resumes_the_trial(tiny: dict[str, str], tmp_path: Path) -> None:
    logdir = tmp_path / "set"
    log, result = logdir / "trial_1" / "result_0.txt", logdir / "result_1.txt"
    trial = tiny | {
        **{"NEXP": "1", "RESUME": "1", "SAVE_INTERVAL": "160", "LOGDIR": str(logdir), "TARGET_LOSS": "0.01"},
        **{"DGXNGPU": "2", "EXPERT_PARALLEL": "2", "GLOBAL_BATCH_SIZE": "4", "MAX_STEPS": "200"},
        "EVAL_INTERVAL_SAMPLES": "800",
    }

    def trains(attempt: int) -> bool:
        output = log.with_name("output.log")
        *before, current = (output.read_text() if output.exists() else "").split("trial 1 of 1:")
        saved = (log.parent / "checkpoints" / "step_00000040").exists()
        return saved and len(before) == attempt and '"train_loss"' in current

    killed = {
        "-u -m gptoss20b train": "1",
        "gptoss20b.launch": "1",
        "-m launch .* run$": "137",
        "-m launch .* local$": "",
    }
    for attempt, pattern in enumerate(killed, 1):
        with launched(trial | ({"SEED_BASE": "77"} if attempt == 1 else {})) as launch:
            wait_until(lambda: trains(attempt), 90, "a step after the first checkpoint")  # noqa: B023
            next(process for process in launch.processes() if re.search(pattern, " ".join(process.cmdline()))).kill()
            if killed[pattern]:
                status, output = launch.wait(30)
                assert status == 1 and f"1 trials in {logdir}: 1 failed" in output, output
            else:
                wait_until(lambda: launch.processes() == [], 30, "the end of all its processes")
            assert launch.processes() == []
        assert not result.exists()
    with launched(trial | {"COLLECTIVE_TIMEOUT": "61"}) as launch:  # a setting that may change
        status, output = launch.wait(120)
    assert status == 3 and "other settings" in output, output
    rows = [line.split("\t") for line in (logdir / "trials.tsv").read_text().splitlines()]
    assert rows[0] == ["trial", "seed", "started", "seconds", "status"]
    assert [(row[0], row[1], row[4]) for row in rows[1:]] == [("1", "77", status) for status in ("1", "1", "137", "3")]
    assert result.read_bytes() == log.read_bytes() and not (logdir / "trial_1_attempt_1").exists()
    assert set(values(result, "seed")) == {77} and len(values(result, "train_loss")) == 200
    # Each start truncates the log to its length at the checkpoint.
    assert 160 <= values(result, "resumed")[-1] < 800


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
    assert "\nsuccess: " in done.stderr

    log = logdir / "result_0.txt"
    logged = {record["key"]: record["value"] for record in records(log)}
    expected = {"submission_platform": "CPU_1x2", "config_filename": "config_CPU_1x2.sh", "submission_division": "open"}
    assert (expected | {"max_sequence_length": 8192, "cache_clear": False}).items() <= logged.items()
    losses = values(log, "train_loss")
    # Bytes of English text. The loss starts at the uniform distribution over 256 bytes, ln(256) = 5.5 nats.
    assert losses[0] > 5.4
    assert logged["eval_accuracy"] <= logged["target_accuracy"] < 3.34
    assert (logdir / "compliance_checker.log").exists()
    assert json.loads((logdir / "config.json").read_text())["eval_tokens_sha256"] == logged["eval_tokens_sha256"]
