"""Signals end a run in time, whatever blocks its main thread. Each case runs in its own process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gptoss20b.stopping import ExitCode, exit_on_signal
from tests.support.paths import ROOT

LIMIT_S = 2.0

PREAMBLE = """
import ctypes, os, signal, sys, threading, time
from gptoss20b import stopping
from gptoss20b.stopping import exit_on_signal

def on_exit(name):
    print("exiting:", name)  # buffered: exiting must flush it

def ready():
    print("ready", flush=True)
"""

SLEEP = "time.sleep(60)"
LOCK = "lock = threading.Lock(); lock.acquire(); lock.acquire()"
# Never returns to the interpreter, like a rank that waits inside a collective for a lost peer: the C library's mutex,
# locked twice, which no signal interrupts.
DEADLOCK_IN_C = "c = ctypes.CDLL(None); m = ctypes.create_string_buffer(64); [c.pthread_mutex_lock(m) for _ in '12']"
BUSY = "while True: pass"


def start(body: str) -> subprocess.Popen[str]:
    """Start a process in its own group, and return when it has called `ready()`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(body)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str], within: float) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr. Kill the process and fail the test if it takes longer."""
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail(f"still running {within} s after the signal")
    return process.returncode, out, err


def test_exit_codes_are_the_documented_ones() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "CONVERGED": 0,
        "FAILED": 1,
        "BAD_CONFIGURATION": 2,
        "NOT_CONVERGED": 3,
        "DIVERGED": 4,
        "NOT_COMPLIANT": 5,
        "INTERRUPTED": 128 + signal.SIGINT,
        "TERMINATED": 128 + signal.SIGTERM,
    }


@pytest.mark.parametrize("stuck_in", [SLEEP, LOCK, DEADLOCK_IN_C, BUSY], ids=["sleep", "lock", "in C", "busy"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_a_signal_ends_a_stuck_process(stuck_in: str, number: signal.Signals, status: int) -> None:
    process = start(
        f"""
        with exit_on_signal(on_exit):
            ready()
            {stuck_in}
        """
    )
    process.send_signal(number)
    assert finish(process, LIMIT_S) == (status, f"exiting: {number.name}\n", "")


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    child = f"""
import os, pathlib, time
from gptoss20b.stopping import die_with_parent, exit_on_signal
with exit_on_signal(pathlib.Path({str(tmp_path / "signal")!r}).write_text):
    die_with_parent()
    pathlib.Path({str(tmp_path / "up")!r}).write_text(str(os.getpid()))
    time.sleep(60)
"""
    parent = start(
        f"""
        import subprocess
        subprocess.Popen([sys.executable, "-c", {child!r}])
        ready()
        time.sleep(60)
        """
    )
    end = time.monotonic() + 30
    while not (tmp_path / "up").exists() or not (tmp_path / "up").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    orphan = Path("/proc") / (tmp_path / "up").read_text()
    parent.kill()
    parent.communicate()
    while orphan.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert (tmp_path / "signal").read_text() == "SIGTERM"


@pytest.mark.parametrize(
    ("on_exit", "output"),
    [
        ("on_exit(name); time.sleep(0.4)", "exiting: SIGTERM\n"),  # called once for three signals
        ("print('trying', flush=True); time.sleep(60)", "trying\n"),
        ("raise OSError('no space left')", ""),
    ],
    ids=["slow", "hangs", "fails"],
)
def test_a_slow_hanging_or_failing_on_exit_does_not_keep_the_process(on_exit: str, output: str) -> None:
    process = start(
        f"""
        stopping.GRACE_SECONDS = 0.8

        def other(name):
            {on_exit}

        with exit_on_signal(other):
            ready()
            time.sleep(60)
        """
    )
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.05)
    assert finish(process, LIMIT_S)[:2] == (143, output)
    assert time.monotonic() - began >= (0.8 if "60" in on_exit else 0)


def test_other_signals_keep_their_handlers() -> None:
    process = start(
        """
        signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"mine\\n"))
        with exit_on_signal(on_exit):
            ready()
            time.sleep(0.5)
        print("done")
        """
    )
    process.send_signal(signal.SIGUSR1)
    assert finish(process, LIMIT_S) == (0, "mine\ndone\n", "")


def test_handlers_and_descriptors_are_restored() -> None:
    def mine(*_: object) -> None:
        pass

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, mine) for number in numbers}
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for _ in range(3):
            with contextlib.suppress(ZeroDivisionError), exit_on_signal(lambda _: None):
                assert all(signal.getsignal(number) is not mine for number in numbers)
                raise ZeroDivisionError
        assert all(signal.getsignal(number) is mine for number in numbers)
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    finally:
        assert signal.set_wakeup_fd(previous_fd) == writer
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def test_default_actions_are_restored() -> None:
    process = start(
        """
        with exit_on_signal(on_exit):
            pass
        try:
            ready()
            time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        time.sleep(60)
        """
    )
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "interrupted\n"
    process.send_signal(signal.SIGTERM)
    assert finish(process, LIMIT_S) == (-signal.SIGTERM, "", "")


def test_a_forked_child_does_not_keep_its_parent() -> None:
    process = start(
        """
        with exit_on_signal(on_exit):
            child = os.fork()
            if child == 0:
                time.sleep(60)
            ready()
            threading.Timer(1.0, os.kill, (child, signal.SIGKILL)).start()
            began = time.monotonic()
        print("left at once" if time.monotonic() - began < 0.5 else "waited for the child")
        """
    )
    assert finish(process, 5)[:2] == (0, "left at once\n")  # Python 3.12 warns of the fork on stderr
