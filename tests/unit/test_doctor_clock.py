"""The doctor's findings on the clock."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import gptoss20b
from gptoss20b.tools.doctor.clock import check_clock, read_code_time
from gptoss20b.tools.doctor.finding import Verdict
from tests.support.findings import assert_finding
from tests.support.made_machines import made_tool

NOT_ALLOWED, SYNCHRONISED, TIME_ERROR = -1, 0, 5
CLOCK = "gptoss20b.tools.doctor.clock"


@pytest.fixture
def kernel(tools: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the kernel's answer, with code that was made on 2023-11-14 at 22:13:20 UTC."""
    monkeypatch.setattr(f"{CLOCK}.read_code_time", lambda: 1.7e9)

    def set_answer(answer: int) -> None:
        library = SimpleNamespace(adjtimex=lambda state: answer)
        monkeypatch.setattr(f"{CLOCK}.ctypes.CDLL", lambda name: library)

    set_answer(SYNCHRONISED)
    return set_answer


@pytest.mark.parametrize("answer", [TIME_ERROR, NOT_ALLOWED])
def test_the_kernel_or_chronyd_synchronises_the_clock(tools: Path, kernel: Callable[[int], None], answer: int) -> None:
    assert_finding(check_clock()[0], Verdict.PASS, "synchronised")
    kernel(answer)
    assert_finding(check_clock()[0], Verdict.WARN, fix="chronyd")
    for status, verdict in (("Not synchronised", Verdict.WARN), ("Normal", Verdict.PASS)):
        made_tool(tools, "chronyc", f"Reference ID    : A29FC801\nLeap status     : {status}")
        assert check_clock()[0].verdict is verdict


@pytest.mark.usefixtures("kernel")
def test_a_clock_before_the_code_was_made_is_wrong() -> None:
    offset = 1.7e9 - time.time() - 3600
    (found,) = check_clock(lambda: time.time() + offset)
    assert_finding(found, Verdict.FAIL, "got 2023-11-14 21:13", "expected 2023-11-14 22:13:20 UTC")


def test_the_code_was_made_when_it_was_committed_or_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    head = subprocess.run(["git", "show", "-s", "--format=%ct"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert read_code_time() == float(head.stdout)
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    files = Path(gptoss20b.__file__).parent.rglob("*.py")
    assert read_code_time() == max(path.stat().st_mtime for path in files)
