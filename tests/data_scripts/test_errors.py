"""How every data command fails: one line, and the documented exit status."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import typer

from data_scripts.errors import CommandError, ExitCode, cli_errors
from gptoss20b.data.files import DataError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CommandError("a thing: got 1; expected 2."), "a thing: got 1; expected 2."),
        (DataError.about(Path("x.bin"), "1", "2", "try"), "x.bin: got 1; expected 2. To fix: try."),
        (OSError(13, "Permission denied", "y.bin"), "y.bin: Permission denied"),
        (
            OSError(28, "Full"),
            "out: got Full; expected a disk with room. To fix: make room and run the same command again.",
        ),
        (OSError("odd"), "out: odd"),
        (MemoryError(), "got too little memory; expected more. To fix: run fewer processes."),
    ],
)
def test_a_failure_is_a_line_and_1(capsys: pytest.CaptureFixture[str], error: Exception, line: str) -> None:
    with pytest.raises(typer.Exit) as ended, cli_errors(Path("out")):
        raise error
    assert ended.value.exit_code == ExitCode.FAILED
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), cli_errors():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, ExitCode.INTERRUPTED, "interrupted"), (signal.SIGTERM, ExitCode.TERMINATED, "terminated")],
)
def test_a_signal_unwinds_and_gives_its_status(
    capsys: pytest.CaptureFixture[str], number: int, status: ExitCode, word: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    unwound = False
    with pytest.raises(typer.Exit) as ended, cli_errors():
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            unwound = True
    assert (ended.value.exit_code, unwound, capsys.readouterr().err) == (status, True, f"error: {word}\n")
    assert signal.getsignal(signal.SIGTERM) == before
