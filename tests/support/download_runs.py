"""Run the download command, in this or another process, against the tests' server."""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from data_scripts import progress
from data_scripts.c4 import PREFIXES
from data_scripts.fetching import partial_file, transfer
from tests.support.data_commands import run_data_command
from tests.support.faulty_server import BASE, LIST, NAME, FaultyServer, Hold
from tests.support.paths import ROOT

SEGMENT = 1 << 16
TRAIN, VALIDATION = PREFIXES
BIG = f"{TRAIN}.bin"
BIG_PATH = f"{BASE}/{BIG}"
# seconds; long enough for a busy machine, and never reached where nothing is wrong
LIMIT = 60
# the real command with segments that fit files of a few hundred KiB
_DRIVER = """
import sys, typer
from data_scripts import download, progress
from data_scripts.fetching import partial_file, transfer
partial_file.SEGMENT = int(sys.argv.pop(1))
progress.INTERVAL, transfer._SAVE_INTERVAL = float(sys.argv.pop(1)), float(sys.argv.pop(1))
typer.run(download.main)
"""


def _remote_files() -> dict[str, bytes]:
    """Make files of the published names: the largest has five segments and a half, the others less than one."""
    numbers = random.Random(4)
    sizes = {
        "LICENSE.txt": 700,
        "NOTICE.txt": 90,
        BIG: 11 * SEGMENT // 2,
        f"{TRAIN}.idx": 9_000,
        f"{VALIDATION}.bin": 30_000,
        f"{VALIDATION}.idx": 1_000,
    }
    return {name: numbers.randbytes(size) for name, size in sizes.items()}


REMOTE_FILES = _remote_files()


class Ended(NamedTuple):
    status: int
    out: str
    err: str


@dataclass
class Runs:
    """Downloads from a server into a folder."""

    server: FaultyServer
    directory: Path
    interval: float = 1000.0
    save_interval: float = 1000.0

    def arguments(self, *options: str) -> list[str]:
        return [str(self.directory), "--source", self.server.source, "--retry-wait", "0.01", *options]

    def command(self, *options: str) -> list[str]:
        driver = [sys.executable, "-c", _DRIVER, str(SEGMENT), str(self.interval), str(self.save_interval)]
        return [*driver, *self.arguments(*options)]

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return {**kept, "REQUESTS_CA_BUNDLE": str(self.server.authority_file)}

    @contextmanager
    def started(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """Start a download; kill it if it still runs at the end."""
        with subprocess.Popen(
            self.command(*options),
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def paused(
        self, *options: str, after: int = 10, path: str = BIG_PATH
    ) -> Iterator[tuple[subprocess.Popen[str], Hold]]:
        """Start a download whose next request for a file pauses after some bytes of the body."""
        hold = Hold(after)
        self.server.fault(path, hold)
        with self.started(*options) as process:
            assert hold.reached.wait(LIMIT)
            yield process, hold

    def forget(self) -> None:
        """Forget the faults, the requests and the bytes sent so far."""
        self.server.faults.clear()
        self.server.requests.clear()
        self.server.sent.clear()

    def run(self, *options: str) -> Ended:
        with self.started(*options) as process:
            return ended(process)

    def call(self, *options: str) -> Ended:
        """Run in this process, which takes a fifth of the time."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(partial_file, "SEGMENT", SEGMENT)
            patch.setattr(progress, "INTERVAL", self.interval)
            patch.setattr(transfer, "_SAVE_INTERVAL", self.save_interval)
            for name in set(os.environ) - set(self.environment()):
                patch.delenv(name)
            patch.setenv("REQUESTS_CA_BUNDLE", str(self.server.authority_file))
            done = run_data_command("download", *self.arguments(*options))
        return Ended(done.exit_code, done.stdout, done.stderr)

    def held(self) -> dict[str, bytes]:
        """All files with a final name, but the list."""
        found = [path for path in self.directory.rglob("*") if path.is_file()]
        relative = {path.relative_to(self.directory): path for path in found}
        names = {name: path for name, path in relative.items() if name.parts[0] != ".download"}
        return {str(name): path.read_bytes() for name, path in names.items() if name.name != f"{NAME}.md5"}

    def assert_done(self, done: Ended, files: dict[str, bytes]) -> None:
        """Check that everything is there, that nothing else is left, and what was printed."""
        assert done.status == 0, done
        assert self.held() == files
        assert (self.directory / f"{NAME}.md5").read_bytes() == self.server.files[LIST]
        assert not (self.directory / ".download").exists()
        lines = done.out.splitlines()
        assert lines[-1].endswith(f"verify_dataset.sh {shlex.quote(str(self.directory))}")
        assert lines[-2].startswith(f"{self.directory}: {len(files)} files verified, ")
        assert len(lines) == 2

    def assert_failed(self, done: Ended, *words: str, status: int = 1, notes: int = 0) -> None:
        """Check for one error line, after `notes` others, and that no unverified file has a final name."""
        lines = done.err.splitlines()
        assert (done.status, done.out, len(lines)) == (status, "", notes + 1), done
        assert lines[-1].startswith("error: ")
        for word in words:
            assert word in lines[-1]
        if self.directory.is_dir():
            self.assert_nothing_unverified()

    def assert_nothing_unverified(self) -> None:
        listed = self.server.files.get(LIST, b"").decode(errors="replace")
        for name, data in self.held().items():
            assert f"{hashlib.md5(data).hexdigest()}  ./{name}\n" in listed, name


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=LIMIT)
    return Ended(process.returncode, out, err)
