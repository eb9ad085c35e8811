"""A lock file that the kernel holds (flock): a killed process leaves it free."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


def acquire_lock(path: Path) -> FileLock:
    """Lock a file, which is created if necessary and whose content is not used. The caller releases the lock.

    To remove the file, do so before the release: afterwards it may be the next holder's.

    Raises:
        BlockingIOError: another process has the lock.
        OSError: the folder is missing or cannot be written, or its file system has no locks.
    """
    while True:
        # A soft lock, which filelock would use instead of a missing flock, is a marker file that outlives a killed
        # process. Not thread-local: another thread than the one that acquired the lock may release it.
        lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            # filelock gives up, too, on a file that the previous holder removed before it was locked.
            if not path.exists():
                continue
            raise BlockingIOError(f"another process has the lock {path}") from None
        return lock
