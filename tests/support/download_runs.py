"""Running the download command in a process of its own against a server of the tests."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from data_scripts import download, progress
from data_scripts.c4 import PREFIXES
from data_scripts.fetching import parts, transfer
from tests.support.faulty_server import LIST, NAME, FaultyServer
from tests.support.paths import ROOT

SEGMENT = 1 << 16
TRAIN, VALIDATION = PREFIXES
BIG = f"{TRAIN}.bin"
# long enough for a busy machine: nothing waits for it where nothing is wrong
LIMIT = 60
# the real command with segments that suit files of a few hundred KiB
_DRIVER = """
import sys, typer
from data_scripts import download, progress
from data_scripts.fetching import parts, transfer
parts.SEGMENT = int(sys.argv.pop(1))
progress.INTERVAL, transfer._NOTING = float(sys.argv.pop(1)), float(sys.argv.pop(1))
typer.run(download.main)
"""


def small_set() -> dict[str, bytes]:
    """The published names; the largest file has five segments and a half, the others are shorter than one."""
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
    noting: float = 1000.0

    def arguments(self, *options: str) -> list[str]:
        return [str(self.directory), "--source", self.server.source, "--retry-wait", "0.01", *options]

    def command(self, *options: str) -> list[str]:
        driver = [sys.executable, "-c", _DRIVER, str(SEGMENT), str(self.interval), str(self.noting)]
        return [*driver, *self.arguments(*options)]

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return {**kept, "REQUESTS_CA_BUNDLE": str(self.server.authority_file)}

    @contextmanager
    def started(self, *options: str) -> Iterator["subprocess.Popen[str]"]:
        """A running download; it is killed if it still runs at the end."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(self.command(*options), cwd=ROOT, env=self.environment(), text=True, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *options: str) -> Ended:
        with self.started(*options) as process:
            return ended(process)

    def call(self, *options: str) -> Ended:
        """The same in this process, which takes a fifth of the time: for what does not depend on the process."""
        app = typer.Typer()
        app.command()(download.main)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "SEGMENT", SEGMENT)
            patch.setattr(progress, "INTERVAL", self.interval)
            patch.setattr(transfer, "_NOTING", self.noting)
            for name in set(os.environ) - set(self.environment()):
                patch.delenv(name)
            patch.setenv("REQUESTS_CA_BUNDLE", str(self.server.authority_file))
            done = CliRunner().invoke(app, self.arguments(*options))
        return Ended(done.exit_code, done.stdout, done.stderr)

    def held(self) -> dict[str, bytes]:
        """All files below the folder that are under a final name, but the list."""
        found = [path for path in self.directory.rglob("*") if path.is_file()]
        relative = {path.relative_to(self.directory): path for path in found}
        names = {name: path for name, path in relative.items() if name.parts[0] != ".download"}
        return {str(name): path.read_bytes() for name, path in names.items() if name.name != f"{NAME}.md5"}

    def assert_done(self, done: Ended, files: dict[str, bytes]) -> None:
        """Everything is there, nothing else is left, and it was said."""
        assert done.status == 0, done
        assert self.held() == files
        assert (self.directory / f"{NAME}.md5").read_bytes() == self.server.files[LIST]
        assert not (self.directory / ".download").exists()
        lines = done.out.splitlines()
        assert lines[-1] == f"next: data_scripts/verify_dataset.sh {self.directory}"
        assert lines[-2].startswith(f"{self.directory}: {len(files)} files verified, ")
        assert len(lines) == 2

    def assert_failed(self, done: Ended, *words: str, status: int = 1, notes: int = 0) -> None:
        """One line tells it, after `notes` others, and what has a final name is of the MD5 that is listed."""
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


def ended(process: "subprocess.Popen[str]") -> Ended:
    out, err = process.communicate(timeout=LIMIT)
    return Ended(process.returncode, out, err)
