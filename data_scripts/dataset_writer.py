"""Write an indexed dataset (`.bin` and `.idx`) in bounded memory, so that an interrupted writer can resume."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from gptoss20b.data.files import Closing, DataError, append_suffix
from gptoss20b.data.index import BOUNDARY_DTYPE, LENGTH_DTYPE, POINTER_DTYPE, pack_header

# Token type of the published set. Its largest id, 128,255, does not fit 16 bits.
TOKEN_DTYPE = np.dtype("<i4")
# documents per pass when the index is written: 8 MB of the widest table
_BLOCK = 1 << 20


class DatasetSize(NamedTuple):
    """Size of what a writer holds, saved to resume it."""

    documents: int
    tokens: int


EMPTY = DatasetSize(0, 0)


class IndexedDatasetWriter(Closing):
    """Appends documents to a `.bin`; their lengths go to a second file until the index is written.

    Every document is one sequence, in the order added. Memory does not grow with the number of documents.

    Attributes:
        size: what was added so far.
    """

    def __init__(self, data: Path, lengths: Path, resume_from: DatasetSize = EMPTY) -> None:
        """Open both files and truncate them to `resume_from`, dropping what was written after that size was saved.

        Raises:
            DataError: the files hold less than `resume_from`.
        """
        self.size = resume_from
        self._data = _open_truncated(data, resume_from.tokens * TOKEN_DTYPE.itemsize)
        try:
            self._lengths = _open_truncated(lengths, resume_from.documents * LENGTH_DTYPE.itemsize)
        except BaseException:
            self._data.close()
            raise

    def add(self, tokens: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]) -> None:
        """Append documents.

        Args:
            tokens: all their tokens, shape [sum of lengths].
            lengths: tokens of each document, shape [documents].

        Raises:
            ValueError: the lengths do not add up to the tokens.
        """
        if int(lengths.sum()) != tokens.size:
            raise ValueError(f"lengths: got a sum of {lengths.sum()}; expected {tokens.size}, the tokens given.")
        self._data.write(tokens.astype(TOKEN_DTYPE, copy=False).data)
        self._lengths.write(lengths.astype(LENGTH_DTYPE, copy=False).data)
        self.size = DatasetSize(self.size.documents + lengths.size, self.size.tokens + tokens.size)

    def flush(self) -> DatasetSize:
        """Flush everything to disk. Return the size from which a later writer can resume."""
        for stream in (self._data, self._lengths):
            stream.flush()
            os.fsync(stream.fileno())
        return self.size

    def write_index(self, path: Path) -> None:
        """Write the `.idx` of everything added and flush it to disk."""
        documents = self.flush().documents
        with path.open("wb") as index:
            index.write(pack_header(TOKEN_DTYPE, documents, documents))
            for lengths in self._read_lengths():
                index.write(lengths.data)
            start = 0
            for lengths in self._read_lengths():
                ends = start + np.cumsum(lengths, dtype=POINTER_DTYPE) * TOKEN_DTYPE.itemsize
                index.write((ends - lengths.astype(POINTER_DTYPE) * TOKEN_DTYPE.itemsize).data)
                start = int(ends[-1])
            for first in range(0, documents + 1, _BLOCK):
                index.write(np.arange(first, min(first + _BLOCK, documents + 1), dtype=BOUNDARY_DTYPE).data)
            index.flush()
            os.fsync(index.fileno())

    def close(self) -> None:
        """Close both files; safe to call twice."""
        self._data.close()
        self._lengths.close()

    def _read_lengths(self) -> Iterator[npt.NDArray[np.int32]]:
        for first in range(0, self.size.documents, _BLOCK):
            size = min(_BLOCK, self.size.documents - first) * LENGTH_DTYPE.itemsize
            yield np.frombuffer(os.pread(self._lengths.fileno(), size, first * LENGTH_DTYPE.itemsize), LENGTH_DTYPE)


def write_dataset(prefix: Path, documents: Iterable[npt.NDArray[np.integer]]) -> None:
    """Write `PREFIX.bin` and `PREFIX.idx`, one sequence per document."""
    lengths = append_suffix(prefix, ".lengths")
    with IndexedDatasetWriter(append_suffix(prefix, ".bin"), lengths) as writer:
        for document in documents:
            writer.add(document, np.array([document.size]))
        writer.write_index(append_suffix(prefix, ".idx"))
    lengths.unlink()


def _open_truncated(path: Path, size: int) -> BinaryIO:
    """Open a file for appending after its first `size` bytes; drop the rest."""
    stream = path.open("r+b" if path.exists() else "w+b")
    existing = stream.seek(0, os.SEEK_END)
    if existing < size:
        stream.close()
        expected = f"at least {size}, which were written before"
        raise DataError.about(path, f"{existing} bytes", expected, f"remove {path.parent} to start again")
    stream.truncate(size)
    stream.seek(size)
    return stream
