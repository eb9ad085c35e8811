"""How the doctor runs its checks: at the same time, within limits, whatever they do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import pytest

from gptoss20b.tools.doctor.checks import Check, run_checks
from gptoss20b.tools.doctor.finding import Finding, Verdict, failed, passed
from tests.support.findings import assert_finding
from tests.support.paths import ROOT
from tests.support.waiting import is_gone, wait_until


def test_checks_run_at_the_same_time_and_answer_in_their_order() -> None:
    together = multiprocessing.get_context("fork").Barrier(4)

    def meet(number: int) -> list[Finding]:
        together.wait(5)
        return [passed(str(number), str(os.getpid()))]

    found = run_checks([Check(str(number), partial(meet, number), 20, "") for number in range(4)])
    assert [finding.name for finding in found] == ["0", "1", "2", "3"]
    assert len({finding.found for finding in found} - {str(os.getpid())}) == 4


def test_a_check_that_hangs_or_crashes_fails_alone() -> None:
    def hang() -> list[Finding]:
        time.sleep(60)
        return []

    def crash() -> list[Finding]:
        raise ValueError("nonsense")

    checks = [
        Check("GPUs", hang, 1, "restart the node"),
        Check("data", crash, 9, "look at the file system"),
        Check("empty", list, 9, ""),
        Check("clock", lambda: [passed("clock", "right")], 9, ""),
    ]
    hanging, crashed, clock = run_checks(checks)
    assert hanging == failed("GPUs", "no answer within 1 s", "restart the node")
    assert_finding(crashed, Verdict.FAIL, "ValueError: nonsense", fix="error of the check itself")
    assert (crashed.name, clock) == ("data", passed("clock", "right"))


# A doctor with one check, which prints its own process id and hangs.
HANGING_DOCTOR = """
import os, signal, threading
from gptoss20b.tools.doctor.checks import Check, run_checks

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
        # Python drops a KeyboardInterrupt that arrives while the hooks after os.fork run: press Ctrl-C again then.
        while doctor.poll() is None:
            doctor.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                doctor.wait(5)
        wait_until(lambda: is_gone(pid), 10, "the check outlived the doctor")
