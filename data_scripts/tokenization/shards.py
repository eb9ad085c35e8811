"""Read shards of JSON lines (`.json.gz`, or plain) as blocks of whole lines, and detect damaged shards.

Blocks are cut without parsing the lines, so that one thread can feed many processes. It decompresses about 350 MB of
text per second, the work of about 13 processes with Llama 3's tokenizer.model.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from gptoss20b.data.files import DataError, open_binary

BLOCK_BYTES = 1 << 20
# C4's longest documents are under 1 MB. A line is held in memory as a whole, several at a time.
MAX_LINE_BYTES = 64 << 20
# zlib's wbits for a gzip header and the largest window
_GZIP_WBITS = 31


class BadLineKind(Enum):
    """Kinds of bad lines: label in the counts, what was expected instead, and a fix."""

    NOT_UTF8 = ("not UTF-8", "UTF-8", "correct or remove the line")
    NOT_JSON = ("not JSON", "one JSON object a line", "correct or remove the line")
    NO_TEXT = ("no text", "an object with its text as a string", "correct or remove the line, or name it with --key")
    SURROGATE = ("lone surrogate", "text that Unicode allows", "correct or remove the line")
    EMPTY = ("empty text", "text", "remove the line")
    NOT_TOKENIZED = ("not tokenized", "text that the tokenizer accepts", "remove the line")
    TOO_LONG = ("line too long", f"at most {MAX_LINE_BYTES} bytes a line", "split or remove the line")
    DAMAGED = ("damaged shard", "a whole gzip file", "fetch the shard again")
    NO_LINES = ("empty shard", "at least one line", "fetch the shard again, or leave it out")

    def __init__(self, label: str, expected: str, fix: str) -> None:
        self.label, self.expected, self.fix = label, expected, fix


class BadLine(NamedTuple):
    """A line without a document: its number in the block, from 0, its kind, and what was found."""

    line: int
    kind: BadLineKind
    got: str


class Block(NamedTuple):
    """The next part of the shards: whole lines, or a bad line in place of a line, or the end of a shard.

    Attributes:
        shard: number of the shard, from 0.
        position: bytes of the shard's file read so far.
        lines: whole lines, each ended by a newline except the last of a shard; empty for a bad line and at an end.
        bad_lines: the bad line, if any.
        ends: the shard is complete.
    """

    shard: int
    position: int
    lines: bytes = b""
    bad_lines: tuple[BadLine, ...] = ()
    ends: bool = False


def find_shards(arguments: Sequence[Path]) -> list[Path]:
    """Return the shards in the order given; a folder stands for its `*.json.gz`, sorted by name.

    Raises:
        DataError: no such file, a folder without shards, or a shard that is named twice.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        shards = [argument]
        if argument.is_dir():
            # Hidden files are leftovers of other tools.
            shards = sorted(path for path in argument.glob("*.json.gz") if not path.name.startswith("."))
        if not shards:
            raise DataError.about(argument, "no *.json.gz in the folder", "shards", "name the shards")
        for shard in shards:
            if not shard.is_file():
                raise DataError.about(shard, "no such file", "a shard", "check the name")
            if shard.resolve() in found:
                raise DataError.about(shard, "a shard named twice", "each shard once", "name it once")
            found[shard.resolve()] = shard
    return list(found.values())


def read_shards(shards: Sequence[Path], first: int, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield everything in `shards[first:]`, in order, in blocks of about `block_bytes`, or one longer line.

    Raises:
        DataError: a shard cannot be read.
    """
    for number in range(first, len(shards)):
        yield from _read_shard(shards[number], number, block_bytes)


def _read_shard(path: Path, number: int, block_bytes: int) -> Iterator[Block]:
    splitter = _LineSplitter()
    position, empty = 0, True
    try:
        stored = _read_file(path, block_bytes)
        for data, position in _gunzip(stored, block_bytes) if path.suffix == ".gz" else stored:
            empty = False
            for part in splitter.feed(data):
                yield _block(number, position, part)
        for part in splitter.last_line():
            yield _block(number, position, part)
        if empty:
            yield _block(number, position, BadLine(0, BadLineKind.NO_LINES, "no lines"))
    except _DamagedError as error:
        # The incomplete line is lost; the lines before it were yielded already.
        yield _block(number, position, BadLine(0, BadLineKind.DAMAGED, str(error)))
    yield Block(number, position, ends=True)


def _block(number: int, position: int, part: bytes | BadLine) -> Block:
    if isinstance(part, BadLine):
        return Block(number, position, bad_lines=(part,))
    return Block(number, position, part)


class _DamagedError(Exception):
    """A gzip file is truncated or contradicts its checksum."""


def _read_file(path: Path, block_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield the file in pieces of at most `block_bytes`, each with the bytes of the file read so far."""
    position = 0
    try:
        with open_binary(path) as stream:
            while data := stream.read(block_bytes):
                position += len(data)
                yield data, position
    except OSError as error:
        raise DataError.about(path, str(error), "a readable file", "check the file system") from error


def _gunzip(packed: Iterator[tuple[bytes, int]], block_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Decompress, again in pieces of at most `block_bytes`. The piece with the damage is lost."""
    position = 0
    inflater = zlib.decompressobj(_GZIP_WBITS)
    try:
        for content, position in packed:
            data = content
            # A gzip file may hold several streams one after the other, and zeros after the last.
            while data := data.lstrip(b"\0") if inflater.eof else data:
                inflater = zlib.decompressobj(_GZIP_WBITS) if inflater.eof else inflater
                while not inflater.eof and (part := inflater.decompress(data, block_bytes)):
                    yield part, position
                    data = inflater.unconsumed_tail
                data = inflater.unused_data
    except zlib.error as error:
        raise _DamagedError(f"a damaged gzip stream ({error})") from None
    if not inflater.eof:
        raise _DamagedError(f"a gzip stream that breaks off at byte {position}")


class _LineSplitter:
    """Splits the pieces of a shard at the last newline in each."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._dropping = False

    def feed(self, data: bytes) -> Iterator[bytes | BadLine]:
        """Yield whole lines as soon as there are any, and a bad line in place of one that is too long."""
        first_newline = data.find(b"\n")
        yield from self._extend_line(len(data) if first_newline < 0 else first_newline)
        if first_newline < 0:
            self._parts.append(data)
            return
        if self._dropping:
            data, self._parts, self._dropping = data[first_newline + 1 :], [], False
        end = data.rfind(b"\n") + 1
        if whole := b"".join((*self._parts, data[:end])):
            yield whole
        self._parts, self._held_bytes = [data[end:]], len(data) - end

    def last_line(self) -> Iterator[bytes | BadLine]:
        """Yield the last line, if no newline ends it."""
        last = b"".join(self._parts)
        if last and not self._dropping:
            yield last

    def _extend_line(self, more: int) -> Iterator[BadLine]:
        self._held_bytes += more
        if self._held_bytes > MAX_LINE_BYTES and not self._dropping:
            self._dropping = True
            yield BadLine(0, BadLineKind.TOO_LONG, f"a line of more than {MAX_LINE_BYTES} bytes")
        if self._dropping:
            self._parts.clear()
