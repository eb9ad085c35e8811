"""Writing so that a power cut leaves the old or the new: what is named is on the disk."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Replace a short file, which holds either what it held or all of this, whatever happens.

    Raises:
        OSError: the folder cannot be written.
    """
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
