"""Files of a set of trials, which let any later start continue it.

- settings.txt, seed_base: resolved configuration of the trials, and seed of trial 1
- trials.tsv: one row per trial that ended
- result_<i>.txt: log of trial i, if its training ended
- trial_<i>/: log, config.json, compliance_checker.log, and output.log with the whole output
- current: running trial, read by the workers; node_<r>/: output of worker r
- summary.txt, compliance.txt: final table, and verdict on the set
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from launch.child import log
from launch.errors import RefusedError
from launch.variables import read_integer

# Exit statuses of a trial whose training ended: its log is a result.
ENDED = (0, 3, 4, 5)
COLUMNS = ("trial", "seed", "started", "seconds", "status")
# Settings that do not make the set: where a start writes, whether it resumes, and what it watches.
_OF_ONE_START = re.compile(r"^ *(LOGDIR|RESUME|TELEMETRY|TELEMETRY_INTERVAL) = ")
_FREE_SPACE = "Free some disk space, or use another folder"
_ROOM_BYTES = 1 << 20


def lock(file: Path, busy: str) -> int:
    """Lock a file until this process and the children that inherit the file descriptor end, and return it.

    Raises:
        RefusedError: another process has the lock (``busy``), or the file system has no locks.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RefusedError(f"LOGDIR: cannot write '{file}': {error.strerror}. Use a writable folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RefusedError(busy) from None
    except OSError as error:
        raise RefusedError(
            f"LOGDIR: cannot lock '{file.parent}': {error.strerror}. Use a folder on a file system that supports locks"
        ) from error
    return descriptor


def warn_if_full(folder: Path) -> None:
    """Say so if a disk is full: of all that a run printed, this explains its end."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < _ROOM_BYTES:
            log(f"error: LOGDIR: the disk of '{folder}' is full. Free some space and start again: results are kept")


def update_latest_link(folder: Path) -> None:
    """Point results/latest to a folder in results/, atomically. Failures are only warnings."""
    results = Path("results")
    if not results.is_dir() or folder.parent != results.resolve():
        return
    link = results / f".latest-{os.getpid()}"
    try:
        link.symlink_to(folder.name)
        link.replace(results / "latest")
    except OSError as error:
        with contextlib.suppress(OSError):
            link.unlink()
        log(f"warning: could not point results/latest to {folder}: {error.strerror}")


class TrialSet:
    """The folder of a set of trials 1 to ``trials``."""

    def __init__(self, folder: Path, trials: int) -> None:
        self.folder = folder
        self.trials = trials

    def trial(self, number: int) -> Path:
        """Return the folder of a trial."""
        return self.folder / f"trial_{number}"

    def log(self, number: int) -> Path:
        """Return the log of a trial, which is a result once it is published."""
        return self.trial(number) / "result_0.txt"

    def result(self, number: int) -> Path:
        """Return the path of the published log of a trial."""
        return self.folder / f"result_{number}.txt"

    def missing(self) -> Iterator[int]:
        """Yield the numbers of the trials without a result."""
        return (number for number in range(1, self.trials + 1) if not self.result(number).exists())

    def remove_if_unused(self) -> None:
        """Remove the folder of a set that never began."""
        with contextlib.suppress(OSError):
            if {path.name for path in self.folder.iterdir()} == {".lock"}:
                (self.folder / ".lock").unlink()
                self.folder.rmdir()

    # --- settings and seeds

    def fix_settings(self, settings: str, resuming: bool) -> None:
        """Compare the settings with those of the set's first start, or record them.

        A single trial may resume with other settings (layout, timeouts) until it has a result: the run itself rejects
        changes that would alter the training.
        """
        file = self.folder / "settings.txt"
        settings = "".join(line for line in settings.splitlines(keepends=True) if not _OF_ONE_START.match(line))
        before = file.read_text(errors="replace") if file.exists() else ""
        if before == settings:
            return
        if before:
            for line in difflib.ndiff(before.splitlines(), settings.splitlines()):
                if line.startswith(("-", "+")):
                    log(("<" if line[0] == "-" else ">") + line[1:])
            changed = f"LOGDIR: '{self.folder}' was started with other settings (<) than now (>)"
            if self.trials != 1 or not resuming or any(self.folder.glob("result_*.txt")):
                raise RefusedError(f"{changed}. Restore the old settings, or use another folder")
            log(f"warning: {changed}")
        self._write(file, settings)

    def fix_seed_base(self, given: int | None) -> int:
        """Return the seed of trial 1: that of the set's first start, else the given one, else a random one."""
        if (self.folder / "seed_base").exists():
            return self.read_seed_base(given)
        seed = secrets.randbits(32) if given is None else given
        self._write(self.folder / "seed_base", f"{seed}\n")
        return seed

    def read_seed_base(self, given: int | None) -> int:
        """Return the recorded seed of trial 1, which must be the given one."""
        file = self.folder / "seed_base"
        try:
            text = file.read_text(errors="replace").strip()
        except OSError as error:
            raise RefusedError(f"LOGDIR: cannot read '{file}': {error.strerror}. Use a folder of all nodes") from error
        try:
            seed = read_integer({"seed_base": text}, "seed_base", None, 0, 10**18)
        except RefusedError:
            raise RefusedError(
                f"LOGDIR: '{file}' contains '{text}', expected the seed of the first trial. "
                "Restore the file, or use another folder"
            ) from None
        if given not in (None, seed):
            raise RefusedError(
                f"SEED_BASE: got {given}, but this set was started with {seed}. "
                "Unset it to continue the set, or use another LOGDIR"
            )
        return seed

    def _write(self, file: Path, text: str) -> None:
        try:
            write_atomic(file, text)
        except OSError as error:
            raise RefusedError(f"LOGDIR: cannot write '{file}': {error.strerror}. {_FREE_SPACE}") from error

    # --- records

    def start_table(self) -> None:
        """Write the header of trials.tsv, unless it is there."""
        file = self.folder / "trials.tsv"
        try:
            if not file.exists() or not file.stat().st_size:
                self.append_row(*COLUMNS)
        except OSError as error:
            raise RefusedError(f"LOGDIR: cannot write '{file}': {error.strerror}. {_FREE_SPACE}") from error

    def append_row(self, *fields: object) -> None:
        """Append a row to trials.tsv. A full disk may have truncated the last one: start on a new line."""
        with (self.folder / "trials.tsv").open("a+b") as table:
            size = table.seek(0, os.SEEK_END)
            table.seek(max(size - 1, 0))
            start = b"" if table.read() in (b"", b"\n") else b"\n"
            table.write(start + "\t".join(map(str, fields)).encode() + b"\n")

    def recorded_status(self, number: int) -> int | None:
        """Return the status in the last row of a trial, or None."""
        with (self.folder / "trials.tsv").open(errors="replace") as table:
            rows = [line.rstrip("\n").split("\t") for line in table]
        statuses = [row[4] for row in rows if len(row) == len(COLUMNS) and row[0] == str(number)]
        return int(statuses[-1]) if statuses and statuses[-1].isdecimal() else None

    def publish(self, number: int, status: int) -> None:
        """Make the log result_<i>.txt if its training ended. Otherwise the next start repeats the trial."""
        if status not in ENDED:
            return
        source, result = self.log(number), self.result(number)
        try:
            try:
                os.link(source, result)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, f"{result}.new")
                Path(f"{result}.new").replace(result)
        except OSError as error:
            log(f"warning: could not publish '{source}' as '{result}': {error.strerror}")

    def is_resumable(self, number: int) -> bool:
        """Return True if an interrupted trial has a checkpoint."""
        checkpoints = self.trial(number) / "checkpoints"
        return self.log(number).exists() and any(
            re.fullmatch(r"step_.{8}", path.name) for path in checkpoints.glob("step_*")
        )

    def keep_previous_attempt(self, number: int) -> None:
        """Rename the folder of an earlier attempt to trial_<i>_attempt_<k>."""
        folder, attempt = self.trial(number), 1
        while Path(f"{folder}_attempt_{attempt}").exists():
            attempt += 1
        if folder.exists():
            folder.rename(f"{folder}_attempt_{attempt}")

    # --- the trial that the workers of other nodes follow

    def announce(self, number: int) -> None:
        """Name the running trial, with an id that differs for each of its starts."""
        write_atomic(self.folder / "current", f"{number} {os.getpid()}_{time.time_ns()}\n")

    def refuse(self, node_rank: int) -> None:
        """Tell the leader that this node cannot start its part of the running trial."""
        with contextlib.suppress(OSError):
            write_atomic(self.folder / f"refused_{node_rank}", "see the output of this node\n")

    def refused_by(self) -> str | None:
        """Return the rank of a worker that has refused the running trial, or None."""
        try:
            announced = (self.folder / "current").stat().st_mtime
            refusals = [path for path in self.folder.glob("refused_*") if path.stat().st_mtime >= announced]
        except OSError:
            return None
        return refusals[0].name.split("_")[1] if refusals else None

    def end_announcement(self) -> None:
        """Tell the workers that no trial runs."""
        (self.folder / "current").unlink(missing_ok=True)

    def current(self) -> str:
        """Return the announced trial as "<i> <id>", or "" if there is none."""
        try:
            line = (self.folder / "current").read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""
        return line if re.fullmatch(r"[1-9]\d{0,3} [\d_]+", line) else ""


def write_atomic(file: Path, text: str) -> None:
    """Replace a file, so that readers see the old or the new content and nothing in between."""
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)
