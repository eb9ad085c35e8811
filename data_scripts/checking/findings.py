"""Findings of a verification: a file and one sentence each; of many alike, the first few and a count."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from gptoss20b.data.files import REBUILD, DataError

# findings of one kind in one file that are listed one by one
MAX_LISTED = 5


class Finding(NamedTuple):
    """One thing wrong with a dataset.

    Attributes:
        file: path relative to the verified folder, so that reports of two machines compare.
        message: got, expected and fix, in one line.
    """

    file: str
    message: str

    @classmethod
    def about(cls, file: str, got: str, expected: str, fix: str = REBUILD) -> Self:
        """Build a finding in the form shared by all data files."""
        return cls(file, f"got {got}; expected {expected}. To fix: {fix}.")

    @classmethod
    def from_error(cls, error: DataError, directory: Path) -> Self:
        """Turn a reader's error into a finding, without the folder's path."""
        file, _, message = str(error).replace(f"{directory}/", "").partition(": ")
        return cls(file, message)

    def text(self, directory: Path) -> str:
        """Return the line to print: the file's full path and the message."""
        return f"{directory / self.file}: {self.message}"


class CappedFindings:
    """Findings of one kind in one file: the first `MAX_LISTED` are kept, the rest are counted."""

    def __init__(self, file: str, kind: str, fix: str = REBUILD) -> None:
        self._file, self._kind, self._fix = file, kind, fix
        self._first: list[Finding] = []
        self._count = 0

    def add(self, findings: Iterable[Finding], count: int = 1) -> None:
        """Count `count` more. `findings` yields them lazily: those beyond the cap are never built."""
        for finding in findings if len(self._first) < MAX_LISTED else ():
            self._first.append(finding)
            if len(self._first) == MAX_LISTED:
                break
        self._count += count

    def findings(self) -> list[Finding]:
        """Return the first findings in the order added; then one with the total, if there are more."""
        if self._count == len(self._first):
            return self._first
        total = f"{self._count:,} {self._kind} in all, of which the first {len(self._first)} are listed"
        return [*self._first, Finding.about(self._file, total, "none", self._fix)]
