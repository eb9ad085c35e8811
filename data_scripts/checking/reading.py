"""Reading a file once, in pieces over several threads: its checksums and its tokens' range in the same pass."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from os import fstat
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from data_scripts.checking.findings import SHOWN
from data_scripts.dataset_writer import TOKEN
from gptoss20b.data.files import open_binary, read_exactly

# A whole number of tokens, large enough for a network file system. With as many pieces in memory as threads, this
# bounds the memory of a verification.
PIECE = 8 << 20


@dataclass
class TokenRange:
    """What the int32 tokens of a file are.

    Attributes:
        low, high: smallest and largest id; None where there is no token.
        wrong: ids below 0 or outside the vocabulary.
        first: number in the file and id of the first wrong ones.
    """

    low: int | None = None
    high: int | None = None
    wrong: int = 0
    first: list[tuple[int, int]] = field(default_factory=list)

    def add(self, other: "TokenRange") -> None:
        """Take in what was found in the piece after."""
        if other.low is None or other.high is None:
            return
        self.low = other.low if self.low is None else min(self.low, other.low)
        self.high = other.high if self.high is None else max(self.high, other.high)
        self.wrong += other.wrong
        self.first += other.first[: SHOWN - len(self.first)]


@dataclass(frozen=True)
class Contents:
    """What one pass over a file found.

    Attributes:
        digests: checksum (hex) by algorithm.
        tokens: the range of its tokens; None if they were not asked for.
    """

    digests: dict[str, str]
    tokens: TokenRange | None


class _Piece(NamedTuple):
    size: int
    # kept for checksums only, which need the pieces in order
    data: bytes | None
    tokens: TokenRange | None


class Reader:
    """Reads files in pieces on threads of its own; leaving its `with` block ends them.

    Args:
        threads: how many; at most as many pieces are in memory.
        advance: told the bytes read, piece by piece.
    """

    def __init__(self, threads: int, advance: Callable[[int], None]) -> None:
        self._threads, self._advance = threads, advance
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, path: Path, algorithms: Sequence[str], vocabulary: int | None) -> Contents:
        """Read a file once: its checksums by `algorithms` (names of hashlib), its tokens against `vocabulary`.

        Raises:
            DataError: the file is missing or unreadable, or was cut while it was read.
        """
        digests = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        tokens = None if vocabulary is None else TokenRange()
        with open_binary(path) as stream:
            size = fstat(stream.fileno()).st_size

            def piece(start: int) -> _Piece:
                data = read_exactly(path, stream.fileno(), min(PIECE, size - start), start)
                found = None if vocabulary is None else _token_range(data, start // TOKEN.itemsize, vocabulary)
                return _Piece(len(data), data if digests else None, found)

            # Closed here, not whenever: the threads must have left the file before it is closed.
            with closing(self._in_order(piece, range(0, size, PIECE))) as parts:
                for part in parts:
                    for digest in digests.values():
                        digest.update(part.data or b"")
                    if tokens is not None and part.tokens is not None:
                        tokens.add(part.tokens)
                    self._advance(part.size)
                    # Freed before the next one is begun.
                    del part
        return Contents({name: digest.hexdigest() for name, digest in digests.items()}, tokens)

    def _in_order(self, work: Callable[[int], _Piece], starts: Sequence[int]) -> Generator[_Piece]:
        """Results in order; a next piece is begun only when an earlier one is no longer needed."""
        coming = iter(starts)
        begun: deque[Future[_Piece]] = deque(self._pool.submit(work, start) for start in islice(coming, self._threads))
        try:
            while begun:
                yield begun.popleft().result()
                begun.extend(self._pool.submit(work, start) for start in islice(coming, 1))
        finally:
            # An error or an interrupt: what has not started never will, what has must not outlive the open file.
            for future in begun:
                future.cancel()
            for future in begun:
                if not future.cancelled():
                    future.exception()


def _token_range(data: bytes, first: int, vocabulary: int) -> TokenRange:
    ids = np.frombuffer(data, TOKEN, len(data) // TOKEN.itemsize)
    if not ids.size:
        return TokenRange()
    low, high = int(ids.min()), int(ids.max())
    if low >= 0 and high < vocabulary:
        return TokenRange(low, high)
    wrong = (ids < 0) | (ids >= vocabulary)
    places = np.flatnonzero(wrong)[:SHOWN]
    return TokenRange(low, high, int(np.count_nonzero(wrong)), [(first + int(at), int(ids[at])) for at in places])
