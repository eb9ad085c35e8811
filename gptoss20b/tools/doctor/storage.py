"""Folders of results and checkpoints: they can be made, written, locked and flushed, and have room for a run."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ...checkpoint.files import CheckpointError, list_checkpoints, should_resume
from ...config import Config
from ...durable import atomic_write, fsync_path
from ...file_lock import acquire_lock
from ...memory import checkpoint_bytes
from ...run_metadata import checkpoint_directory
from .finding import Finding, failed, gib, judged, passed, skipped

# A train_loss record has about 250 bytes, an evaluation five records. Launchers keep the output, which repeats the log.
_RECORD_BYTES, _RECORDS_PER_EVALUATION, _COPIES = 300, 6, 2
_MIN_LOG_BYTES = 32 * 2**20  # a run of the rules that converges, with what surrounds its log
_OTHER_BYTES = 64 * 2**20  # config.json, the checker's report, messages of libraries


def check_results(config: Config) -> list[Finding]:
    """Check LOGDIR, or results/, with files in a temporary folder. LOGDIR itself is not made."""
    folder = config.logging.directory
    if folder is not None and (reason := _rejection(config, folder)):
        fix = "name another folder in LOGDIR, or unset it: each run then makes a new one under results/"
        return [failed("LOGDIR", reason, fix)]
    needed = estimate_log_bytes(config)
    purpose = f"about {needed / 2**20:,.0f} MiB needed up to MAX_STEPS"
    return _check_folder("LOGDIR", "free space", folder or Path("results"), needed, purpose)


def check_checkpoints(config: Config) -> list[Finding]:
    """Check the folder of checkpoints in the same way, and that it has room for the checkpoints still to come.

    An old checkpoint is removed after the next is complete, so that SAVE_KEEP + 1 exist at a time.
    """
    saving = config.checkpoints
    if saving.interval == "0":
        return [skipped("checkpoints", "SAVE_INTERVAL=0: the run writes none")]
    folder = checkpoint_directory(config, config.logging.directory or Path("results"))
    size, existing = checkpoint_bytes(config), len(list_checkpoints(folder))
    to_come = max(1, saving.keep + 1 - existing)
    purpose = f"room for {to_come} more of {gib(size)} needed ({saving.keep} + 1 at a time, {existing} there)"
    return _check_folder("SAVE_DIR", "space for checkpoints", folder, to_come * size, purpose)


def check_log_room(config: Config) -> Finding:
    """Check that the folder of results can be written and has room for a log. Nothing is made or written."""
    folder = _existing_folder(config.logging.directory or Path("results"))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return failed("LOGDIR", f"cannot write to '{folder}'", "name a folder in LOGDIR that this user can write")
    free, needed = shutil.disk_usage(folder).free, estimate_log_bytes(config)
    found = f"LOGDIR: {gib(free)} free in '{folder}', expected {gib(needed)} for the log up to MAX_STEPS"
    fix = "make room, or name a folder elsewhere in LOGDIR"
    return judged("free space", found, fix, fails=free < _MIN_LOG_BYTES, warns=free < needed)


def check_checkpoint_room(config: Config, trials: int) -> Finding:
    """Check that the next checkpoint fits on the disk, and warn if those of all trials of a set may not."""
    name, saving = "space for checkpoints", config.checkpoints
    if saving.interval == "0":
        return skipped(name, "SAVE_INTERVAL=0: the run writes none")
    folder = _existing_folder(checkpoint_directory(config, config.logging.directory or Path("results")))
    size, free = checkpoint_bytes(config), shutil.disk_usage(folder).free
    # Each trial keeps its newest; the last of them is complete before an old one is removed.
    total = (trials * saving.keep + 1) * size
    found = f"SAVE_INTERVAL: {gib(free)} free in '{folder}', expected {gib(size)} for a checkpoint"
    if free >= size:
        found += f", and up to {gib(total)} for all of {trials} x SAVE_KEEP={saving.keep} and the next"
    fix = "make room, name a folder elsewhere in SAVE_DIR or LOGDIR, or set SAVE_INTERVAL=0"
    return judged(name, found, fix, fails=free < size, warns=free < total)


def estimate_log_bytes(config: Config) -> int:
    """Return an upper estimate of the bytes that a run writes until MAX_STEPS, without checkpoints."""
    losses = config.fixed.max_steps // config.logging.interval
    evaluations = config.fixed.max_steps // config.eval_interval_steps
    return _OTHER_BYTES + _COPIES * _RECORD_BYTES * (losses + _RECORDS_PER_EVALUATION * evaluations)


def _rejection(config: Config, folder: Path) -> str | None:
    """Return why a run would not write its result into the folder, by the run's own rules, or None."""
    log = folder / "result_0.txt"
    try:
        resumes = should_resume(checkpoint_directory(config, folder), log, config.checkpoints.resume)
    except CheckpointError as error:
        return str(error)
    return f"{log} exists, and results are never overwritten" if log.exists() and not resumes else None


def _check_folder(name: str, space: str, folder: Path, needed: int, purpose: str) -> list[Finding]:
    """Check that files can be made in or for a folder, and that its file system has room."""
    existing = _existing_folder(folder)
    try:
        _try_files(existing)
    except OSError as error:
        fix = f"name a folder in {name} that this user can write, on a file system with room, durable writes and locks"
        return [failed(name, f"{folder}: {error}", fix)]
    to_make = "" if existing == folder.absolute() else f", will be made in {existing}"
    free = shutil.disk_usage(existing).free
    found, fix = f"{gib(free)} free in {existing}, {purpose}", f"make room, or name a folder elsewhere in {name}"
    return [
        passed(name, f"{folder}{to_make}: files can be written, flushed, renamed and locked"),
        judged(space, found, fix, fails=free < needed),
    ]


def _existing_folder(folder: Path) -> Path:
    """Return the folder in which the run would begin to make folders, or the folder itself if it exists."""
    # Path.exists would raise an error below a folder that this user cannot enter.
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if os.access(each, os.F_OK))


def _try_files(folder: Path) -> None:
    """Write, replace, flush and lock files as a run does, in a temporary folder, or raise the error of a failure."""
    with tempfile.TemporaryDirectory(prefix=".gptoss20b-doctor-", dir=folder) as name:
        path, content = Path(name) / "config.json", b"new" * 2**16
        for data in (b"old", content):
            atomic_write(path, data)
        fsync_path(Path(name))
        if path.read_bytes() != content:
            raise OSError(f"{path} holds something else than what was written")
        lock = acquire_lock(Path(name) / "lock")
        try:
            acquire_lock(Path(name) / "lock").release()
        except BlockingIOError:
            return
        finally:
            lock.release()
        raise OSError(f"two processes can lock a file in {folder} at once: mount the file system with locks")
