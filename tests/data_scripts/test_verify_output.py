"""The report is kept whatever becomes of the output, and never for a lesser one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.small_sets import write_set
from tests.support.verify_runs import OPTIONS, verify


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    write_set(tmp_path / "set")
    return tmp_path / "set"


def in_shell(script: str, folder: Path) -> tuple[int, str]:
    words = [sys.executable, "-m", "data_scripts.verify", str(folder), *OPTIONS]
    done = subprocess.run(["bash", "-c", script, "bash", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_reader_that_has_gone_costs_no_report(ours: Path) -> None:
    status, error = in_shell('"$@" | true; exit ${PIPESTATUS[0]}', ours)
    # the reader may be gone before the first line, or after the last
    assert status in {0, 141} and error == ""
    assert json.loads((ours / "verified.json").read_text())["verdict"] == "pass"


def test_a_full_output_is_a_line_and_costs_no_report(ours: Path) -> None:
    status, error = in_shell('"$@" > /dev/full', ours)
    assert (status, error) == (1, "error: No space left on device\n")
    assert json.loads((ours / "verified.json").read_text())["verdict"] == "pass"


def test_no_output_at_all(ours: Path) -> None:
    assert in_shell('"$@" >&-', ours) == (0, "")
    assert (ours / "verified.json").is_file()


@pytest.mark.parametrize("less", ["--no-md5", "--quick"])
def test_a_lesser_pass_does_not_replace_the_report_of_a_full_one(ours: Path, less: str) -> None:
    verify(ours)
    full = (ours / "verified.json").read_bytes()
    done = verify(ours, less)
    assert done.exit_code == 0
    assert "it holds the report of a full verification" in done.stderr
    assert (ours / "verified.json").read_bytes() == full


@pytest.mark.parametrize("report", ["[" * 200_000, '"text"', ""])
def test_a_file_that_is_no_report_stays(ours: Path, report: str) -> None:
    (ours / "verified.json").write_text(report)
    done = verify(ours)
    assert done.exit_code == 0 and "another file has this name" in done.stderr
    assert (ours / "verified.json").read_text() == report


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_read(ours: Path) -> None:
    done = verify(ours, "--report", "/proc/report.json")
    assert done.exit_code == 2 and done.stdout == ""
    assert "cannot be written" in done.stderr
