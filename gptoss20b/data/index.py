"""The index (`PREFIX.idx`) of an indexed dataset: its layout, and reading it without loading it.

Layout, little-endian (source: Megatron-Core 0.16, `megatron.core.datasets.indexed_dataset`):
9 bytes magic, u64 version, u8 dtype code, u64 number of sequences S, u64 number of document boundaries D, then
int32 lengths[S] (tokens), int64 pointers[S] (bytes into the .bin), int64 boundaries[D] (sequence numbers).
Megatron calls the boundaries `document_indices`. They start with 0, so n documents have D = n + 1 of them.
"""

from __future__ import annotations

import bisect
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from .files import Closing, DataError, append_suffix, open_binary, read_exactly

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
# byte offsets of the header's numbers
_VERSION_OFFSET, DTYPE_OFFSET, _SEQUENCES_OFFSET, _BOUNDARIES_OFFSET = 9, 17, 18, 26
_INTEGER_DTYPES: dict[int, np.dtype[np.integer]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
_FLOAT_DTYPES = {6: "float64", 7: "float32"}
LENGTH_DTYPE, POINTER_DTYPE, BOUNDARY_DTYPE = np.dtype("<i4"), np.dtype("<i8"), np.dtype("<i8")
# entries per pass over a table: 8 MB of the widest
_BLOCK = 1 << 20


def pack_header(dtype: np.dtype[np.integer], sequences: int, documents: int) -> bytes:
    """Return the header of an index whose tokens have an integer type.

    >>> pack_header(np.dtype("<i4"), sequences=3, documents=3).hex(" ")[27:]
    '01 00 00 00 00 00 00 00 04 03 00 00 00 00 00 00 00 04 00 00 00 00 00 00 00'
    """
    codes = {known: code for code, known in _INTEGER_DTYPES.items()}
    return _HEADER.pack(_MAGIC, _VERSION, codes[dtype], sequences, documents + 1)


@dataclass(frozen=True)
class Table:
    """One table of an open index: ``count`` entries from byte ``start``. ``path`` is for messages."""

    path: Path
    dtype: np.dtype[np.signedinteger]
    start: int
    count: int
    _stream: BinaryIO

    @property
    def end(self) -> int:
        """The byte after the last entry."""
        return self.offset(self.count)

    def offset(self, number: int) -> int:
        """Return the byte at which entry `number` starts."""
        return self.start + number * self.dtype.itemsize

    def read(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Read entries `first` to `first + count - 1` as int64, shape [count].

        Raises:
            DataError: the file shrank or failed since it was opened.
        """
        raw = read_exactly(self.path, self._stream.fileno(), count * self.dtype.itemsize, self.offset(first))
        return np.frombuffer(raw, self.dtype).astype(np.int64)

    def entry(self, number: int) -> int:
        """Read one entry."""
        return int(self.read(number, 1)[0])

    def last_at_most(self, value: int) -> int:
        """Return the number of the last entry that is not above `value`, by bisection.

        The table must never decrease, and must start at or below `value`.
        """
        return bisect.bisect_right(range(self.count), value, key=self.entry) - 1

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Yield all entries in blocks of bounded size, each with the number of its first entry."""
        for first in range(0, self.count, _BLOCK):
            yield first, self.read(first, min(_BLOCK, self.count - first))


class Index(Closing):
    """An index opened for reading. Threads may share it.

    Opening reads the header and the ends of the three tables, never the tables themselves. It costs the same for one
    document as for the 45.6 million of the published training set.

    Attributes:
        path: the `.idx`.
        dtype: type of one token in the `.bin`.
        lengths, pointers: per sequence, its number of tokens and its first byte in the `.bin`.
        boundaries: per document the sequence it starts with; then the number of sequences.
        sequence_count: number of sequences (for text, usually one per document).
        document_count: number of documents; one less than the boundaries in the header.
        data_bytes: the byte at which the last sequence ends in the `.bin`.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        """Take over an open stream; check the header, and the first and last entry of each table."""
        self.path = path
        self._stream = stream
        size = os.fstat(stream.fileno()).st_size
        if size < _HEADER.size:
            raise DataError.about(path, f"{size} bytes", f"at least the {_HEADER.size} bytes of a header")
        magic, version, code, sequences, boundaries = _HEADER.unpack(
            read_exactly(path, stream.fileno(), _HEADER.size, 0)
        )
        if magic != _MAGIC:
            raise DataError.about(path, f"{magic!r} at byte 0", f"{_MAGIC!r}, the first bytes of a Megatron index")
        if version != _VERSION:
            raise DataError.about(path, f"version {version} at byte {_VERSION_OFFSET}", f"version {_VERSION}")
        self.dtype = _token_dtype(path, code)
        if sequences < 1:
            raise DataError.about(path, f"{sequences} sequences at byte {_SEQUENCES_OFFSET}", "at least 1")
        if boundaries < 2:
            got = f"{boundaries} document boundaries at byte {_BOUNDARIES_OFFSET}"
            raise DataError.about(path, got, "at least 2, the start and end of a document")
        self.sequence_count, self.document_count = int(sequences), int(boundaries) - 1
        self.lengths = Table(path, LENGTH_DTYPE, _HEADER.size, self.sequence_count, stream)
        self.pointers = Table(path, POINTER_DTYPE, self.lengths.end, self.sequence_count, stream)
        self.boundaries = Table(path, BOUNDARY_DTYPE, self.pointers.end, self.document_count + 1, stream)
        if size != self.boundaries.end:
            expected = f"{self.boundaries.end} for the {sequences} sequences and {boundaries} boundaries of its header"
            raise DataError.about(path, f"{size} bytes", expected)
        self.data_bytes = self._check_ends()

    @classmethod
    def open(cls, prefix: Path) -> Self:
        """Open and check `PREFIX.idx`.

        Raises:
            DataError: the file is missing, unreadable or inconsistent.
        """
        path = append_suffix(prefix, ".idx")
        stream = open_binary(path)
        try:
            return cls(path, stream)
        except BaseException:
            stream.close()
            raise

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._stream.close()

    def _check_ends(self) -> int:
        """Check the first and last entries. Return the byte at which the last sequence ends in the `.bin`."""
        last_sequence = self.sequence_count - 1
        first_pointer, last_pointer = self.pointers.entry(0), self.pointers.entry(last_sequence)
        last_length = self.lengths.entry(last_sequence)
        if first_pointer != 0:
            got = f"the first sequence at byte {first_pointer} of its .bin (pointer at byte {self.pointers.start})"
            raise DataError.about(self.path, got, "byte 0")
        if last_pointer < 0 or last_length < 0:
            got = (
                f"a last sequence of {last_length} tokens (length at byte {self.lengths.offset(last_sequence)}) at "
                f"byte {last_pointer} of its .bin (pointer at byte {self.pointers.offset(last_sequence)})"
            )
            raise DataError.about(self.path, got, "no negative number")
        first, last = self.boundaries.entry(0), self.boundaries.entry(self.document_count)
        if (first, last) != (0, self.sequence_count):
            raise DataError.about(
                self.path,
                f"documents from sequence {first} (boundary at byte {self.boundaries.start}) to {last} "
                f"(boundary at byte {self.boundaries.offset(self.document_count)})",
                f"from 0 to {self.sequence_count}, all sequences",
            )
        return last_pointer + last_length * self.dtype.itemsize


def _token_dtype(path: Path, code: int) -> np.dtype[np.integer]:
    if code in _INTEGER_DTYPES:
        return _INTEGER_DTYPES[code]
    got = f"dtype code {code} at byte {DTYPE_OFFSET} ({_FLOAT_DTYPES.get(code, 'unknown')})"
    codes = ", ".join(f"{known} {dtype.name}" for known, dtype in _INTEGER_DTYPES.items())
    raise DataError.about(path, got, f"an integer token type: {codes}")
