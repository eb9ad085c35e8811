"""Test what the scripts of the Dockerfile's steps accept and refuse."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDERS = ("HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def run_script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "docker" / name, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], name: str, *facts: str) -> None:
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {name}: ")
    assert done.stderr.count("\n") == 1
    assert all(fact in done.stderr for fact in facts), done.stderr


@pytest.mark.parametrize("commit", [COMMIT, f"{COMMIT}-dirty"])
def test_a_commit_is_accepted(commit: str) -> None:
    done = run_script("check_commit.sh", commit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "commit", ["", "HEAD", COMMIT[:39], COMMIT + "0", COMMIT.upper(), f"{COMMIT}-dirt", f"{COMMIT} "]
)
def test_anything_else_than_a_commit_is_refused(commit: str) -> None:
    assert_refused(run_script("check_commit.sh", commit), "GIT_COMMIT", f"'{commit}'", "--build-arg GIT_COMMIT=")


@pytest.mark.parametrize("name", ["check_image.sh", "install_packages.sh", "open_to_all.sh"])
def test_missing_arguments_are_refused(name: str) -> None:
    assert_refused(run_script(name), "arguments", "got 0", name)


def test_a_base_without_torch_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    done = run_script("install_packages.sh", str(tmp_path / "venv"), "x.txt", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert_refused(done, "BASE_IMAGE", "torch")
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("missing", ["USER", "LOGNAME", *FOLDERS])
def test_an_image_without_a_variable_or_its_folder_is_refused(tmp_path: Path, missing: str) -> None:
    variables = dict.fromkeys(("USER", "LOGNAME", *FOLDERS), str(tmp_path))
    assert_refused(run_script("check_image.sh", "x.txt", **variables | {missing: ""}), missing, "not set")
    if missing in FOLDERS:
        folder = str(tmp_path / "missing")
        assert_refused(
            run_script("check_image.sh", "x.txt", **variables | {missing: folder}), folder, f"user {os.getuid()}"
        )
