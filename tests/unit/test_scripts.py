"""Test the form of all shell scripts, the Makefile and .ci/run."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.configs import load_config
from tests.support.paths import ROOT

SCRIPTS = [*sorted(ROOT.glob("*.sh")), *sorted(ROOT.glob("*/*.sh")), ROOT / "run.sub", ROOT / ".ci" / "run"]
SOURCED = {"start.sh"}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_stop_at_the_first_failure_if_executable(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    executable = bool(script.stat().st_mode & stat.S_IXUSR)
    assert executable == (not script.name.startswith("config_") and script.name not in SOURCED)
    assert ("\nset -euo pipefail\n" in text) == executable


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "--dry-run", "--always-make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@needs_make
def test_make_test_runs_every_check() -> None:
    commands = make("test")
    tools = ("ruff format --check", "ruff check", "mypy", "shellcheck", "hadolint Dockerfile", "pytest")
    assert [tool for tool in (*tools, "requirements/lock.txt") if tool not in commands] == []
    assert [script for script in SCRIPTS if str(script.relative_to(ROOT)) not in commands] == []


@needs_make
def test_make_run_is_the_users_two_commands() -> None:
    commands = make("run")
    assert "data_scripts.make_sample_data data/sample" in commands
    # With the prepared interpreter, whatever interpreter PYTHON names for the preparation.
    assert "source config_CPU_1x2.sh && PYTHON=.venv/bin/python ./run_and_time.sh" in commands
    assert load_config("config_CPU_1x2.sh")["DATADIR"] == f"{ROOT}/data/sample"


def test_ci_runs_make_test_and_the_proof(tmp_path: Path) -> None:
    (tmp_path / "make").write_text('#!/bin/sh\necho "$PWD $*"\n')
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 1\n")  # nothing is installed, whatever this machine allows
    for tool in ("make", "apt-get"):
        (tmp_path / tool).chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{ROOT} test\n{ROOT} gpu-proof\n{ROOT} soak\n"
