"""The command line, called in this process."""

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
    """Run ``python -m compliance ARGUMENTS``."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["compliance", *map(str, arguments)])
        main()
    captured = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), captured.out, captured.err)
