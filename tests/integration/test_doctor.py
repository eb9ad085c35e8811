"""The command `python -m gptoss20b doctor`, and the sum over real ranks that it starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptoss20b.config import Config, resolve
from gptoss20b.tools.doctor.bandwidth import check_bandwidth
from gptoss20b.tools.doctor.finding import Verdict
from gptoss20b.tools.doctor.network import check_collectives
from tests.support.findings import assert_finding
from tests.support.paths import ROOT
from tests.support.ranks import NO_GPU


@pytest.fixture
def two_ranks(no_settings: None) -> Config:
    return resolve({"MODEL_VARIANT": "tiny", "SUBMISSION_DIVISION": "open"})


def doctor(variables: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command in LOGDIR, without this process's settings."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "gptoss20b", "doctor", *options],
        cwd=variables["LOGDIR"],
        env=environment | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


@pytest.mark.slow
def test_a_healthy_node_passes_and_is_left_as_it_was(tiny: dict[str, str], data: Path, tmp_path: Path) -> None:
    before = sorted(data.iterdir())
    settings = tiny | NO_GPU | {"LOGDIR": str(tmp_path), "DGXNGPU": "2", "EXPERT_PARALLEL": "2"}
    began = time.monotonic()
    done = doctor(settings, "--json")
    assert time.monotonic() - began < 60
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "pass"
    found = {check["name"]: check for check in document["checks"]}
    assert list(found) == [
        "configuration", "processors", "back end", "host memory", "swap", "shared memory", "open files",
        "locked memory", "processor frequency", "data", "data verified", "data speed", "LOGDIR", "free space",
        "checkpoints", "clock", "packages", "Transformer Engine", "code", "page cache", "rendezvous", "collectives",
        "kernels",
    ]  # fmt: skip
    for name in ("configuration", "back end", "host memory", "data", "LOGDIR", "free space", "collectives"):
        assert found[name]["verdict"] == "pass", found[name]
    assert found["data verified"]["verdict"] == "warn"
    assert "2 ranks over gloo" in found["collectives"]["found"]
    assert "tiny on 1 x 2, EP 2" in found["configuration"]["found"]
    assert done.stderr == ""
    assert sorted(data.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_node_without_its_gpus_and_data_gets_the_fixes(tmp_path: Path) -> None:
    # The reference on eight GPUs, on a machine where torch sees none: no rank is started.
    settings = {"DATADIR": str(tmp_path / "nowhere"), "LOGDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "99"}
    done = doctor(settings)
    assert done.returncode == 1, done.stdout + done.stderr
    bad = done.stdout.splitlines()[-1].removeprefix("to fix: ").split(", ")
    assert {"GPUs", "data"} <= set(bad)
    for text in ("torch sees none", "expected 8 (DGXNGPU)", "each rank needs its GPU first"):
        assert text in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_hanging_rank_is_killed_at_the_limit_and_named(
    two_ranks: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second rank sleeps at its start, as on a GPU that hangs.
    script = "import os, time\nif os.environ.get('LOCAL_RANK') == '1':\n    time.sleep(600)\n"
    (tmp_path / "sitecustomize.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.monotonic()
    (found,) = check_collectives(two_ranks, "gloo", 6)
    assert time.monotonic() - began < 25
    assert_finding(found, Verdict.FAIL, "rank 1 never started", fix="GLOO_SOCKET_IFNAME")


def test_a_rank_that_fails_is_named_with_its_error(two_ranks: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    # A wrong interface ends a rank with an error, long before any limit.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    began = time.monotonic()
    (found,) = check_collectives(two_ranks, "gloo", 60)
    assert time.monotonic() - began < 40
    assert_finding(found, Verdict.FAIL, "failed", "no-such-interface")


@pytest.mark.slow
def test_the_bandwidth_of_the_layout_s_transfers(two_ranks: Config) -> None:
    collectives, bucket, head, dispatch = check_bandwidth(two_ranks, "gloo", 60)
    assert_finding(collectives, Verdict.PASS, "2 ranks over gloo")
    assert_finding(bucket, Verdict.PASS, "all-reduce of 160.0 MB in groups of 2")
    assert_finding(head, Verdict.PASS, "all-reduce of 0.1 MB")
    assert_finding(dispatch, Verdict.PASS, "all-to-all of 8.4 MB in groups of 2")
    for finding in (bucket, dispatch):
        (rate,) = re.findall(r"bus bandwidth ([\d.]+) GB/s", finding.found)
        assert 0 < float(rate) < 100


# A rank whose sum is wrong, as with memory or a link that changes bits.
WRONG_SUM = """
import sys
import torch.distributed as dist
from gptoss20b.tools.doctor.collective import main

dist.all_reduce = lambda tensor: tensor[7:9].add_(1)
main("gloo", sys.argv[1], 20.0)
"""


def test_a_sum_that_is_wrong_is_an_error(tmp_path: Path) -> None:
    one_rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRONG_SUM, str(tmp_path / "store")]
    done = subprocess.run(command, env=os.environ | NO_GPU | one_rank, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.split() == ["started", "joined"]
    assert "wrong sum in 2 of 1048576 elements: got 2.0, expected 1.0" in done.stderr
