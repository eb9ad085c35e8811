"""Reader of indexed datasets, Megatron-Core's token format (`PREFIX.bin` and `PREFIX.idx`), as one stream of tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from .files import Closing, DataError, append_suffix, open_binary, read_exactly
from .index import Index


class IndexedDataset(Closing):
    """The tokens of one indexed dataset in file order, across sequence and document boundaries.

    Opening costs as little as opening its `Index`. Threads and forked processes may share an object. ``prefix`` is the
    path without `.bin` and `.idx`. A sequence of text is usually one document.
    """

    def __init__(self, prefix: Path, index: Index, stream: BinaryIO, token_count: int) -> None:
        """Take over open and checked files; use `IndexedDataset.open`."""
        self.prefix = prefix
        self.dtype = index.dtype
        self.token_count = token_count
        self.sequence_count = index.sequence_count
        self.document_count = index.document_count
        self._stream = stream

    @classmethod
    def open(cls, prefix: Path) -> Self:
        """Open and check `PREFIX.bin` and `PREFIX.idx`.

        Raises:
            DataError: a file is missing or unreadable, or the two are inconsistent.
        """
        bin_path = append_suffix(prefix, ".bin")
        with Index.open(prefix) as index:
            stream = open_binary(bin_path)
        try:
            token_count = _count_tokens(bin_path, stream.fileno(), index)
        except BaseException:
            stream.close()
            raise
        return cls(prefix, index, stream, token_count)

    @property
    def path(self) -> Path:
        """The `.bin` file, for messages."""
        return append_suffix(self.prefix, ".bin")

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Read tokens `start` to `start + count - 1` into a new int64 array of shape [count].

        Raises:
            DataError: the range leaves the file, or the file shrank, failed or was closed since it was opened.
        """
        if start < 0 or count < 0 or start + count > self.token_count:
            raise DataError.about(
                self.path,
                f"a request for {count} tokens from token {start}",
                f"a range inside its {self.token_count} tokens",
                "ask for fewer sequences, or use the complete file",
            )
        if self._stream.closed:
            raise DataError.about(self.path, "a read after close()", "an open file", "open it again")
        # A read call, not a memory map. Touching a mapped page of a file that was truncated meanwhile (a copy still
        # running, a node's file system going away) kills the process with SIGBUS; a short read can be reported.
        # pread carries its own offset, so threads and forked workers cannot move each other's file position.
        width = self.dtype.itemsize
        raw = read_exactly(self.path, self._stream.fileno(), count * width, start * width)
        return np.frombuffer(raw, dtype=self.dtype).astype(np.int64)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._stream.close()


def _count_tokens(path: Path, descriptor: int, index: Index) -> int:
    size = os.fstat(descriptor).st_size
    if size % index.dtype.itemsize:
        raise DataError.about(
            path, f"{size} bytes", f"a multiple of {index.dtype.itemsize}, whole {index.dtype} tokens"
        )
    if size != index.data_bytes:
        last = index.pointers.offset(index.sequence_count - 1)
        expected = f"{index.data_bytes}, where the last sequence of its .idx ends (pointer at byte {last})"
        raise DataError.about(path, f"{size} bytes", expected)
    return size // index.dtype.itemsize
