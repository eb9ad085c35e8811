"""Check the three tables of an index entry by entry: together they must describe one `.bin` without gaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gptoss20b.data.index import Index

from .findings import CappedFindings, Finding


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
    sequence_findings, empty_sequences = _check_sequences(index, advance)
    boundary_findings, empty_documents = _check_boundaries(index, advance)
    return TableCheck(sequence_findings + boundary_findings, empty_sequences, empty_documents)


def _check_sequences(index: Index, advance: Callable[[int], None]) -> tuple[list[Finding], int]:
    """Check that each sequence starts where the previous one ends. Return the number of empty sequences too."""
    bad_lengths = CappedFindings(index.path.name, "negative lengths")
    bad_pointers = CappedFindings(index.path.name, "pointers that are not where the previous sequence ends")
    # Where the next sequence starts by the lengths so far, and how far the last pointer was from that.
    end = last_drift = empty = 0
    for (first, lengths), (_, pointers) in zip(index.lengths.blocks(), index.pointers.blocks(), strict=True):
        empty += lengths.size - int(np.count_nonzero(lengths))
        negative = np.flatnonzero(lengths < 0)
        bad_lengths.add((_bad_length(index, first + int(at), lengths[at]) for at in negative), negative.size)
        # The distance to the previous pointer would blame two entries for one wrong pointer. The drift, a pointer's
        # distance from the sum of all lengths before it, changes once for a wrong length, and there and back for a
        # wrong pointer. Absurd pointers wrap around in int64, which keeps different values different.
        sizes = lengths * index.dtype.itemsize
        ends = end + np.cumsum(sizes)
        starts = ends - sizes
        drift = pointers - starts
        before = np.concatenate((np.array([last_drift]), drift[:-1]))
        misplaced = np.flatnonzero((drift != before) & (drift != 0))
        expected = starts + before
        bad_pointers.add(
            (_bad_pointer(index, first + int(at), pointers[at], expected[at]) for at in misplaced), misplaced.size
        )
        end, last_drift = int(ends[-1]), int(drift[-1])
        advance(lengths.size * (index.lengths.dtype.itemsize + index.pointers.dtype.itemsize))
    return bad_lengths.findings() + bad_pointers.findings(), empty


def _bad_length(index: Index, number: int, length: np.int64) -> Finding:
    place = f"at byte {index.lengths.offset(number)}"
    return Finding.about(index.path.name, f"a length of {length} tokens for sequence {number} ({place})", "0 or more")


def _bad_pointer(index: Index, number: int, pointer: np.int64, expected: np.int64) -> Finding:
    outside = "" if 0 <= pointer <= index.data_bytes else f", outside the {index.data_bytes} bytes of its .bin"
    return Finding.about(
        index.path.name,
        f"pointer {pointer} for sequence {number} (at byte {index.pointers.offset(number)}){outside}",
        f"{expected}, where sequence {number - 1} ends by its length (at byte {index.lengths.offset(number - 1)})",
    )


def _check_boundaries(index: Index, advance: Callable[[int], None]) -> tuple[list[Finding], int]:
    """Check that document boundaries never decrease. Return the number of empty documents too."""
    out_of_range = CappedFindings(index.path.name, "boundaries outside the sequences")
    decreasing = CappedFindings(index.path.name, "boundaries below the previous one")
    count = index.sequence_count
    last = empty = 0
    for first, boundaries in index.boundaries.blocks():
        before = np.concatenate((np.array([last]), boundaries[:-1]))
        # The first entry, 0, starts a document and ends none.
        empty += int(np.count_nonzero(boundaries == before)) - (first == 0)
        is_outside = (boundaries < 0) | (boundaries > count)
        outside = np.flatnonzero(is_outside)
        out_of_range.add(
            (_bad_boundary(index, first + int(at), boundaries[at], f"0 to {count}, the sequences") for at in outside),
            outside.size,
        )
        # After a boundary beyond the sequences every good one is smaller: the finding above covers it.
        below = np.flatnonzero((boundaries < before) & (before <= count) & ~is_outside)
        decreasing.add(
            (
                _bad_boundary(index, first + int(at), boundaries[at], f"at least {before[at]}, the previous one")
                for at in below
            ),
            below.size,
        )
        last = int(boundaries[-1])
        advance(boundaries.nbytes)
    return out_of_range.findings() + decreasing.findings(), empty


def _bad_boundary(index: Index, number: int, boundary: np.int64, expected: str) -> Finding:
    place = f"at byte {index.boundaries.offset(number)}"
    return Finding.about(
        index.path.name, f"sequence {boundary} as the boundary of document {number} ({place})", expected
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
