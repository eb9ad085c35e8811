"""The folder in which a pair grows until it is whole: what is done, for a restart, and the way to the final names.

`PREFIX.partial/` holds the tokens, their lengths and a journal: the first line describes the job, each further one what
is written after one more shard. It is locked while a process writes, and goes away with the last file.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from data_scripts.dataset_writer import NOTHING, Written
from data_scripts.errors import CommandError
from gptoss20b.data.files import with_suffix
from gptoss20b.durable import fsync_path

Job = Mapping[str, object]
# raise when what is written for the same job changes
_FORMAT = 1


class State(NamedTuple):
    """What is written, and what was left out, after a number of shards.

    Attributes:
        shards: shards that are done.
        written: documents and tokens of theirs.
        bad: skipped lines by kind.
        first_bad: what was wrong with the first few, in words.
    """

    shards: int = 0
    written: Written = NOTHING
    bad: Mapping[str, int] = {}
    first_bad: tuple[str, ...] = ()


class WorkFolder:
    """`PREFIX.partial/`, locked. Left with an exception before a shard is done, it goes away.

    Attributes:
        path: the folder.
        state: what the journal has noted.
        finished: everything is written and on the disk; only the final names may be missing.
        tokens, lengths, index, sums: the files in it.
    """

    def __init__(self, prefix: Path, job: Job) -> None:
        """Make or take up the folder.

        Raises:
            CommandError: another process has it, it is damaged, or it is of another job.
            OSError: it cannot be written.
        """
        self.path = with_suffix(prefix, ".partial")
        self.tokens, self.lengths = self.path / "tokens.bin", self.path / "lengths"
        self.index, self.sums = self.path / "tokens.idx", self.path / "sums.md5"
        self.state, self.finished = State(), False
        # .idx last: whoever can open a pair finds all of it.
        self._names = {
            self.tokens: with_suffix(prefix, ".bin"),
            self.sums: with_suffix(prefix, ".md5"),
            self.index: with_suffix(prefix, ".idx"),
        }
        self._journal_path = self.path / "journal.jsonl"
        self._journal = _lock(self._journal_path)
        try:
            self._load(job)
        except BaseException:
            self._journal.close()
            raise

    def refuse_existing(self) -> None:
        """Make sure that no file with a final name is there.

        Raises:
            CommandError: there is one.
        """
        for name in self._names.values():
            self._refuse(name)

    @staticmethod
    def _refuse(name: Path) -> None:
        if os.path.lexists(name):
            raise CommandError(f"{name}: got a file; expected none. To fix: name another --out, or move the file away.")

    def note(self, state: State) -> None:
        """Put on the disk that these shards are done; their tokens and lengths must be there already.

        Raises:
            OSError: the disk is full, or failed.
        """
        self._append(state._asdict())
        self.state = state

    def finish(self) -> None:
        """Put on the disk that all files are written, and are there already.

        Raises:
            OSError: the disk is full, or failed.
        """
        self._append({"finished": True})
        self.finished = True

    def publish(self) -> list[Path]:
        """Give the files of a finished folder their final names, and remove it.

        Returns:
            The files.

        Raises:
            CommandError: a file is gone, or one of the names is taken; everything stays for another start.
            OSError: a file could not be renamed.
        """
        for source, name in self._names.items():
            # A process that was killed here may have renamed some.
            if source.exists():
                # looked at again: tokenizing takes hours, and what appeared meanwhile is somebody else's
                self._refuse(name)
                source.rename(name)
            elif not name.exists():
                raise CommandError(f"{source}: got no file; expected one. To fix: {self._start_again()}.")
        fsync_path(self.path.parent)
        self._remove()
        return list(self._names.values())

    def _load(self, job: Job) -> None:
        described = json.loads(json.dumps({"format": _FORMAT, **job}))
        *lines, torn = self._journal.read().split(b"\n")
        if not lines:
            self._journal.truncate(0)
            self._append(described)
            fsync_path(self.path)
            fsync_path(self.path.parent)
            return
        # A process that was killed, or a full disk, may have left half a line: that shard is not done.
        self._journal.truncate(self._journal.tell() - len(torn))
        try:
            before, *notes = map(json.loads, lines)
            self.finished = bool(notes) and "finished" in notes[-1]
            if states := notes[: len(notes) - self.finished]:
                last = states[-1]
                self.state = State(**{**last, "written": Written(*last["written"]), "first_bad": (*last["first_bad"],)})
        except (ValueError, TypeError, KeyError) as error:
            raise CommandError(
                f"{self._journal_path}: got {error}; expected the journal of a job. To fix: {self._start_again()}."
            ) from None
        if difference := _difference(before, described):
            raise CommandError(
                f"{self.path}: got a job with {difference}, the one begun there. "
                f"To fix: repeat that command, name another --out, or {self._start_again()}."
            )

    def _start_again(self) -> str:
        return f"remove {self.path} to start again"

    def _append(self, entry: Mapping[str, object]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        if self._journal.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._journal_path))
        os.fsync(self._journal.fileno())

    def _remove(self) -> None:
        for path in (*self._names, self.lengths, self._journal_path):
            path.unlink(missing_ok=True)
        # what somebody else has put there stays
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self.state.shards:
            self._remove()
        self._journal.close()


def _lock(path: Path) -> BinaryIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+b", buffering=0)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise CommandError(
                f"{path.parent}: got a folder that another process writes to; expected none. "
                "To fix: wait for it, end it, or name another --out."
            ) from None
        # Another process may have finished and removed the file between the two calls.
        if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            stream.seek(0)
            return stream
        stream.close()


def _difference(before: object, now: Mapping[str, object]) -> str | None:
    if not isinstance(before, dict):
        return "no description; expected one"
    for key, value in now.items():
        if before.get(key) != value:
            old, new = _first_difference(before.get(key), value)
            return f"{key} {new}; expected {old}"
    return None


def _first_difference(old: object, new: object) -> tuple[object, object]:
    """Of two lists the first entries that differ, or how many there are; anything else whole."""
    if not isinstance(old, list) or not isinstance(new, list):
        return old, new
    pairs = ((a, b) for a, b in zip(old, new, strict=False) if a != b)
    return next(pairs, (f"{len(old)} of them", f"{len(new)} of them"))
