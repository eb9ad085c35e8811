"""The three tables of an index, entry by entry: lengths, pointers and borders must tell of one gapless token file."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_scripts.checking.findings import Few, Finding
from gptoss20b.data.index import Index

# entries of a table, or numbers of entries
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tables:
    """What the tables hold.

    Attributes:
        findings: every entry that contradicts another one, or the file.
        empty_sequences: sequences without a token, which are allowed.
        empty_documents: documents without a sequence, which are allowed.
    """

    findings: list[Finding] = field(default_factory=list)
    empty_sequences: int = 0
    empty_documents: int = 0


def check_tables(index: Index, advance: Callable[[int], None]) -> Tables:
    """Check every entry of an open index in one pass, in blocks: bounded memory whatever the number of documents.

    Args:
        index: the open index, whose ends are already known to be right.
        advance: told the bytes of the index that were checked, block by block.

    Raises:
        DataError: the file shrank or failed since it was opened.
    """
    sequences = _Sequences(index)
    for (first, lengths), (_, pointers) in zip(index.lengths.blocks(), index.pointers.blocks(), strict=True):
        sequences.check(first, lengths, pointers)
        advance(lengths.size * (index.lengths.dtype.itemsize + index.pointers.dtype.itemsize))
    borders = _Borders(index)
    for first, block in index.borders.blocks():
        borders.check(first, block)
        advance(block.nbytes)
    return Tables(sequences.findings() + borders.findings(), sequences.empty, borders.empty)


class _Sequences:
    """Lengths and pointers: each sequence starts where the one before it ends."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._negative = Few(index.path.name, "negative lengths")
        self._misplaced = Few(index.path.name, "pointers that are not where the sequence before ends")
        # where the next sequence starts by the lengths so far, and how far the last pointer was from that
        self._end = 0
        self._drift = 0
        self.empty = 0

    def check(self, first: int, lengths: Numbers, pointers: Numbers) -> None:
        self.empty += lengths.size - int(np.count_nonzero(lengths))
        negative = np.flatnonzero(lengths < 0)
        self._negative.add((self._length(first + place, lengths[place]) for place in negative), negative.size)
        # Not the distance to the pointer before, which would blame two entries for one that is wrong: how far a
        # pointer is from the sum of all lengths before it changes once for a wrong length, and there and back for a
        # wrong pointer. It wraps around for absurd pointers, which leaves different values different.
        sizes = lengths * self._index.dtype.itemsize
        ends = self._end + np.cumsum(sizes)
        starts = ends - sizes
        drift = pointers - starts
        before = np.concatenate((np.array([self._drift]), drift[:-1]))
        misplaced = np.flatnonzero((drift != before) & (drift != 0))
        expected = starts[misplaced] + before[misplaced]
        self._misplaced.add(
            (self._pointer(first + at, pointers[at], end) for at, end in zip(misplaced, expected, strict=True)),
            misplaced.size,
        )
        self._end, self._drift = int(ends[-1]), int(drift[-1])

    def findings(self) -> list[Finding]:
        return self._negative.findings() + self._misplaced.findings()

    def _length(self, number: np.integer, length: np.int64) -> Finding:
        return Finding.about(
            self._index.path.name,
            f"a length of {length} tokens for sequence {number} (at byte {self._index.lengths.offset(int(number))})",
            "0 or more",
        )

    def _pointer(self, number: np.integer, pointer: np.int64, expected: np.int64) -> Finding:
        inside = 0 <= pointer <= self._index.data_bytes
        outside = "" if inside else f", outside the {self._index.data_bytes} bytes of its .bin"
        return Finding.about(
            self._index.path.name,
            f"pointer {pointer} for sequence {number} (at byte {self._index.pointers.offset(int(number))}){outside}",
            f"{expected}, where sequence {number - 1} ends by its length "
            f"(at byte {self._index.lengths.offset(int(number) - 1)})",
        )


class _Borders:
    """Borders of documents: sequence numbers that never shrink."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._outside = Few(index.path.name, "borders outside the sequences")
        self._shrinking = Few(index.path.name, "borders below the one before")
        self._last = 0
        self.empty = 0

    def check(self, first: int, borders: Numbers) -> None:
        sequences = self._index.sequence_count
        before = np.concatenate((np.array([self._last]), borders[:-1]))
        # The first entry, 0, starts a document and ends none.
        self.empty += int(np.count_nonzero(borders == before)) - (first == 0)
        out = (borders < 0) | (borders > sequences)
        outside = np.flatnonzero(out)
        self._outside.add(
            (self._border(first + at, borders[at], f"0 to {sequences}, the sequences") for at in outside), outside.size
        )
        # After one beyond the sequences any good one is smaller: that one is told, above.
        shrinking = np.flatnonzero((borders < before) & (before <= sequences) & ~out)
        self._shrinking.add(
            (self._border(first + at, borders[at], f"at least {before[at]}, the one before") for at in shrinking),
            shrinking.size,
        )
        self._last = int(borders[-1])

    def findings(self) -> list[Finding]:
        return self._outside.findings() + self._shrinking.findings()

    def _border(self, number: np.integer, border: np.int64, expected: str) -> Finding:
        place = f"at byte {self._index.borders.offset(int(number))}"
        return Finding.about(
            self._index.path.name, f"sequence {border} as the border of document {number} ({place})", expected
        )


def document_at(index: Index, token: int) -> tuple[int, int]:
    """The document that holds token number `token` of the file, and the token's number within that document.

    The tables must be right. Reads one entry per halving.
    """
    byte = token * index.dtype.itemsize
    sequence = index.pointers.last_at_most(byte)
    document = index.borders.last_at_most(sequence)
    start = int(index.pointers.read(int(index.borders.read(document, 1)[0]), 1)[0])
    return document, (byte - start) // index.dtype.itemsize
