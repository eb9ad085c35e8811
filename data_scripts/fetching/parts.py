"""Unfinished files: one sparse `.part` each, with a state beside it.

A state says how many bytes of each segment are on the disk, and of which version of the file. It is replaced
atomically, and only after the bytes it counts were put on the disk: whatever interrupts a download, its state is never
ahead of it.
"""

import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import NamedTuple, Self

from data_scripts.checksums import WORK_FOLDER
from data_scripts.errors import CommandError
from data_scripts.fetching.remote import Remote
from gptoss20b.data.md5_list import ListedFile
from gptoss20b.durable import atomic_write, fsync_path

# bytes per segment: what one request fetches, and how often a state is written
SEGMENT = 64 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}


class State(NamedTuple):
    """How far a part is: the file's version (size, server's tag, MD5), bytes per segment, and bytes held of each."""

    size: int
    etag: str
    md5: str
    segment: int
    received: list[int]


class Part:
    """An unfinished file. Several threads may write to different segments of it.

    Attributes:
        listed: its path and MD5.
        remote: where it is fetched from.
        restarted: a part of another version was there, and was thrown away.
    """

    def __init__(self, work: Path, listed: ListedFile, remote: Remote) -> None:
        """Open the part, with what an earlier download left of the same version.

        Raises:
            OSError: the folder cannot be written.
        """
        self.listed, self.remote = listed, remote
        self._path, self._state_path = _paths(work, listed.path)
        # without ranges, nothing but the whole file can be asked for
        segment = SEGMENT if remote.ranges else max(remote.size, 1)
        fresh = State(remote.size, remote.etag, listed.md5, segment, [0] * -(-remote.size // segment))
        state = _load(self._state_path)
        same = state is not None and state[:4] == fresh[:4] and self._path.is_file()
        self.restarted = state is not None and not same
        self._state = state if state is not None and same else fresh
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not same:
            self.empty()
        self._closed = False
        self._writing, self._noting = threading.Lock(), threading.Lock()

    @property
    def received(self) -> int:
        """Bytes of the file that are held."""
        return sum(self._state.received)

    @property
    def path(self) -> Path:
        """Where the part is."""
        return self._path

    def to_allocate(self) -> int:
        """Bytes of disk that the rest of the file takes."""
        return max(self.remote.size - os.fstat(self._descriptor).st_blocks * 512, 0)

    def open_segments(self) -> list[int]:
        """The numbers of the segments that are not complete."""
        return [number for number in range(len(self._state.received)) if self.missing(number) is not None]

    def missing(self, segment: int) -> tuple[int, int] | None:
        """First and last byte that a segment still needs; None if it is complete."""
        first = segment * self._state.segment + self._state.received[segment]
        end = min((segment + 1) * self._state.segment, self.remote.size)
        return (first, end - 1) if first < end else None

    def write(self, segment: int, data: bytes) -> None:
        """Append to a segment.

        Raises:
            ValueError: it is more than the segment needs, or the part was closed.
            CommandError: the disk is full.
            OSError: it failed.
        """
        with self._writing:
            # A stream that woke up late must not write to a descriptor that is another file's by now.
            if self._closed:
                raise ValueError(f"{self._path}: is closed")
            span = self.missing(segment)
            if span is None or span[0] + len(data) > span[1] + 1:
                raise ValueError(f"{self._path}: segment {segment}: got {len(data)} bytes more; expected {span}")
            view = memoryview(data)
            while view:
                try:
                    written = os.pwrite(self._descriptor, view, span[0] + len(data) - len(view))
                except OSError as error:
                    raise self._failed(error) from error
                view = view[written:]
            self._state.received[segment] += len(data)

    def _failed(self, error: OSError) -> Exception:
        if error.errno not in _FULL:
            return OSError(error.errno, error.strerror, str(self._path))
        return CommandError(
            f"{self._path}: got a full disk at {self.received:,} bytes; expected room for {self.remote.size:,}. "
            "To fix: free space and start the same command again; what was fetched is kept."
        )

    def restart(self, segment: int) -> None:
        """Forget what was received of a segment."""
        with self._writing:
            self._state.received[segment] = 0

    def note(self) -> None:
        """Put what was received on the disk, and then the state that says so.

        Raises:
            CommandError: the disk is full.
            OSError: it failed.
        """
        with self._noting:
            if self._closed:
                raise ValueError(f"{self._path}: is closed")
            state = self._state._replace(received=list(self._state.received))
            try:
                os.fdatasync(self._descriptor)
                atomic_write(self._state_path, json.dumps(state._asdict()).encode())
            except OSError as error:
                raise self._failed(error) from error

    def empty(self) -> None:
        """Throw away all that was received.

        Raises:
            OSError: the folder cannot be written.
        """
        # The state goes first: without it the part counts for nothing.
        self._state_path.unlink(missing_ok=True)
        self._state.received[:] = [0] * len(self._state.received)
        os.ftruncate(self._descriptor, 0)

    def place(self, final: Path) -> None:
        """Move the complete file to its final name, durably; only a verified one may be moved.

        Raises:
            OSError: it cannot be moved.
        """
        os.fsync(self._descriptor)
        final.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(final)
        fsync_path(final.parent)
        self._state_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._writing, self._noting:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check_space(directory: Path, parts: list[Part]) -> None:
    """See that the rest of all files fits the disk.

    Raises:
        CommandError: it does not.
    """
    needed, free = sum(part.to_allocate() for part in parts), shutil.disk_usage(directory).free
    if needed > free:
        raise CommandError(
            f"{directory}: got {free:,} bytes of free space; expected {needed:,}, which are still to be fetched. "
            "To fix: free space, or name a DIR on a larger disk."
        )


def held(directory: Path, path: str) -> tuple[int, int] | None:
    """How many bytes an unfinished file has, and of how many; None if there is no part of it."""
    part, state_path = _paths(directory / WORK_FOLDER, path)
    state = _load(state_path)
    return (sum(state.received), state.size) if state is not None and part.is_file() else None


def _paths(work: Path, path: str) -> tuple[Path, Path]:
    return work / f"{path}.part", work / f"{path}.state"


def _load(path: Path) -> State | None:
    """The state; None if there is none, or if it is none of ours, which is as good."""
    try:
        fields = json.loads(path.read_bytes())
        state = State(**fields)
        fits = len(state.received) == -(-state.size // state.segment)
        return state if fits and all(0 <= count <= state.segment for count in state.received) else None
    except (FileNotFoundError, ValueError, TypeError, ZeroDivisionError, RecursionError):
        return None
