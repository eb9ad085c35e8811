"""Writing a pair (`.bin` + `.idx`) in bounded memory, in a form that an interrupted writer can take up again."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from gptoss20b.data.index import BORDER, LENGTH, POINTER, header

# The type of the published set; its largest id, 128,255, does not fit 16 bits.
TOKEN = np.dtype("<i4")
# documents per pass when the index is written: 8 MB of the widest table
_BLOCK = 1 << 20


class Written(NamedTuple):
    """How much a writer holds: the state to note, and to hand to the next writer."""

    documents: int
    tokens: int


NOTHING = Written(0, 0)


class IndexedDatasetWriter:
    """Appends documents to a token file; the lengths wait in a file of their own until the index is written.

    Every document is one sequence, in the order added. Nothing depends on the number of documents but the size of the
    files: 45.6 million of them need no more memory than one.
    """

    def __init__(self, data: Path, lengths: Path, keep: Written = NOTHING) -> None:
        """Open both files, cut to what `keep` says; what lies behind is of a writer that was interrupted.

        Raises:
            ValueError: the files hold less than `keep` says.
            OSError: they cannot be written.
        """
        self.written = keep
        self._data = _open_at(data, keep.tokens * TOKEN.itemsize)
        try:
            self._lengths = _open_at(lengths, keep.documents * LENGTH.itemsize)
        except BaseException:
            self._data.close()
            raise

    def add(self, tokens: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]) -> None:
        """Append documents: their tokens in one array [sum of lengths], and the tokens of each [documents].

        Raises:
            ValueError: the lengths do not add up to the tokens.
            OSError: the disk is full, or failed.
        """
        if int(lengths.sum()) != tokens.size:
            raise ValueError(f"lengths: got a sum of {lengths.sum()}; expected {tokens.size}, the tokens given.")
        self._data.write(tokens.astype(TOKEN, copy=False).data)
        self._lengths.write(lengths.astype(LENGTH, copy=False).data)
        self.written = Written(self.written.documents + lengths.size, self.written.tokens + tokens.size)

    def flush(self) -> Written:
        """Put everything on the disk; what this returns is safe to note as done."""
        for stream in (self._data, self._lengths):
            stream.flush()
            os.fsync(stream.fileno())
        return self.written

    def write_index(self, path: Path) -> None:
        """Write the `.idx` of everything added, and put it on the disk.

        Raises:
            OSError: the disk is full, or failed.
        """
        documents = self.flush().documents
        with path.open("wb") as index:
            index.write(header(TOKEN, documents, documents))
            for lengths in self._stored_lengths():
                index.write(lengths.data)
            start = 0
            for lengths in self._stored_lengths():
                ends = start + np.cumsum(lengths, dtype=POINTER) * TOKEN.itemsize
                index.write((ends - lengths.astype(POINTER) * TOKEN.itemsize).data)
                start = int(ends[-1])
            for first in range(0, documents + 1, _BLOCK):
                index.write(np.arange(first, min(first + _BLOCK, documents + 1), dtype=BORDER).data)
            index.flush()
            os.fsync(index.fileno())

    def close(self) -> None:
        """Close both files; safe to call twice."""
        self._data.close()
        self._lengths.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stored_lengths(self) -> Iterator[npt.NDArray[np.int32]]:
        for first in range(0, self.written.documents, _BLOCK):
            size = min(_BLOCK, self.written.documents - first) * LENGTH.itemsize
            yield np.frombuffer(os.pread(self._lengths.fileno(), size, first * LENGTH.itemsize), LENGTH)


def _open_at(path: Path, size: int) -> BinaryIO:
    stream = path.open("r+b" if path.exists() else "w+b")
    held = stream.seek(0, os.SEEK_END)
    if held < size:
        stream.close()
        raise ValueError(f"{path}: got {held} bytes; expected at least {size}, which were written before.")
    stream.truncate(size)
    stream.seek(size)
    return stream
