"""Where results and checkpoints go: folders that can be made, written, locked and flushed, with room for a run."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from ...checkpoint.files import CheckpointError, list_checkpoints, should_resume
from ...config import Config
from ...durable import fsync_path
from ...memory import checkpoint_bytes
from ...run_metadata import save_directory
from .finding import Finding, failed, gib, passed, skipped

# A train_loss record has about 250 bytes, an evaluation five records; launchers keep the output, which repeats the log.
_RECORD_BYTES, _RECORDS_PER_EVALUATION, _COPIES = 300, 6, 2
_REST_BYTES = 64 * 2**20  # config.json, the checker's report, what libraries print when something goes wrong


def look_at_results(config: Config) -> list[Finding]:
    """Check LOGDIR, or results/, with files in a new folder that is removed again; LOGDIR itself is not made.

    Args:
        config: of the run.
    """
    wanted = config.logging.directory
    folder = wanted or Path("results")
    if wanted is not None and (why := _refused(config, wanted)):
        fix = "name another folder in LOGDIR, or unset it: each run then makes a new one under results/"
        return [failed("LOGDIR", why, fix)]
    needed = written_bytes(config)
    return _folder("LOGDIR", "free space", folder, needed, f"about {needed / 2**20:,.0f} MiB needed up to MAX_STEPS")


def look_at_checkpoints(config: Config) -> list[Finding]:
    """Check the folder of checkpoints likewise, and that it has room for those still to come.

    An old one is removed once the next is complete, so that SAVE_KEEP + 1 lie there at a time.

    Args:
        config: of the run.
    """
    saving = config.checkpoints
    if saving.interval == "0":
        return [skipped("checkpoints", "SAVE_INTERVAL=0: the run writes none")]
    folder = save_directory(config, config.logging.directory or Path("results"))
    each, there = checkpoint_bytes(config), len(list_checkpoints(folder))
    to_come = max(1, saving.keep + 1 - there)
    what = f"room for {to_come} more of {gib(each)} needed ({saving.keep} + 1 at a time, {there} there)"
    return _folder("SAVE_DIR", "space for checkpoints", folder, to_come * each, what)


def _refused(config: Config, folder: Path) -> str | None:
    """Why a run would not write its result there, by the run's own rules; None if it would."""
    log = folder / "result_0.txt"
    try:
        resumes = should_resume(save_directory(config, folder), log, config.checkpoints.resume)
    except CheckpointError as error:
        return str(error)
    return f"{log} exists, and results are never overwritten" if log.exists() and not resumes else None


def _folder(name: str, space: str, folder: Path, needed: int, what: str) -> list[Finding]:
    """Whether files can be made in or for a folder, and whether its file system has room."""
    # Where the run would begin to make folders.
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    try:
        _try_files(there)
    except OSError as error:
        fix = f"name a folder in {name} that this user can write, on a file system with room that keeps what is flushed"
        return [failed(name, f"{folder}: {_step(error)} failed in {there} ({error.strerror or error})", fix)]
    made = "" if there == folder.absolute() else f", will be made in {there}"
    written = passed(name, f"{folder}{made}: files can be written, flushed, renamed and locked")
    free = shutil.disk_usage(there).free
    found, fix = f"{gib(free)} free in {there}, {what}", f"make room, or name a folder elsewhere in {name}"
    return [written, failed(space, found, fix) if free < needed else passed(space, found)]


class _StepError(OSError):
    """An error with the step that met it."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.step = step


def _step(error: OSError) -> str:
    return error.step if isinstance(error, _StepError) else "making a folder"


def _try_files(there: Path) -> None:
    """What a run does with files, in a folder of its own.

    Raises:
        OSError: a step failed, or left something else than it should.
    """
    with tempfile.TemporaryDirectory(prefix=".gptoss20b-doctor-", dir=there) as name:
        old, new, step = Path(name) / "config.json", Path(name) / "config.tmp", "writing a file"
        try:
            old.write_bytes(b"old")
            with new.open("wb") as stream:
                stream.write(b"new" * 2**16)
                stream.flush()
                step = "fsync"
                os.fsync(stream.fileno())
            step = "fsync of a folder"
            fsync_path(Path(name))
            step = "rename over a file"
            new.replace(old)
            if old.read_bytes() != b"new" * 2**16 or new.exists():
                raise OSError(0, "the old file is still there")
            step = "flock"
            _try_lock(old)
        except OSError as error:
            raise _StepError(step, error) from error


def _try_lock(path: Path) -> None:
    """Lock a file, and see that a second opening of it is refused."""
    with path.open("rb") as first, path.open("rb") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError(0, "two locked it at the same time: mount the file system with locks")


def written_bytes(config: Config) -> int:
    """What a run writes until MAX_STEPS, in bytes: an estimate from above."""
    losses = config.fixed.max_steps // config.logging.interval
    evaluations = config.fixed.max_steps // config.eval_interval_steps
    return _REST_BYTES + _COPIES * _RECORD_BYTES * (losses + _RECORDS_PER_EVALUATION * evaluations)
