"""The doctor's findings on the clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss20b.tools.doctor.clock import check_clock
from gptoss20b.tools.doctor.finding import Verdict
from tests.support.findings import assert_finding
from tests.support.made_machines import made_tool

NOT_ALLOWED, SYNCHRONISED, TIME_ERROR = -1, 0, 5


@pytest.fixture
def kernel(tools: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the kernel's answer."""

    def set_answer(answer: int) -> None:
        library = SimpleNamespace(adjtimex=lambda state: answer)
        monkeypatch.setattr("gptoss20b.tools.doctor.clock.ctypes.CDLL", lambda name: library)

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
