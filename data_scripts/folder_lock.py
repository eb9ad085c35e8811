"""A folder that one process at a time may write to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from gptoss20b.file_lock import acquire_lock

from .errors import CommandError

LOCK_NAME = "lock"


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create a folder and lock it; a killed process leaves it free. At the end, remove the folder if it is empty.

    Raises:
        CommandError: another process has the lock.
        OSError: the folder cannot be written, or its file system has no locks.
    """
    path = folder / LOCK_NAME
    lock = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
        lock.release()


def _acquire(path: Path) -> FileLock:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return acquire_lock(path)
        except FileNotFoundError:
            # The previous holder removed the folder after the mkdir above.
            continue
        except BlockingIOError:
            raise CommandError(
                f"{path.parent}: got a folder that another process writes to; expected none. "
                "To fix: wait until it ends, or end it."
            ) from None


def clear_folder(folder: Path) -> None:
    """Remove everything in a locked folder but its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()
