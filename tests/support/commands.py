"""Calling the command line in this process, as a user would in a shell."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from compliance.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit status and both outputs of one command."""

    status: int
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """`python -m compliance ARGUMENTS`."""
    before = sys.argv
    sys.argv = ["compliance", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), captured.out, captured.err)
