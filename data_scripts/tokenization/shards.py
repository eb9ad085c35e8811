"""Reading shards of JSON lines (`.json.gz`, or plain): blocks of whole lines, and what is wrong with a shard.

Blocks are cut without looking at the lines, so that one thread can feed many processes: it gunzips about 350 MB of text
a second, the work of some thirteen processes with Llama 3's tokenizer.model.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from gptoss20b.data.files import DataError, open_binary

BLOCK_BYTES = 1 << 20
# C4's longest documents are under 1 MB; a line is held in memory whole, several at a time.
LONGEST_LINE = 64 << 20
_GZIP_WINDOW = 31


class Kind(Enum):
    """What can be wrong: its name in the counts, what was expected instead, and how to fix it."""

    NOT_UTF8 = ("not UTF-8", "UTF-8", "correct or remove the line")
    NOT_JSON = ("not JSON", "one JSON object a line", "correct or remove the line")
    NO_TEXT = ("no text", "an object with its text as a string", "correct or remove the line, or name it with --key")
    SURROGATE = ("lone surrogate", "text that Unicode allows", "correct or remove the line")
    EMPTY = ("empty text", "text", "remove the line")
    NOT_TOKENIZED = ("not tokenized", "text that the tokenizer can take", "remove the line")
    TOO_LONG = ("line too long", f"at most {LONGEST_LINE} bytes a line", "split or remove the line")
    DAMAGED = ("damaged shard", "a whole gzip file", "fetch the shard again")
    NO_LINES = ("empty shard", "at least one line", "fetch the shard again, or leave it out")

    def __init__(self, label: str, expected: str, fix: str) -> None:
        self.label, self.expected, self.fix = label, expected, fix


class Flaw(NamedTuple):
    """Something wrong at a line: the line's number among those it came with, from 0, the kind, and what was there."""

    line: int
    kind: Kind
    got: str


class Piece(NamedTuple):
    """What stands next in the shards: whole lines, or a flaw in place of a line, or the end of a shard.

    Attributes:
        shard: its number, from 0.
        position: bytes of the shard's file read so far.
        lines: whole lines, each ended by a newline but the last of a shard; empty for a flaw and at an end.
        flaws: the flaw, if any.
        ends: the shard is over.
    """

    shard: int
    position: int
    lines: bytes = b""
    flaws: tuple[Flaw, ...] = ()
    ends: bool = False


def find_shards(arguments: Sequence[Path]) -> list[Path]:
    """The shards in the order given; a folder stands for its `*.json.gz`, sorted by name.

    Raises:
        DataError: no such file, a folder without shards, or a shard that is named twice.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        shards = [argument]
        if argument.is_dir():
            # hidden ones are other tools' leftovers
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


def read_shards(shards: Sequence[Path], first: int, block_bytes: int = BLOCK_BYTES) -> Iterator[Piece]:
    """Everything in `shards[first:]`, in order; blocks are about `block_bytes`, or one longer line.

    Raises:
        DataError: a shard cannot be read.
    """
    for number in range(first, len(shards)):
        yield from _read_shard(shards[number], number, block_bytes)


def _read_shard(path: Path, number: int, block_bytes: int) -> Iterator[Piece]:
    cutter = _Cutter()
    position, empty = 0, True
    try:
        stored = _content(path, block_bytes)
        for data, position in _gunzip(stored, block_bytes) if path.suffix == ".gz" else stored:
            empty = False
            for found in cutter.feed(data):
                yield _piece(number, position, found)
        for found in cutter.rest():
            yield _piece(number, position, found)
        if empty:
            yield _piece(number, position, Flaw(0, Kind.NO_LINES, "no lines"))
    except _DamagedError as error:
        # The line that was cut is lost; those before it are out already.
        yield _piece(number, position, Flaw(0, Kind.DAMAGED, str(error)))
    yield Piece(number, position, ends=True)


def _piece(number: int, position: int, found: bytes | Flaw) -> Piece:
    if isinstance(found, Flaw):
        return Piece(number, position, flaws=(found,))
    return Piece(number, position, found)


class _DamagedError(Exception):
    """A gzip file breaks off or contradicts its checksum."""


def _content(path: Path, block_bytes: int) -> Iterator[tuple[bytes, int]]:
    """The file in pieces of at most `block_bytes`, each with the bytes of the file read so far."""
    with open_binary(path) as stream:
        position = 0
        while data := _read(path, stream.fileno(), position, block_bytes):
            position += len(data)
            yield data, position


def _read(path: Path, descriptor: int, offset: int, size: int) -> bytes:
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        raise DataError.about(path, str(error), "a readable file", "check the file system") from error


def _gunzip(packed: Iterator[tuple[bytes, int]], block_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Unpack, again in pieces of at most `block_bytes`."""
    position = 0
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    for content, position in packed:
        data = content
        # A file may hold several streams one after the other, and zeros behind the last.
        while data := data.lstrip(b"\0") if inflater.eof else data:
            inflater = zlib.decompressobj(_GZIP_WINDOW) if inflater.eof else inflater
            for part in _inflate(inflater, data, block_bytes):
                yield part, position
            data = inflater.unused_data
    if not inflater.eof:
        raise _DamagedError(f"a gzip stream that breaks off at byte {position}")


def _inflate(inflater: "zlib._Decompress", data: bytes, most: int) -> Iterator[bytes]:
    """Unpack `data` to its end or the stream's; where it is damaged, all that can be read comes first."""
    while not inflater.eof:
        before = inflater.copy()
        try:
            part = inflater.decompress(data, most)
        except zlib.error as error:
            yield _salvage(before, data)
            raise _DamagedError(f"a damaged gzip stream ({error})") from None
        if not part:
            return
        yield part
        data = inflater.unconsumed_tail


def _salvage(inflater: "zlib._Decompress", data: bytes) -> bytes:
    """What can be unpacked before the damage; zlib drops it when it unpacks more than a byte at a time."""
    read = bytearray()
    try:
        for place in range(len(data)):
            step = data[place : place + 1]
            while part := inflater.decompress(step, 1):
                read += part
                step = inflater.unconsumed_tail
    except zlib.error:
        pass
    return bytes(read)


class _Cutter:
    """Cuts pieces of a shard at the last newline in each."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._dropping = False

    def feed(self, data: bytes) -> Iterator[bytes | Flaw]:
        """Whole lines, as soon as there are any, and a flaw in place of a line that is too long."""
        first = data.find(b"\n")
        yield from self._grow(len(data) if first < 0 else first)
        if first < 0:
            self._parts.append(data)
            return
        if self._dropping:
            data, self._parts, self._dropping = data[first + 1 :], [], False
        end = data.rfind(b"\n") + 1
        if whole := b"".join((*self._parts, data[:end])):
            yield whole
        self._parts, self._held = [data[end:]], len(data) - end

    def rest(self) -> Iterator[bytes | Flaw]:
        """The last line, when no newline ends it."""
        last = b"".join(self._parts)
        if last and not self._dropping:
            yield last

    def _grow(self, more: int) -> Iterator[Flaw]:
        self._held += more
        if self._held > LONGEST_LINE and not self._dropping:
            self._dropping = True
            yield Flaw(0, Kind.TOO_LONG, f"a line of more than {LONGEST_LINE} bytes")
        if self._dropping:
            self._parts.clear()
