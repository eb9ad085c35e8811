"""The index (`PREFIX.idx`) of a Megatron indexed dataset: its layout, and reading it without loading it.

Layout, little-endian (source: Megatron-Core 0.16, `megatron.core.datasets.indexed_dataset`):
9 bytes magic, u64 version, u8 dtype code, u64 number of sequences S, u64 number of document borders D, then
int32 lengths[S] (tokens), int64 pointers[S] (bytes into the .bin), int64 borders[D] (sequence numbers).
The borders start with 0, so a file of n documents holds D = n + 1 of them.
"""

import bisect
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from gptoss20b.data.files import DataError, open_binary, read_exactly, with_suffix

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
# bytes at which the header's numbers start
_VERSION_AT, _DTYPE_AT, _SEQUENCES_AT, _BORDERS_AT = 9, 17, 18, 26
_INTEGER_DTYPES: dict[int, np.dtype[np.integer]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
_FLOAT_DTYPES = {6: "float64", 7: "float32"}
LENGTH, POINTER, BORDER = np.dtype("<i4"), np.dtype("<i8"), np.dtype("<i8")
# entries per pass over a table: 8 MB of the widest
_BLOCK = 1 << 20


def header(dtype: np.dtype[np.integer], sequences: int, documents: int) -> bytes:
    """The first bytes of an index, before its three tables, for tokens of an integer type.

    >>> header(np.dtype("<i4"), sequences=3, documents=3).hex(" ")[27:]
    '01 00 00 00 00 00 00 00 04 03 00 00 00 00 00 00 00 04 00 00 00 00 00 00 00'
    """
    codes = {known: code for code, known in _INTEGER_DTYPES.items()}
    return _HEADER.pack(_MAGIC, _VERSION, codes[dtype], sequences, documents + 1)


@dataclass(frozen=True)
class Table:
    """One table of an open index.

    Attributes:
        path: the index, for messages.
        dtype: type of an entry.
        start: byte of the first entry.
        count: entries.
    """

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
        """The byte at which entry `number` starts."""
        return self.start + number * self.dtype.itemsize

    def read(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Entries `first` to `first + count - 1`, int64, shape [count].

        Raises:
            ValueError: the range leaves the table.
            DataError: the file shrank or failed since it was opened.
        """
        if first < 0 or count < 0 or first + count > self.count:
            raise ValueError(f"entries: got {first} to {first + count - 1}; expected 0 to {self.count - 1}.")
        raw = read_exactly(self.path, self._stream.fileno(), count * self.dtype.itemsize, self.offset(first))
        return np.frombuffer(raw, self.dtype).astype(np.int64)

    def last_at_most(self, value: int) -> int:
        """Number of the last entry that is not above `value`, in a table that never shrinks and starts at or below it.

        Reads one entry per halving.
        """
        return bisect.bisect_right(range(self.count), value, key=lambda number: int(self.read(number, 1)[0])) - 1

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """All entries in pieces, with the number of each piece's first, in bounded memory."""
        for first in range(0, self.count, _BLOCK):
            yield first, self.read(first, min(_BLOCK, self.count - first))


class Index:
    """An index opened for reading. One object may be shared by threads.

    Opening costs the same for one document as for 45.6 million: it reads the header and the ends of the three
    tables, never the tables themselves.

    Attributes:
        path: the `.idx`.
        dtype: type of one token in the `.bin`.
        lengths, pointers: per sequence, its tokens and its first byte in the `.bin`.
        borders: per document the sequence it starts with, and at the end the number of sequences.
        sequence_count: sequences (for text, usually one per document).
        document_count: documents; one less than the borders the header counts.
        data_bytes: where the last sequence ends in the `.bin`.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        """Take over an open stream and check the header and the first and last entry of each table."""
        self.path = path
        self._stream = stream
        size = os.fstat(stream.fileno()).st_size
        if size < _HEADER.size:
            raise DataError.about(path, f"{size} bytes", f"at least the {_HEADER.size} bytes of a header")
        magic, version, code, sequences, borders = _HEADER.unpack(read_exactly(path, stream.fileno(), _HEADER.size, 0))
        if magic != _MAGIC:
            raise DataError.about(path, f"{magic!r} at byte 0", f"{_MAGIC!r}, the first bytes of a Megatron index")
        if version != _VERSION:
            raise DataError.about(path, f"version {version} at byte {_VERSION_AT}", f"version {_VERSION}")
        self.dtype = _dtype(path, code)
        if sequences < 1:
            raise DataError.about(path, f"{sequences} sequences at byte {_SEQUENCES_AT}", "at least 1")
        if borders < 2:
            got = f"{borders} document borders at byte {_BORDERS_AT}"
            raise DataError.about(path, got, "at least 2, the start and end of a document")
        self.sequence_count, self.document_count = int(sequences), int(borders) - 1
        self.lengths = Table(path, LENGTH, _HEADER.size, self.sequence_count, stream)
        self.pointers = Table(path, POINTER, self.lengths.end, self.sequence_count, stream)
        self.borders = Table(path, BORDER, self.pointers.end, self.document_count + 1, stream)
        if size != self.borders.end:
            raise DataError.about(
                path,
                f"{size} bytes",
                f"{self.borders.end} for the {sequences} sequences and {borders} borders of its header",
            )
        self.data_bytes = self._check_ends()

    @classmethod
    def open(cls, prefix: Path) -> Self:
        """Open and check `PREFIX.idx`.

        Raises:
            DataError: the file is missing, unreadable or contradicts itself.
        """
        path = with_suffix(prefix, ".idx")
        stream = open_binary(path)
        try:
            return cls(path, stream)
        except BaseException:
            stream.close()
            raise

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_ends(self) -> int:
        """Where the last sequence ends in the `.bin`, in bytes."""

        def ends(table: Table) -> tuple[int, int]:
            return int(table.read(0, 1)[0]), int(table.read(table.count - 1, 1)[0])

        first_pointer, last_pointer = ends(self.pointers)
        last_length = ends(self.lengths)[1]
        at = self.pointers.start
        if first_pointer != 0:
            got = f"the first sequence at byte {first_pointer} of its .bin (pointer at byte {at})"
            raise DataError.about(self.path, got, "byte 0")
        if last_pointer < 0 or last_length < 0:
            # the last entry of each table ends where the next table starts
            length_at, pointer_at = at - LENGTH.itemsize, self.borders.start - POINTER.itemsize
            got = (
                f"a last sequence of {last_length} tokens (length at byte {length_at}) at byte {last_pointer} of its "
                f".bin (pointer at byte {pointer_at})"
            )
            raise DataError.about(self.path, got, "no negative number")
        if ends(self.borders) != (0, self.sequence_count):
            first, last = ends(self.borders)
            raise DataError.about(
                self.path,
                f"documents from sequence {first} (border at byte {self.borders.start}) to {last} "
                f"(border at byte {self.borders.end - BORDER.itemsize})",
                f"from 0 to {self.sequence_count}, all sequences",
            )
        return last_pointer + last_length * self.dtype.itemsize


def _dtype(path: Path, code: int) -> np.dtype[np.integer]:
    if code in _INTEGER_DTYPES:
        return _INTEGER_DTYPES[code]
    named = f"dtype code {code} at byte {_DTYPE_AT} ({_FLOAT_DTYPES.get(code, 'unknown')})"
    codes = ", ".join(f"{known} {dtype.name}" for known, dtype in _INTEGER_DTYPES.items())
    raise DataError.about(path, named, f"an integer token type: {codes}")
