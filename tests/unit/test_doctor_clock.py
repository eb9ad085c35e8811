"""The doctor's findings on the clock."""

from __future__ import annotations

import ctypes
import re
import subprocess
import time
from pathlib import Path

import pytest

import gptoss20b
from gptoss20b.tools.doctor.clock import check_clock, is_kernel_synchronised, read_code_time
from gptoss20b.tools.doctor.finding import Finding, Verdict
from tests.support.findings import assert_finding
from tests.support.made_machines import made_tool


def clock(synchronised: bool | None, offset: float = 0.0) -> Finding:
    (found,) = check_clock(1.7e9, lambda: synchronised, lambda: time.time() + offset)
    return found


def test_a_clock_that_the_kernel_calls_synchronised(tools: Path) -> None:
    assert_finding(clock(True), Verdict.PASS, "(kernel)")


@pytest.mark.parametrize("kernel", [False, None])
def test_chronyd_may_discipline_a_clock_without_the_kernels_knowledge(tools: Path, kernel: bool | None) -> None:
    made_tool(tools, "chronyc", "Reference ID    : 00000000\nLeap status     : Not synchronised")
    assert_finding(clock(kernel), Verdict.WARN, fix="chronyd")
    made_tool(tools, "chronyc", "Reference ID    : A29FC801\nLeap status     : Normal")
    assert_finding(clock(kernel), Verdict.PASS, "(chronyc)")
    made_tool(tools, "timedatectl", "yes")
    assert_finding(clock(kernel), Verdict.PASS, "(timedatectl)")


def test_a_clock_before_the_code_was_made_is_wrong(tools: Path) -> None:
    found = clock(True, offset=1.7e9 - time.time() - 3600)
    assert_finding(found, Verdict.FAIL, "got 2023-11-14 21:13", "expected 2023-11-14 22:13:20 UTC")


@pytest.mark.parametrize("step", [-0.5, 0.5])
def test_a_clock_that_is_set_during_the_check_is_a_warning(tools: Path, step: float) -> None:
    began = time.monotonic()
    (found,) = check_clock(1.7e9, lambda: True, lambda: time.time() + (step if time.monotonic() > began + 0.1 else 0))
    assert found.verdict is Verdict.WARN
    deviation = re.search(r"(\d+) ms", found.found)
    assert deviation is not None
    assert 450 <= int(deviation[1]) <= 500


def test_the_code_was_made_when_it_was_committed_and_the_kernel_answers() -> None:
    head = subprocess.run(["git", "show", "-s", "--format=%ct"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert read_code_time() == float(head.stdout)
    assert 1.7e9 < read_code_time() < time.time() + 60
    # The call's own answer: TIME_ERROR, 5, for a clock that is not synchronised; below 0 where it is not allowed.
    answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))
    assert is_kernel_synchronised() is (None if answer < 0 else answer != 5)


def test_without_git_the_newest_file_dates_the_code(tools: Path) -> None:
    folder = Path(gptoss20b.__file__).parent
    assert read_code_time() == max(path.stat().st_mtime for path in folder.rglob("*.py"))
