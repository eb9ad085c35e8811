"""What a verification found wrong: a file and one sentence each, many of a kind cut to the first few and a count."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from gptoss20b.data.files import DataError

DOWNLOAD_AGAIN = "download both files of the pair again, or rebuild them"
# findings of one kind in one file that are told one by one
SHOWN = 5


class Finding(NamedTuple):
    """Something wrong.

    Attributes:
        file: name of the file in the folder that is verified; no machine's path.
        message: got, expected and how to fix it, in one line.
    """

    file: str
    message: str

    @classmethod
    def about(cls, file: str, got: str, expected: str, fix: str = DOWNLOAD_AGAIN) -> Self:
        """Word a finding in the one form used for all data files."""
        return cls(file, f"got {got}; expected {expected}. To fix: {fix}.")

    @classmethod
    def of(cls, error: DataError, directory: Path) -> Self:
        """What a reader refused, with the folder's own path taken out."""
        file, _, message = str(error).replace(f"{directory}/", "").partition(": ")
        return cls(file, message)

    def text(self, directory: Path) -> str:
        """The finding as it is told: the path of the file, and the message."""
        return f"{directory / self.file}: {self.message}"


class Few:
    """Findings of one kind in one file: the first `SHOWN` are kept, the rest are counted."""

    def __init__(self, file: str, kind: str, fix: str = DOWNLOAD_AGAIN) -> None:
        self._file, self._kind, self._fix = file, kind, fix
        self._first: list[Finding] = []
        self.count = 0

    def add(self, places: Iterable[Finding], count: int = 1) -> None:
        """Count `count` more, of which `places` makes the first; those not shown are never made."""
        for place in places if len(self._first) < SHOWN else ():
            self._first.append(place)
            if len(self._first) == SHOWN:
                break
        self.count += count

    def findings(self) -> list[Finding]:
        """The first few in the order added, then how many there are if that is more."""
        if self.count == len(self._first):
            return self._first
        total = f"{self.count:,} {self._kind} in all, of which the first {len(self._first)} are told"
        return [*self._first, Finding.about(self._file, total, "none", self._fix)]
