"""The two shell scripts: arguments and exit status are passed through, with the repository's Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_scripts.c4 import FILES
from data_scripts.make_sample_data import Document, make
from tests.support.paths import ROOT

COMMANDS = ("download", "verify")
GIVEN = ["my data", "--streams", "3", "--source=https://x/y.uri", "--report", "a b.json", ""]


def script(root: Path, command: str) -> Path:
    return root / "data_scripts" / f"{command}_dataset.sh"


def run(path: Path, *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [path, *words],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def stub(path: Path) -> Path:
    """Write a Python that only prints its working directory, PYTHONPATH and arguments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/sh\npwd\necho "$PYTHONPATH"\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_and_working_directory_are_passed_through(tmp_path: Path, command: str) -> None:
    python = str(stub(tmp_path / "a python"))
    done = run(script(ROOT, command), *GIVEN, cwd=tmp_path, PYTHON=python, PYTHONPATH="/other")
    assert done.stdout.splitlines() == [str(tmp_path), f"{ROOT}:/other", "-m", "data_scripts", command, *GIVEN]
    done = run(script(ROOT, command), cwd=tmp_path, PYTHON=python)
    assert done.stdout.splitlines() == [str(tmp_path), str(ROOT), "-m", "data_scripts", command]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_python_of_the_repository_comes_first(tmp_path: Path, command: str) -> None:
    copy = script(tmp_path / "a repository", command)
    copy.parent.mkdir(parents=True)
    shutil.copy(script(ROOT, command), copy)
    system = stub(tmp_path / "bin" / "python3").parent
    path = f"{system}:{os.environ['PATH']}"
    assert run(copy, cwd=tmp_path, PATH=path).stdout.splitlines()[1] == str(tmp_path / "a repository")
    stub(tmp_path / "a repository/.venv/bin/python").write_text("#!/bin/sh\necho the repository\n")
    assert run(copy, cwd=tmp_path, PATH=path).stdout == "the repository\n"


@pytest.mark.slow
def test_they_run_and_pass_the_exit_status_through(tmp_path: Path) -> None:
    make(tmp_path / "set", [Document(f"m{number}", "Some text. " * 9000) for number in range(60)])
    done = run(script(ROOT, "verify"), "set", cwd=tmp_path, PYTHON=sys.executable)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert (tmp_path / "set/verified.json").is_file()
    (tmp_path / f"set/{FILES[1]}").unlink()
    assert run(script(ROOT, "verify"), "set", cwd=tmp_path, PYTHON=sys.executable).returncode == 1
    done = run(script(ROOT, "download"), "new", "--offline", cwd=tmp_path, PYTHON=sys.executable)
    assert (done.returncode, done.stdout.splitlines()) == (1, [f"{name}: missing" for name in FILES])
    assert done.stderr.startswith("error: new: got 4 of 4 files")
