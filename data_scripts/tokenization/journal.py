"""The folder in which an indexed dataset grows until it is complete, and the journal from which a run resumes.

`PREFIX.partial/` holds the tokens, their lengths and a journal: the job, and the state after the last complete shard.
The folder is locked while a process writes, and removed at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

from gptoss20b.data.files import append_suffix
from gptoss20b.durable import atomic_write, fsync_path

from ..dataset_writer import EMPTY, DatasetSize
from ..errors import CommandError
from ..folder_lock import clear_folder, locked_folder

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
        finished: everything is written and on disk; only the final names may be missing.
    """

    shards: int = 0
    written: DatasetSize = EMPTY
    bad: Mapping[str, int] = {}
    first_bad: tuple[str, ...] = ()
    finished: bool = False


class WorkFolder:
    """`PREFIX.partial/`, locked. If an exception leaves it before a shard is complete, it is removed.

    Attributes:
        path: the folder.
        state: the state in the journal.
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
        # .idx last: whoever can open the dataset finds all of it.
        self._final_names = {
            self.tokens: append_suffix(prefix, ".bin"),
            self.sums: append_suffix(prefix, ".md5"),
            self.index: append_suffix(prefix, ".idx"),
        }
        self._journal = self.path / "journal.json"
        self._job: JobDescription = json.loads(json.dumps({"format": _FORMAT, **job}))
        with ExitStack() as stack:
            stack.enter_context(locked_folder(self.path))
            self.state = self._load()
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
        """Write the journal durably. The tokens and lengths that it counts must be on disk already."""
        atomic_write(self._journal, json.dumps({"job": self._job, **state._asdict()}))
        fsync_path(self.path)
        self.state = state

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
        clear_folder(self.path)
        return list(self._final_names.values())

    def _load(self) -> State:
        try:
            saved = json.loads(self._journal.read_bytes())
            before = dict(saved.pop("job"))
            written, first_bad = DatasetSize(*saved["written"]), tuple(saved["first_bad"])
            state = State(**{**saved, "written": written, "first_bad": first_bad})
        except FileNotFoundError:
            self.record(State())
            fsync_path(self.path.parent)
            return self.state
        except (ValueError, TypeError, KeyError) as error:
            raise CommandError(
                f"{self._journal}: got {error}; expected the journal of a job. To fix: {self._start_again()}."
            ) from None
        if difference := _first_difference(before, self._job):
            raise CommandError(
                f"{self.path}: got a job with {difference}, as in the interrupted run. "
                f"To fix: repeat that command, name another --out, or {self._start_again()}."
            )
        return state

    def _start_again(self) -> str:
        return f"remove {self.path} to start again"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None and not self.state.shards:
            clear_folder(self.path)
        self._stack.close()


def _first_difference(before: JobDescription, now: JobDescription) -> str | None:
    """Return the first difference between two job descriptions as text, or None."""
    for key, value in now.items():
        if (old := before.get(key)) != value:
            new: object = value
            if isinstance(old, list) and isinstance(value, list):
                # The first entries that differ, or how many there are.
                pairs = ((a, b) for a, b in zip(old, value, strict=False) if a != b)
                old, new = next(pairs, (f"{len(old)} of them", f"{len(value)} of them"))
            return f"{key} {new}; expected {old}"
    return None
