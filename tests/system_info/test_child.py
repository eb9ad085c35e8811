"""Functions in child processes: results, errors, and time limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from system_info.child import ChildCall, ChildError
from tests.support.waiting import is_gone, wait_until

LIMIT_S = 20.0


def test_a_long_result_arrives_whole() -> None:
    long = ["ä" * 5000] * 50  # more than a pipe holds
    assert ChildCall(lambda: long, LIMIT_S).result() == long


def raise_error() -> None:
    raise ValueError("two\nlines")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raise_error, "ValueError: two lines"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: sys.exit("at once"), "exit status 0"),
        (lambda: lambda: None, "exit status 0"),  # which cannot be pickled
    ],
)
def test_an_error_or_a_crash_is_named(function: Callable[[], object], message: str) -> None:
    with pytest.raises(ChildError, match=message):
        ChildCall(function, LIMIT_S).result()


def test_a_call_that_hangs_ends_at_its_limit_and_leaves_nothing_running(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def hang() -> None:
        # A tool with a child that holds its output, as a hanging driver's tool has.
        subprocess.run(["sh", "-c", f"sleep 300 & echo $! > {pid_file}; wait"], capture_output=True, check=False)

    began = time.monotonic()
    with pytest.raises(TimeoutError, match="1 s"):
        ChildCall(hang, 1.0).result()
    assert time.monotonic() - began < LIMIT_S
    wait_until(lambda: is_gone(int(pid_file.read_text())), 10, "the tool's child outlived it")


def test_output_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def talk() -> None:
        os.system("echo from a tool; echo from a tool >&2")
        os.write(1, b"from a library")
        os.write(2, b"from a library")

    ChildCall(talk, LIMIT_S).result()
    assert capfd.readouterr() == ("", "")
