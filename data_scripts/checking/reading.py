"""Read a file once, in pieces on several threads: its checksums and the range of its tokens in the same pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import fstat
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from gptoss20b.data.files import open_binary, read_exactly

from ..dataset_writer import TOKEN_DTYPE
from ..in_order import map_in_order
from .findings import MAX_LISTED

# A whole number of tokens, large enough for a network file system. As many pieces as threads are in memory at a time,
# which bounds the memory of a verification.
PIECE = 8 << 20


@dataclass
class TokenRange:
    """Range of the int32 tokens of a file.

    Attributes:
        low, high: smallest and largest id; None where there is no token.
        wrong: number of ids below 0 or outside the vocabulary.
        first_wrong: position in the file and id of the first wrong ones.
    """

    low: int | None = None
    high: int | None = None
    wrong: int = 0
    first_wrong: list[tuple[int, int]] = field(default_factory=list)

    def merge(self, later: TokenRange) -> None:
        """Add the range of the piece that follows."""
        if later.low is None or later.high is None:
            return
        self.low = later.low if self.low is None else min(self.low, later.low)
        self.high = later.high if self.high is None else max(self.high, later.high)
        self.wrong += later.wrong
        self.first_wrong += later.first_wrong[: MAX_LISTED - len(self.first_wrong)]


class FileScan(NamedTuple):
    """Checksums (hex) of a file by algorithm, and the range of its tokens; None if that was not asked for."""

    digests: dict[str, str]
    tokens: TokenRange | None


class _Piece(NamedTuple):
    size: int
    # kept for checksums only, which need the pieces in order
    data: bytes | None
    tokens: TokenRange | None


class Reader:
    """Reads files in pieces on its own threads; leaving its `with` block ends them.

    Args:
        threads: number of threads, and of pieces in memory.
        advance: called with the size of each piece read.
    """

    def __init__(self, threads: int, advance: Callable[[int], None]) -> None:
        self._threads, self._advance = threads, advance
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def scan(self, path: Path, algorithms: Sequence[str], vocab_size: int | None) -> FileScan:
        """Read a file once.

        Args:
            path: the file.
            algorithms: checksums to compute, by their names in hashlib.
            vocab_size: bound of the token ids; None to leave the tokens out.

        Raises:
            DataError: the file is missing or unreadable, or was cut meanwhile.
        """
        digests = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        tokens = None if vocab_size is None else TokenRange()
        with open_binary(path) as stream:
            size = fstat(stream.fileno()).st_size

        def read_piece(start: int) -> _Piece:
            # Each piece opens the file: after an error, threads may still read when the caller has left it.
            with open_binary(path) as stream:
                data = read_exactly(path, stream.fileno(), min(PIECE, size - start), start)
            found = None if vocab_size is None else _token_range(data, start // TOKEN_DTYPE.itemsize, vocab_size)
            return _Piece(len(data), data if digests else None, found)

        for _, piece in map_in_order(
            range(0, size, PIECE), lambda start: self._pool.submit(read_piece, start), self._threads
        ):
            for digest in digests.values():
                digest.update(piece.data or b"")
            if tokens is not None and piece.tokens is not None:
                tokens.merge(piece.tokens)
            self._advance(piece.size)
            # Free the piece before the next one is read.
            del piece
        return FileScan({name: digest.hexdigest() for name, digest in digests.items()}, tokens)


def _token_range(data: bytes, first: int, vocab_size: int) -> TokenRange:
    """Return the range of the tokens in a piece whose first token is number `first` of the file."""
    ids = np.frombuffer(data, TOKEN_DTYPE, len(data) // TOKEN_DTYPE.itemsize)
    if not ids.size:
        return TokenRange()
    low, high = int(ids.min()), int(ids.max())
    if low >= 0 and high < vocab_size:
        return TokenRange(low, high)
    wrong = (ids < 0) | (ids >= vocab_size)
    positions = np.flatnonzero(wrong)[:MAX_LISTED]
    return TokenRange(low, high, int(np.count_nonzero(wrong)), [(first + int(at), int(ids[at])) for at in positions])
