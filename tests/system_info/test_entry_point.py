"""What the three command lines share: a stdout that may close or fill, and a package that is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_COMPLIANT = "compliance check-run tests/system_info/test_entry_point.py --no-official"


def run_in_shell(command: str, redirection: str) -> tuple[int, str]:
    script = f"{sys.executable} -m {command} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("redirection", ["| true", "| head -1 > /dev/null", ">&-"])
@pytest.mark.parametrize(
    ("command", "status"),
    [("gptoss20b train --dry-run", 0), ("compliance rules", 0), (NOT_COMPLIANT, 1), ("data_scripts --help", 0)],
)
def test_the_status_is_that_of_the_work_if_nobody_reads(command: str, status: int, redirection: str) -> None:
    assert run_in_shell(command, redirection) == (status, "")


@pytest.mark.parametrize(
    ("command", "status"), [("gptoss20b settings", 1), ("compliance rules", 2), ("data_scripts --help", 1)]
)
def test_a_full_disk_behind_stdout_is_one_line(command: str, status: int) -> None:
    code, error = run_in_shell(command, "> /dev/full")
    assert code == status
    (line,) = error.splitlines()
    assert line.startswith("error: stdout: No space left on device")


def test_a_name_that_the_terminal_cannot_show_is_escaped() -> None:
    script = "from system_info.entry_point import prepare_stdout as p; p(); print('caf\\u00e9 \\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert done.stdout == b"caf\\xe9 \\udcff\n"
