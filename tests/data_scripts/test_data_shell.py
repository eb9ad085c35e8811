"""The two scripts: everything is passed on, from where they are called, with the repository's Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_scripts.c4 import PREFIXES
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
    """A Python that only says where it is called from, with which path, and with which words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/sh\npwd\necho "$PYTHONPATH"\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_everything_is_passed_on_from_where_it_is_called(tmp_path: Path, command: str) -> None:
    python = str(stub(tmp_path / "a python"))
    done = run(script(ROOT, command), *GIVEN, cwd=tmp_path, PYTHON=python, PYTHONPATH="/other")
    assert done.stdout.splitlines() == [str(tmp_path), f"{ROOT}:/other", "-m", "data_scripts", command, *GIVEN]
    done = run(script(ROOT, command), cwd=tmp_path, PYTHON=python)
    assert done.stdout.splitlines() == [str(tmp_path), str(ROOT), "-m", "data_scripts", command]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_repository_s_own_python_comes_before_the_system_s(tmp_path: Path, command: str) -> None:
    copy = script(tmp_path / "a repository", command)
    copy.parent.mkdir(parents=True)
    shutil.copy(script(ROOT, command), copy)
    system = stub(tmp_path / "bin" / "python3").parent
    path = f"{system}:{os.environ['PATH']}"
    assert run(copy, cwd=tmp_path, PATH=path).stdout.splitlines()[1] == str(tmp_path / "a repository")
    stub(tmp_path / "a repository/.venv/bin/python").write_text("#!/bin/sh\necho the repository\n")
    assert run(copy, cwd=tmp_path, PATH=path).stdout == "the repository\n"


def test_they_work_and_pass_the_status_on(tmp_path: Path) -> None:
    make(tmp_path / "set", [Document(f"m{number}", "Some text. " * 9000) for number in range(60)])
    done = run(script(ROOT, "verify"), "set", cwd=tmp_path, PYTHON=sys.executable)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert (tmp_path / "set/verified.json").is_file()
    (tmp_path / f"set/{PREFIXES[0]}.idx").unlink()
    assert run(script(ROOT, "verify"), "set", cwd=tmp_path, PYTHON=sys.executable).returncode == 1
    done = run(script(ROOT, "download"), "new", "--offline", cwd=tmp_path, PYTHON=sys.executable)
    names = [f"{prefix}{suffix}: missing" for prefix in PREFIXES for suffix in (".bin", ".idx")]
    assert (done.returncode, done.stdout.splitlines()) == (1, names)
    assert done.stderr.startswith("error: new: got 4 of 4 files")
