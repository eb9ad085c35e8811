"""Partial downloads: one sparse `.part` file each, with a `.state` file beside it.

The state holds the version of the file and the bytes of each segment that are on disk. It is replaced atomically, and
only after the bytes it counts were flushed. So the state is never ahead of the data, whatever interrupts a download.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

from gptoss20b.data.files import Closing
from gptoss20b.durable import atomic_write, fsync_path

from ..errors import CommandError
from ..md5_list import WORK_FOLDER, ListedFile
from .remote import RemoteFile

# bytes per segment: the unit of requests, and of saving the state
SEGMENT = 64 << 20


class State(NamedTuple):
    """Version of the file (size, server's tag, MD5), bytes per segment, and bytes received of each segment."""

    size: int
    etag: str
    md5: str
    segment: int
    received: list[int]


class PartialFile(Closing):
    """A file being downloaded. Several threads may write to different segments of it.

    Attributes:
        listed: its path and MD5.
        remote: the file on the server.
        path: the `.part` file.
        restarted: a part of another version was found and dropped.
    """

    def __init__(self, work: Path, listed: ListedFile, remote: RemoteFile) -> None:
        """Open the part; resume what an earlier download left of the same version."""
        self.listed, self.remote = listed, remote
        self.path, self._state_path = _paths(work, listed.path)
        # Without ranges, only the whole file can be requested.
        segment = SEGMENT if remote.ranges else max(remote.size, 1)
        fresh = State(remote.size, remote.etag, listed.md5, segment, [0] * -(-remote.size // segment))
        saved = _load_state(self._state_path)
        resumable = saved is not None and saved[:4] == fresh[:4] and self.path.is_file()
        self.restarted = saved is not None and not resumable
        self._state = saved if saved is not None and resumable else fresh
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        if not resumable:
            self.reset()
        self._state_lock = threading.Lock()

    @property
    def received(self) -> int:
        """Bytes received so far."""
        return sum(self._state.received)

    def bytes_to_allocate(self) -> int:
        """Return the bytes of disk that the rest of the file takes."""
        # st_blocks counts units of 512 bytes, whatever the file system's block size (stat(2)).
        return max(self.remote.size - self.path.stat().st_blocks * 512, 0)

    def incomplete_segments(self) -> list[int]:
        """Return the numbers of the segments that are not complete."""
        return [number for number in range(len(self._state.received)) if self.missing_range(number) is not None]

    def missing_range(self, segment: int) -> tuple[int, int] | None:
        """Return the first and last byte that a segment still needs, or None if it is complete."""
        first = segment * self._state.segment + self._state.received[segment]
        end = min((segment + 1) * self._state.segment, self.remote.size)
        return (first, end - 1) if first < end else None

    def write(self, segment: int, data: bytes) -> None:
        """Append to a segment, which one thread at a time may do.

        Raises:
            ValueError: the part is closed.
        """
        offset = segment * self._state.segment + self._state.received[segment]
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[written:], offset + written
        self._state.received[segment] += len(data)

    def reset_segment(self, segment: int) -> None:
        """Forget what was received of a segment."""
        self._state.received[segment] = 0

    def save_state(self) -> None:
        """Flush what was received to disk, then save the state that counts it.

        Raises:
            ValueError: the part is closed.
        """
        with self._state_lock:
            state = self._state._replace(received=list(self._state.received))
            os.fdatasync(self._file.fileno())
            atomic_write(self._state_path, json.dumps(state._asdict()))

    def reset(self) -> None:
        """Drop everything received."""
        # The state goes first: without it the part counts for nothing.
        self._state_path.unlink(missing_ok=True)
        self._state.received[:] = [0] * len(self._state.received)
        self._file.truncate(0)

    def commit(self, final: Path) -> None:
        """Move the complete, verified file to its final name, durably."""
        os.fsync(self._file.fileno())
        final.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(final)
        fsync_path(final.parent)
        self._state_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; safe to call twice. A stream that still receives can then write no more."""
        self._file.close()


def check_space(directory: Path, parts: list[PartialFile]) -> None:
    """Check that the rest of all files fits the disk.

    Raises:
        CommandError: there is too little space.
    """
    needed, free = sum(part.bytes_to_allocate() for part in parts), shutil.disk_usage(directory).free
    if needed > free:
        raise CommandError(
            f"{directory}: got {free:,} bytes of free space; expected {needed:,}, which are still to be fetched. "
            "To fix: free space, or name a DIR on a larger disk."
        )


def partial_size(directory: Path, path: str) -> tuple[int, int] | None:
    """Return the bytes received of a partial file and its full size, or None if there is no part."""
    part, state_path = _paths(directory / WORK_FOLDER, path)
    state = _load_state(state_path)
    return (sum(state.received), state.size) if state is not None and part.is_file() else None


def _paths(work: Path, path: str) -> tuple[Path, Path]:
    return work / f"{path}.part", work / f"{path}.state"


def _load_state(path: Path) -> State | None:
    """Load a state. A missing and a malformed one give None: the download then starts from zero."""
    try:
        fields = json.loads(path.read_bytes())
        state = State(**fields)
        fits = len(state.received) == -(-state.size // state.segment)
        return state if fits and all(0 <= count <= state.segment for count in state.received) else None
    except (FileNotFoundError, ValueError, TypeError, ZeroDivisionError, RecursionError):
        return None
