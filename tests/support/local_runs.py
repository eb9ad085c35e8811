"""run_local.sh with nothing stubbed, as several tests start it, and what the logs say."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.paths import ROOT

# Megatron's decorators load torch's compiler, which nothing on a CPU uses: a second of each rank's start.
NO_COMPILER = {"TORCH_COMPILE_DISABLE": "1"}
BARE = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHON": sys.executable, **NO_COMPILER}


class Launch:
    """One run_local.sh with the CPU configuration and what is set after it. LOGDIR marks all that it starts."""

    def __init__(self, settings: dict[str, str], scripts: Path = ROOT) -> None:
        self.logdir = Path(settings["LOGDIR"])
        given = [f"{name}={value}" for name, value in settings.items()]
        self.process = subprocess.Popen(
            ["bash", "--norc", "-c", 'source config_CPU_1x2.sh && exec env "$@" ./run_local.sh', "bash", *given],
            cwd=scripts,
            env=BARE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self, limit_s: float) -> tuple[int, str]:
        """Exit status, and all that it showed."""
        output = self.process.communicate(timeout=limit_s)[0]
        return self.process.returncode, output

    def left(self) -> list[psutil.Process]:
        """What lives of this launch."""
        return living(self.logdir)

    def find(self, *words: str) -> psutil.Process:
        """The first process of this launch with these words, one after the other, in its command line."""
        return next(found for found in self.left() if " ".join(words) in " ".join(found.cmdline()))

    def kill(self) -> None:
        """Whatever the test did, nothing outlives it."""
        end_all(self.logdir)
        self.process.communicate()


def living(folder: Path) -> list[psutil.Process]:
    """Processes whose LOGDIR or command line names this folder, or what is in it."""
    return [process for process in psutil.process_iter() if _names(process, str(folder))]


def end_all(folder: Path) -> None:
    """Kill them until none is left: torchrun's workers are in sessions of their own."""
    while left := living(folder):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)


def _names(process: psutil.Process, folder: str) -> bool:
    try:
        words = [*process.cmdline(), process.environ().get("LOGDIR", "")]
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False
    return any(folder == word.removeprefix("LOGDIR=") or f"{folder}/" in word for word in words)


@contextlib.contextmanager
def launched(settings: dict[str, str], scripts: Path = ROOT) -> Iterator[Launch]:
    launch = Launch(settings, scripts)
    try:
        yield launch
    finally:
        launch.kill()


def wait_until(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(0.1)


def records(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in log.read_text().splitlines()]


def values(log: Path, key: str) -> list[Any]:
    return [record["value"] for record in records(log) if record["key"] == key]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A memory disk at a new folder, e.g. "size=64k" or "ro"; without root the test is skipped."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted, which needs root: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
