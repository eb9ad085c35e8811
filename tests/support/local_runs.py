"""Start run_local.sh without stubs, and read its logs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.paths import ROOT


class Launch:
    """One run_local.sh with the CPU configuration and the settings, in its own session.

    All processes that it starts are found by their LOGDIR.
    """

    def __init__(self, settings: dict[str, str]) -> None:
        self.logdir = Path(settings["LOGDIR"])
        given = [f"{name}={value}" for name, value in settings.items()]
        self.process = subprocess.Popen(
            ["bash", "--norc", "-c", 'source config_CPU_1x2.sh && exec env "$@" ./run_local.sh', "bash", *given],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHON": sys.executable},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self, limit_s: float) -> tuple[int, str]:
        """Return the exit status and the output."""
        output = self.process.communicate(timeout=limit_s)[0]
        return self.process.returncode, output

    def processes(self) -> list[psutil.Process]:
        """Return the processes of this launch that are alive."""
        return processes_of(self.logdir)


@contextlib.contextmanager
def launched(settings: dict[str, str]) -> Iterator[Launch]:
    """Start a launch, and kill what is left of it at the end of the block."""
    launch = Launch(settings)
    try:
        yield launch
    finally:
        kill_all(launch.logdir)
        launch.process.communicate()


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes whose LOGDIR or command line names this folder or a path in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = [*process.cmdline(), process.environ().get("LOGDIR", "")]
            if any(str(folder) == word.removeprefix("LOGDIR=") or f"{folder}/" in word for word in words):
                found.append(process)
    return found


def kill_all(folder: Path) -> None:
    """Kill the processes of a folder until none is left: torchrun's workers have their own sessions."""
    while processes := processes_of(folder):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=5)


def records(log: Path) -> list[dict[str, Any]]:
    """Return the records of a log, as dictionaries."""
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in log.read_text().splitlines()]


def values(log: Path, key: str) -> list[Any]:
    """Return the values of all records with this key."""
    return [record["value"] for record in records(log) if record["key"] == key]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs at a new folder, e.g. with "size=64k" or "ro". Skip the test where mounting is not permitted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
