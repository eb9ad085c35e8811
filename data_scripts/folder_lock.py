"""A folder that one process at a time may write to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import CommandError

LOCK_NAME = "lock"


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create a folder and lock it. At the end, remove the folder if it is empty.

    The kernel holds the lock (flock), not the lock file: a killed process leaves the folder free.

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
        # A soft lock is a marker file, which would outlive a killed process: on a file system without locks, fail.
        lock = FileLock(path, blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except FileNotFoundError:
            # The previous holder removed the folder after the mkdir above.
            continue
        except Timeout:
            # filelock gives up, too, on a file that the previous holder removed before it was locked.
            if not path.exists():
                continue
            raise CommandError(
                f"{path.parent}: got a folder that another process writes to; expected none. "
                "To fix: wait until it ends, or end it."
            ) from None
        return lock
