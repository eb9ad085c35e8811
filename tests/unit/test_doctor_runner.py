"""How the doctor runs its checks: at the same time, within limits, whatever they do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from gptoss20b.tools.doctor.finding import Finding, Verdict, failed, passed, warned
from gptoss20b.tools.doctor.runner import Check, run_checks
from tests.support.paths import ROOT

CLOCK = passed("clock", "right")


def test_checks_run_at_the_same_time_and_answer_in_their_order() -> None:
    together = multiprocessing.get_context("fork").Barrier(4)

    def meet(number: int) -> list[Finding]:
        together.wait(5)
        return [passed(str(number), str(os.getpid()))]

    found = run_checks([Check(str(number), partial(meet, number), 20, "") for number in range(4)])
    assert [finding.name for finding in found] == ["0", "1", "2", "3"]
    assert len({finding.found for finding in found} - {str(os.getpid())}) == 4


def test_a_check_that_hangs_fails_at_its_limit_and_leaves_nothing_running(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def hang() -> list[Finding]:
        # A tool with a child that holds its output, as a hanging driver's tool has.
        script = f"{sys.executable} -c 'import time; time.sleep(300)' & echo $! > {pid_file}; wait"
        subprocess.run(["sh", "-c", script], capture_output=True, check=False)
        return []

    began = time.monotonic()
    (found, other) = run_checks([Check("GPUs", hang, 2, "restart the node"), Check("clock", lambda: [CLOCK], 2, "")])
    assert time.monotonic() - began < 20
    assert found == failed("GPUs", "no answer within 2 s", "restart the node")
    assert other == CLOCK
    wait_until_gone(int(pid_file.read_text()))


def wait_until_gone(pid: int) -> None:
    """Wait until a process is gone, or dead and not yet collected."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state in "ZX":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")


# A doctor with one check, which prints its own process id and hangs.
HANGING_DOCTOR = """
import os, signal, threading
from gptoss20b.tools.doctor.runner import Check, run_checks

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored

output = os.dup(1)

def hang():
    os.write(output, f"{os.getpid()}\\n".encode())
    threading.Event().wait(300)

run_checks([Check("hang", hang, 300, "")])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_checks_end_with_the_doctor(number: signal.Signals) -> None:
    command = [sys.executable, "-c", HANGING_DOCTOR]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as doctor:
        assert doctor.stdout is not None
        pid = int(doctor.stdout.readline())
        doctor.send_signal(number)
        doctor.wait(20)
        wait_until_gone(pid)


def test_a_check_that_crashes_is_a_failed_check_with_its_error() -> None:
    def raise_error() -> list[Finding]:
        raise ValueError("two\nlines")

    def kill_itself() -> list[Finding]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    def call_exit() -> list[Finding]:
        sys.exit("at once")

    found = run_checks(
        [
            Check("a", raise_error, 9, ""),
            Check("b", kill_itself, 9, ""),
            Check("c", call_exit, 9, ""),
            Check("d", list, 9, ""),
        ]
    )
    assert [(each.name, each.verdict) for each in found] == [(name, Verdict.FAIL) for name in "abc"]
    assert found[0].found == "ValueError: two lines"
    assert "SIGKILL" in found[1].found
    assert "exit status 0" in found[2].found
    assert all(each.fix for each in found)


def test_output_of_a_check_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def talk() -> list[Finding]:
        os.system("echo from a tool; echo from a tool >&2")
        os.write(1, b"from a library")
        os.write(2, b"from a library")
        return [CLOCK]

    assert run_checks([Check("talk", talk, 9, "")]) == [CLOCK]
    assert capfd.readouterr() == ("", "")


def test_many_findings_with_long_texts_arrive_whole() -> None:
    long = [warned(f"{n}", "ä" * 5000, "x" * 5000) for n in range(50)]  # more than a pipe holds
    assert run_checks([Check("long", lambda: long, 20, "")]) == long
