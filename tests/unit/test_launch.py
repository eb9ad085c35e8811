"""torchrun's own messages: none for ends that the ranks explain, one line for others, and always exit status 1."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("end", "fact"),
    [
        ("exit 3", ""),
        ("exit 4", ""),
        ("kill -TERM $PPID; sleep 20", ""),
        ("exit 1", "rank 0 exited with 1"),
        ("exit 143", "rank 0 exited with 143"),
        ("kill -KILL $$$$", "rank 0 was killed by SIGKILL"),
    ],
)
def test_the_end_of_a_rank(end: str, fact: str) -> None:
    command = [sys.executable, "-m", "gptoss20b.launch", "--standalone", "--nproc_per_node=1", "--no-python"]
    done = subprocess.run(
        [*command, "bash", "-c", end], cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, bool(fact)), done.stderr
    assert fact in done.stderr
