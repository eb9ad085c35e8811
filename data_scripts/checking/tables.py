"""Check the three tables of an index entry by entry: together they must describe one `.bin` without gaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gptoss20b.data.index import Index

from .findings import CappedFindings, Finding

Int64Array = npt.NDArray[np.int64]


class TableCheck(NamedTuple):
    """Result of checking the tables.

    Attributes:
        findings: every entry that contradicts another one, or the file.
        empty_sequences: sequences without a token, which are allowed.
        empty_documents: documents without a sequence, which are allowed.
    """

    findings: list[Finding]
    empty_sequences: int
    empty_documents: int


def check_tables(index: Index, advance: Callable[[int], None]) -> TableCheck:
    """Check every entry of an open index in one pass, block by block, in bounded memory.

    Args:
        index: the open index; opening has checked the ends of its tables.
        advance: called with the bytes of each checked block.

    Raises:
        DataError: the file shrank or failed since it was opened.
    """
    sequences = _SequenceCheck(index)
    for (first, lengths), (_, pointers) in zip(index.lengths.blocks(), index.pointers.blocks(), strict=True):
        sequences.check(first, lengths, pointers)
        advance(lengths.size * (index.lengths.dtype.itemsize + index.pointers.dtype.itemsize))
    boundaries = _BoundaryCheck(index)
    for first, block in index.boundaries.blocks():
        boundaries.check(first, block)
        advance(block.nbytes)
    return TableCheck(sequences.findings() + boundaries.findings(), sequences.empty, boundaries.empty)


class _SequenceCheck:
    """Lengths and pointers: each sequence starts where the previous one ends."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._negative = CappedFindings(index.path.name, "negative lengths")
        self._misplaced = CappedFindings(index.path.name, "pointers that are not where the previous sequence ends")
        # Where the next sequence starts by the lengths so far, and how far the last pointer was from that.
        self._end = 0
        self._drift = 0
        self.empty = 0

    def check(self, first: int, lengths: Int64Array, pointers: Int64Array) -> None:
        self.empty += lengths.size - int(np.count_nonzero(lengths))
        negative = np.flatnonzero(lengths < 0)
        self._negative.add((self._bad_length(first + at, lengths[at]) for at in negative), negative.size)
        # The distance to the previous pointer would blame two entries for one wrong pointer. The drift, a pointer's
        # distance from the sum of all lengths before it, changes once for a wrong length, and there and back for a
        # wrong pointer. Absurd pointers wrap around in int64, which keeps different values different.
        sizes = lengths * self._index.dtype.itemsize
        ends = self._end + np.cumsum(sizes)
        starts = ends - sizes
        drift = pointers - starts
        before = np.concatenate((np.array([self._drift]), drift[:-1]))
        misplaced = np.flatnonzero((drift != before) & (drift != 0))
        expected = starts[misplaced] + before[misplaced]
        self._misplaced.add(
            (self._bad_pointer(first + at, pointers[at], end) for at, end in zip(misplaced, expected, strict=True)),
            misplaced.size,
        )
        self._end, self._drift = int(ends[-1]), int(drift[-1])

    def findings(self) -> list[Finding]:
        return self._negative.findings() + self._misplaced.findings()

    def _bad_length(self, number: np.integer, length: np.int64) -> Finding:
        return Finding.about(
            self._index.path.name,
            f"a length of {length} tokens for sequence {number} (at byte {self._index.lengths.offset(int(number))})",
            "0 or more",
        )

    def _bad_pointer(self, number: np.integer, pointer: np.int64, expected: np.int64) -> Finding:
        inside = 0 <= pointer <= self._index.data_bytes
        outside = "" if inside else f", outside the {self._index.data_bytes} bytes of its .bin"
        return Finding.about(
            self._index.path.name,
            f"pointer {pointer} for sequence {number} (at byte {self._index.pointers.offset(int(number))}){outside}",
            f"{expected}, where sequence {number - 1} ends by its length "
            f"(at byte {self._index.lengths.offset(int(number) - 1)})",
        )


class _BoundaryCheck:
    """Document boundaries: sequence numbers that never decrease."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._outside = CappedFindings(index.path.name, "boundaries outside the sequences")
        self._decreasing = CappedFindings(index.path.name, "boundaries below the previous one")
        self._last = 0
        self.empty = 0

    def check(self, first: int, boundaries: Int64Array) -> None:
        sequences = self._index.sequence_count
        before = np.concatenate((np.array([self._last]), boundaries[:-1]))
        # The first entry, 0, starts a document and ends none.
        self.empty += int(np.count_nonzero(boundaries == before)) - (first == 0)
        outside_mask = (boundaries < 0) | (boundaries > sequences)
        outside = np.flatnonzero(outside_mask)
        self._outside.add(
            (self._bad_boundary(first + at, boundaries[at], f"0 to {sequences}, the sequences") for at in outside),
            outside.size,
        )
        # After a boundary beyond the sequences every good one is smaller: the finding above covers it.
        decreasing = np.flatnonzero((boundaries < before) & (before <= sequences) & ~outside_mask)
        self._decreasing.add(
            (
                self._bad_boundary(first + at, boundaries[at], f"at least {before[at]}, the previous one")
                for at in decreasing
            ),
            decreasing.size,
        )
        self._last = int(boundaries[-1])

    def findings(self) -> list[Finding]:
        return self._outside.findings() + self._decreasing.findings()

    def _bad_boundary(self, number: np.integer, boundary: np.int64, expected: str) -> Finding:
        place = f"at byte {self._index.boundaries.offset(int(number))}"
        return Finding.about(
            self._index.path.name, f"sequence {boundary} as the boundary of document {number} ({place})", expected
        )


def document_at(index: Index, token: int) -> tuple[int, int]:
    """Return the document that holds token number `token` of the file, and the token's number within the document.

    The tables must be right. Bisects: reads one entry per halving.
    """
    byte = token * index.dtype.itemsize
    sequence = index.pointers.last_at_most(byte)
    document = index.boundaries.last_at_most(sequence)
    start = index.pointers.entry(index.boundaries.entry(document))
    return document, (byte - start) // index.dtype.itemsize
