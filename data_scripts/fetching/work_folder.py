"""The folder of unfinished files below the data: for one process at a time, and gone when it is empty."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_scripts.checksums import WORK_FOLDER
from data_scripts.errors import CommandError
from gptoss20b.durable import atomic_write, fsync_path

_LOCK = "lock"


@contextmanager
def locked(directory: Path) -> Iterator[Path]:
    """The folder of unfinished files below `directory`, made if needed, for one process at a time.

    A lock that a killed process left is free: the system holds it, not the file. At the end an empty folder is removed.

    Raises:
        CommandError: another process has it, or the folder cannot be made.
    """
    work = directory / WORK_FOLDER
    try:
        descriptor = _lock(work)
    except BlockingIOError:
        raise CommandError(
            f"{directory}: got another download that is working in it; expected none. To fix: wait until it ends."
        ) from None
    except OSError as error:
        raise CommandError(
            f"{work}: cannot be written ({error.strerror}). To fix: name a DIR that can be; --offline only looks."
        ) from error
    try:
        yield work
    finally:
        (work / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            work.rmdir()
        os.close(descriptor)


def _lock(work: Path) -> int:
    """The descriptor of the lock, which is free again when it is closed."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        # The one before may remove the folder before we open the file, or the file after: a lock on that keeps nobody
        # out, and all is to be done again.
        with suppress(FileNotFoundError):
            descriptor = os.open(work / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), (work / _LOCK).stat()):
                    return os.dup(descriptor)
            finally:
                os.close(descriptor)


def clear(work: Path) -> None:
    """Remove what is in the folder of unfinished files, when nothing of it is needed any more.

    Raises:
        OSError: it cannot be removed.
    """
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def save(work: Path, data: bytes, final: Path) -> None:
    """Write a short file, which appears under its name only when it is whole and on the disk.

    Raises:
        OSError: the folder cannot be written.
    """
    atomic_write(work / final.name, data)
    (work / final.name).replace(final)
    fsync_path(final.parent)
