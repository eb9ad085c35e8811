"""Durable writes: after a crash or a power cut, a file holds its old content or the new one, never a mixture."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex


def atomic_write(path: Path, data: bytes | str, *, flush: bool = True) -> None:
    """Write a file through a temporary one in the same folder, which is flushed to disk and then renamed.

    The temporary name is random, because other processes may write the same path at the same time.
    The rename itself is on disk after `fsync_path(path.parent)`. Without ``flush`` no disk is waited for: readers still
    see the old file or the new one, but a power cut may leave neither.

    Raises:
        OSError: the folder cannot be written. The old file is unchanged and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}-{token_hex(4)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            if flush:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fsync_path(path: Path) -> None:
    """Flush a file's content, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
