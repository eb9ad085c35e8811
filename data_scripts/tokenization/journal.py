"""The folder in which an indexed dataset grows until it is complete, and the journal from which a run resumes.

`PREFIX.partial/` holds the tokens, their lengths and a journal. The first line of the journal describes the job; each
further line holds the state after one more shard. The folder is locked while a process writes, and removed at the end.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

from gptoss20b.data.files import append_suffix
from gptoss20b.durable import fsync_path

from ..dataset_writer import EMPTY, DatasetSize
from ..errors import CommandError
from ..folder_lock import locked_folder

JobDescription = Mapping[str, object]
# Increase when the output of the same job changes.
_FORMAT = 1


class State(NamedTuple):
    """What is written, and what was skipped, after a number of shards.

    Attributes:
        shards: number of completed shards.
        written: their documents and tokens.
        bad: number of skipped lines by kind.
        first_bad: messages for the first skipped lines.
    """

    shards: int = 0
    written: DatasetSize = EMPTY
    bad: Mapping[str, int] = {}
    first_bad: tuple[str, ...] = ()


class WorkFolder:
    """`PREFIX.partial/`, locked. If an exception leaves it before a shard is complete, it is removed.

    Attributes:
        path: the folder.
        state: the last state in the journal.
        finished: everything is written and on disk; only the final names may be missing.
        tokens, lengths, index, sums: the files in the folder.
    """

    def __init__(self, prefix: Path, job: JobDescription) -> None:
        """Create the folder or resume from it.

        Raises:
            CommandError: another process has it, it is damaged, or it belongs to another job.
        """
        self.path = append_suffix(prefix, ".partial")
        self.tokens, self.lengths = self.path / "tokens.bin", self.path / "lengths"
        self.index, self.sums = self.path / "tokens.idx", self.path / "sums.md5"
        self.state, self.finished = State(), False
        # .idx last: whoever can open the dataset finds all of it.
        self._final_names = {
            self.tokens: append_suffix(prefix, ".bin"),
            self.sums: append_suffix(prefix, ".md5"),
            self.index: append_suffix(prefix, ".idx"),
        }
        self._journal_path = self.path / "journal.jsonl"
        with ExitStack() as stack:
            stack.enter_context(locked_folder(self.path))
            self._journal = stack.enter_context(self._journal_path.open("a+b", buffering=0))
            self._load(job)
            self._stack = stack.pop_all()

    def check_no_output(self) -> None:
        """Check that no file with a final name exists.

        Raises:
            CommandError: there is one.
        """
        for name in self._final_names.values():
            self._check_absent(name)

    @staticmethod
    def _check_absent(name: Path) -> None:
        if os.path.lexists(name):
            raise CommandError(f"{name}: got a file; expected none. To fix: name another --out, or move the file away.")

    def record(self, state: State) -> None:
        """Append a state durably. The tokens and lengths that it counts must be on disk already."""
        self._append(state._asdict())
        self.state = state

    def mark_finished(self) -> None:
        """Record durably that all files are complete and on disk."""
        self._append({"finished": True})
        self.finished = True

    def commit(self) -> list[Path]:
        """Give the files of a finished folder their final names, and remove it.

        Returns:
            The files.

        Raises:
            CommandError: a file is missing, or a final name is taken. Everything stays for another run.
        """
        for source, name in self._final_names.items():
            # A process that was killed here may have renamed some.
            if source.exists():
                # Checked again: tokenizing takes hours, and a file that appeared meanwhile is somebody else's.
                self._check_absent(name)
                source.rename(name)
            elif not name.exists():
                raise CommandError(f"{source}: got no file; expected one. To fix: {self._start_again()}.")
        fsync_path(self.path.parent)
        self._remove_files()
        return list(self._final_names.values())

    def _load(self, job: JobDescription) -> None:
        described = json.loads(json.dumps({"format": _FORMAT, **job}))
        self._journal.seek(0)
        *lines, torn = self._journal.read().split(b"\n")
        if not lines:
            self._journal.truncate(0)
            self._append(described)
            fsync_path(self.path)
            fsync_path(self.path.parent)
            return
        # A killed process or a full disk may have left half a line: drop it, its shard is not complete.
        self._journal.truncate(self._journal.tell() - len(torn))
        try:
            before, *entries = map(json.loads, lines)
            self.finished = bool(entries) and "finished" in entries[-1]
            if states := entries[: len(entries) - self.finished]:
                last = states[-1]
                written, first_bad = DatasetSize(*last["written"]), tuple(last["first_bad"])
                self.state = State(**{**last, "written": written, "first_bad": first_bad})
        except (ValueError, TypeError, KeyError) as error:
            raise CommandError(
                f"{self._journal_path}: got {error}; expected the journal of a job. To fix: {self._start_again()}."
            ) from None
        if difference := _first_difference(before, described):
            raise CommandError(
                f"{self.path}: got a job with {difference}, as in the interrupted run. "
                f"To fix: repeat that command, name another --out, or {self._start_again()}."
            )

    def _start_again(self) -> str:
        return f"remove {self.path} to start again"

    def _append(self, entry: Mapping[str, object]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        # An unbuffered write may be short where the disk has just become full.
        if self._journal.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._journal_path))
        os.fsync(self._journal.fileno())

    def _remove_files(self) -> None:
        for path in (*self._final_names, self.lengths, self._journal_path):
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None and not self.state.shards:
            self._remove_files()
        self._stack.close()


def _first_difference(before: object, now: JobDescription) -> str | None:
    """Return the first difference between two job descriptions as text, or None."""
    if not isinstance(before, dict):
        return "no description; expected one"
    for key, value in now.items():
        if (old := before.get(key)) != value:
            new: object = value
            if isinstance(old, list) and isinstance(value, list):
                # The first entries that differ, or how many there are.
                pairs = ((a, b) for a, b in zip(old, value, strict=False) if a != b)
                old, new = next(pairs, (f"{len(old)} of them", f"{len(value)} of them"))
            return f"{key} {new}; expected {old}"
    return None
