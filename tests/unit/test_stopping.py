"""Signals end a run in time, whatever its main thread is stuck in. Each case is a process of its own."""

from __future__ import annotations

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

IN_TIME = 2.0

PREAMBLE = """
import ctypes, os, signal, sys, threading, time
from gptoss20b import stopping
from gptoss20b.stopping import exit_on_signal

def on_exit(name):
    print("last words:", name)  # left in the buffer: leaving must flush it

def ready():
    print("ready", flush=True)
"""

SLEEP = "time.sleep(60)"
LOCK = "lock = threading.Lock(); lock.acquire(); lock.acquire()"
# Never comes back to the interpreter, as a rank that waits inside a collective for a lost peer: the C library's own
# mutex, locked twice, which no signal interrupts.
DEADLOCK_IN_C = "c = ctypes.CDLL(None); m = ctypes.create_string_buffer(64); [c.pthread_mutex_lock(m) for _ in '12']"
BUSY = "while True: pass"


def start(body: str) -> subprocess.Popen[str]:
    """A process that has come as far as `ready()`, in a group of its own."""
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
    """Exit status, stdout and stderr; the process is killed and the test fails if it takes longer."""
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
    assert finish(process, IN_TIME) == (status, f"last words: {number.name}\n", "")


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    child = f"""
import os, pathlib, time
from gptoss20b.stopping import die_with_parent, exit_on_signal
with exit_on_signal(pathlib.Path({str(tmp_path / "said")!r}).write_text):
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
    assert (tmp_path / "said").read_text() == "SIGTERM"


def test_the_last_words_are_said_once() -> None:
    process = start(
        """
        def slow_words(name):
            on_exit(name)
            time.sleep(0.4)

        with exit_on_signal(slow_words):
            ready()
            time.sleep(60)
        """
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.05)
    assert finish(process, IN_TIME) == (143, "last words: SIGTERM\n", "")


def test_last_words_that_hang_are_cut_short() -> None:
    process = start(
        """
        stopping._GRACE_SECONDS = 0.3

        def hang(name):
            print("trying", flush=True)
            time.sleep(60)

        with exit_on_signal(hang):
            ready()
            time.sleep(60)
        """
    )
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert finish(process, IN_TIME) == (143, "trying\n", "")
    assert time.monotonic() - began >= 0.3


def test_last_words_that_fail_do_not_keep_the_process() -> None:
    process = start(
        """
        def fail(name):
            raise OSError("no space left")

        with exit_on_signal(fail):
            ready()
            time.sleep(60)
        """
    )
    process.send_signal(signal.SIGTERM)
    assert finish(process, IN_TIME)[0] == 143


def test_other_signals_are_none_of_its_business() -> None:
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
    assert finish(process, IN_TIME) == (0, "mine\ndone\n", "")


def test_afterwards_everything_is_as_before() -> None:
    def mine(*_: object) -> None:
        pass

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    previous = {number: signal.signal(number, mine) for number in (signal.SIGTERM, signal.SIGINT)}
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for _ in range(3):
            with exit_on_signal(lambda _: None):
                assert signal.getsignal(signal.SIGTERM) is not mine
                assert signal.getsignal(signal.SIGINT) is not mine
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is mine
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    finally:
        assert signal.set_wakeup_fd(previous_fd) == writer
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def test_afterwards_an_interrupt_is_python_s_again_and_termination_the_system_s() -> None:
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
    assert finish(process, IN_TIME) == (-signal.SIGTERM, "", "")


def test_an_exception_passes_through_and_everything_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), exit_on_signal(lambda _: None):
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


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
    assert finish(process, 5) == (0, "left at once\n", "")
