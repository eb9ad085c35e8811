"""Reader of Megatron indexed datasets (`PREFIX.bin` + `PREFIX.idx`) as one stream of tokens."""

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from gptoss20b.data.files import DataError, open_binary, read_exactly, with_suffix
from gptoss20b.data.index import Index


class IndexedDataset:
    """The tokens of one indexed dataset in file order, across sequence and document borders.

    Opening costs the same for one document as for 45.6 million: it reads the header and the ends of the three
    tables, never the tables themselves. One object may be shared by threads and by forked processes.

    Attributes:
        prefix: path without `.bin` / `.idx`.
        dtype: type of one token as stored.
        token_count: tokens in the `.bin`.
        sequence_count: sequences the index lists (for text, usually one per document).
        document_count: documents; one less than the borders the header counts.
    """

    def __init__(self, prefix: Path, index: Index, stream: BinaryIO, token_count: int) -> None:
        """Take over an opened, checked pair; use `IndexedDataset.open`."""
        self.prefix = prefix
        self.dtype = index.dtype
        self.token_count = token_count
        self.sequence_count = index.sequence_count
        self.document_count = index.document_count
        self._stream = stream

    @classmethod
    def open(cls, prefix: Path) -> "IndexedDataset":
        """Open and check `PREFIX.bin` and `PREFIX.idx`.

        Raises:
            DataError: a file is missing or unreadable, or the pair contradicts itself.
        """
        bin_path = with_suffix(prefix, ".bin")
        with Index.open(prefix) as index:
            data = open_binary(bin_path)
        try:
            token_count = _count_tokens(bin_path, data.fileno(), index)
        except BaseException:
            data.close()
            raise
        return cls(prefix, index, data, token_count)

    @property
    def path(self) -> Path:
        """The `.bin` file, for messages."""
        return with_suffix(self.prefix, ".bin")

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Tokens `start` to `start + count - 1` of the file as a new int64 array of shape [count].

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
        # A read call, not a memory map: touching a mapped page of a file that was truncated meanwhile (a copy still
        # running, a node's file system going away) kills the process with SIGBUS, a short read can be reported.
        # pread carries its own offset, so threads and forked workers cannot move each other's file position.
        width = self.dtype.itemsize
        raw = read_exactly(self.path, self._stream.fileno(), count * width, start * width)
        return np.frombuffer(raw, dtype=self.dtype).astype(np.int64)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._stream.close()

    def __enter__(self) -> "IndexedDataset":
        """Return the file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


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
