"""Reader of Megatron indexed datasets (`PREFIX.bin` + `PREFIX.idx`) as one stream of tokens.

Layout of the index, little-endian (source: Megatron-Core 0.16, `megatron.core.datasets.indexed_dataset`):
9 bytes magic, u64 version, u8 dtype code, u64 number of sequences S, u64 number of document borders D, then
int32 lengths[S] (tokens), int64 pointers[S] (bytes into the .bin), int64 borders[D] (sequence numbers).
The borders start with 0, so a file of n documents holds D = n + 1 of them.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
_INTEGER_DTYPES: dict[int, np.dtype[np.integer]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
_FLOAT_DTYPES = {6: "float64", 7: "float32"}
_LENGTH_BYTES, _POINTER_BYTES, _BORDER_BYTES = 4, 8, 8
_REBUILD = "download both files of the pair again, or rebuild them"


class DataError(ValueError):
    """A data file is missing, damaged or does not fit the run. The message names the file and a fix."""

    @classmethod
    def about(cls, path: Path, got: str, expected: str, fix: str = _REBUILD) -> Self:
        """Word the error in the one form used for all data files: file, got, expected, fix."""
        return cls(f"{path}: got {got}; expected {expected}. To fix: {fix}.")


@dataclass(frozen=True)
class _Index:
    """What the index says about its token file; `data_bytes` is where its last sequence ends."""

    dtype: np.dtype[np.integer]
    sequence_count: int
    document_count: int
    data_bytes: int


class TokenFile:
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

    def __init__(self, prefix: Path, index: _Index, stream: BinaryIO, token_count: int) -> None:
        """Take over an opened, checked pair; use `TokenFile.open`."""
        self.prefix = prefix
        self.dtype = index.dtype
        self.token_count = token_count
        self.sequence_count = index.sequence_count
        self.document_count = index.document_count
        self._stream = stream

    @classmethod
    def open(cls, prefix: Path) -> "TokenFile":
        """Open and check `PREFIX.bin` and `PREFIX.idx`.

        Raises:
            DataError: a file is missing or unreadable, or the pair contradicts itself.
        """
        index_path, bin_path = _with_suffix(prefix, ".idx"), _with_suffix(prefix, ".bin")
        with _open_binary(index_path) as stream:
            index = _read_index(index_path, stream.fileno())
        data = _open_binary(bin_path)
        try:
            token_count = _count_tokens(bin_path, data.fileno(), index)
        except BaseException:
            data.close()
            raise
        return cls(prefix, index, data, token_count)

    @property
    def path(self) -> Path:
        """The `.bin` file, for messages."""
        return _with_suffix(self.prefix, ".bin")

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
        raw = _read_exactly(self.path, self._stream.fileno(), count * width, start * width)
        return np.frombuffer(raw, dtype=self.dtype).astype(np.int64)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._stream.close()

    def __enter__(self) -> "TokenFile":
        """Return the file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


def _with_suffix(prefix: Path, suffix: str) -> Path:
    # Path.with_suffix would cut the published name "c4-train.en_6_text_document" at its dot.
    return Path(f"{prefix}{suffix}")


def _open_binary(path: Path) -> BinaryIO:
    fix = "check the data directory, or download the data set"
    if path.stem.endswith((".bin", ".idx")):
        fix = "give the prefix without .bin or .idx"
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise DataError.about(path, "no such file", "a file", fix) from None
    except (OSError, ValueError) as error:
        raise DataError.about(path, str(error), "a readable file", fix) from error


def _read_exactly(path: Path, descriptor: int, size: int, offset: int) -> bytes:
    """Read `size` bytes at byte `offset`; fewer is a DataError. One system call may return less than asked for."""
    parts: list[bytes] = []
    missing = size
    while missing:
        try:
            part = os.pread(descriptor, missing, offset + size - missing)
        except OSError as error:
            raise DataError.about(
                path, str(error), f"{size} bytes at byte {offset}", "check the file system"
            ) from error
        if not part:
            raise DataError.about(
                path, f"{size - missing} bytes at byte {offset}", f"{size}; the file was cut while it was in use"
            )
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_index(path: Path, descriptor: int) -> _Index:
    """Check the header and the first and last entry of each table."""
    size = os.fstat(descriptor).st_size
    if size < _HEADER.size:
        raise DataError.about(path, f"{size} bytes", f"at least the {_HEADER.size} bytes of a header")
    header = _read_exactly(path, descriptor, _HEADER.size, 0)
    magic, version, code, sequences, borders = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise DataError.about(path, f"first bytes {magic!r}", f"{_MAGIC!r}, a Megatron index")
    if version != _VERSION:
        raise DataError.about(path, f"version {version}", f"version {_VERSION}")
    dtype = _dtype(path, code)
    if sequences < 1:
        raise DataError.about(path, f"{sequences} sequences", "at least 1")
    if borders < 2:
        raise DataError.about(path, f"{borders} document borders", "at least 2, the start and end of a document")
    lengths_at = _HEADER.size
    pointers_at = lengths_at + sequences * _LENGTH_BYTES
    borders_at = pointers_at + sequences * _POINTER_BYTES
    end = borders_at + borders * _BORDER_BYTES
    if size != end:
        raise DataError.about(
            path, f"{size} bytes", f"{end} for the {sequences} sequences and {borders} borders of its header"
        )

    def number(kind: str, width: int, offset: int) -> int:
        return int(struct.unpack(kind, _read_exactly(path, descriptor, width, offset))[0])

    first_pointer = number("<q", _POINTER_BYTES, pointers_at)
    last_pointer = number("<q", _POINTER_BYTES, borders_at - _POINTER_BYTES)
    last_length = number("<i", _LENGTH_BYTES, pointers_at - _LENGTH_BYTES)
    first_border = number("<q", _BORDER_BYTES, borders_at)
    last_border = number("<q", _BORDER_BYTES, end - _BORDER_BYTES)
    if first_pointer != 0:
        raise DataError.about(path, f"first sequence at byte {first_pointer}", "byte 0")
    if last_pointer < 0 or last_length < 0:
        raise DataError.about(
            path, f"last sequence of {last_length} tokens at byte {last_pointer}", "no negative number"
        )
    if (first_border, last_border) != (0, sequences):
        raise DataError.about(
            path, f"documents from sequence {first_border} to {last_border}", f"from 0 to {sequences}, all sequences"
        )
    return _Index(dtype, sequences, borders - 1, last_pointer + last_length * dtype.itemsize)


def _dtype(path: Path, code: int) -> np.dtype[np.integer]:
    if code in _INTEGER_DTYPES:
        return _INTEGER_DTYPES[code]
    named = f"dtype code {code} ({_FLOAT_DTYPES.get(code, 'unknown')})"
    codes = ", ".join(f"{known} {dtype.name}" for known, dtype in _INTEGER_DTYPES.items())
    raise DataError.about(path, named, f"an integer token type: {codes}")


def _count_tokens(path: Path, descriptor: int, index: _Index) -> int:
    size = os.fstat(descriptor).st_size
    if size % index.dtype.itemsize:
        raise DataError.about(
            path, f"{size} bytes", f"a multiple of {index.dtype.itemsize}, whole {index.dtype} tokens"
        )
    if size != index.data_bytes:
        raise DataError.about(path, f"{size} bytes", f"{index.data_bytes}, where the last sequence of its .idx ends")
    return size // index.dtype.itemsize
