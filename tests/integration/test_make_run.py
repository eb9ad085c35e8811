"""Test the commands of `make run`: the real CPU configuration, from the shell to the official checker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.local_runs import records, values
from tests.support.paths import ROOT


@pytest.mark.slow
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
