"""What a worker does with a block of a shard: take the lines apart, check them, and tokenize their texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_scripts.tokenization.shards import Flaw, Kind
from data_scripts.tokenization.tokenizer import Tokenizer, load_tokenizer


class Tokenized(NamedTuple):
    """The documents of a block.

    Attributes:
        tokens: all of them one after the other, int32, shape [sum of lengths].
        lengths: tokens of each document, int32, shape [documents].
        lines: lines in the block, with and without a document.
        flaws: one for each line without a document.
    """

    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    lines: int
    flaws: tuple[Flaw, ...]


NO_DOCUMENTS: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] = (np.empty(0, np.int32), np.empty(0, np.int32))


def block_tokenizer(tokenizer: Path, key: str, append_eod: bool) -> Callable[[bytes], Tokenized]:
    """Load the tokenizer, and give the function that tokenizes blocks with it.

    Args:
        tokenizer: as for `load_tokenizer`.
        key: where in a line's object its text is.
        append_eod: end each document with the tokenizer's end-of-document token, which it must have.

    Raises:
        DataError: the tokenizer cannot be loaded.
    """
    loaded = load_tokenizer(tokenizer)
    ending = np.array([loaded.end_of_document] if append_eod else [], np.int32)
    return lambda block: _tokenize(block, loaded, key, ending)


class _FlawError(Exception):
    """A line has no document; the arguments are the kind and what was there."""

    def __init__(self, kind: Kind, got: str) -> None:
        super().__init__(kind, got)
        self.kind, self.got = kind, got


def _tokenize(block: bytes, tokenizer: Tokenizer, key: str, ending: npt.NDArray[np.int32]) -> Tokenized:
    documents: list[npt.NDArray[np.int32]] = [NO_DOCUMENTS[0]]
    lengths: list[int] = []
    flaws: list[Flaw] = []
    lines = block.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines):
        try:
            ids = _encode(tokenizer, _text(line, key))
        except _FlawError as error:
            flaws.append(Flaw(number, error.kind, error.got))
        else:
            documents += (ids, ending)
            lengths.append(ids.size + ending.size)
    return Tokenized(np.concatenate(documents), np.array(lengths, np.int32), len(lines), tuple(flaws))


def _text(line: bytes, key: str) -> str:
    try:
        # json.loads takes bytes too, but lets surrogates pass and guesses at other encodings.
        found = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _FlawError(Kind.NOT_UTF8, f"byte 0x{line[error.start]:02x} in column {error.start + 1}") from None
    except json.JSONDecodeError as error:
        got = f"{error.msg[0].lower()}{error.msg[1:]} in column {error.colno}" if line.strip() else "a blank line"
        raise _FlawError(Kind.NOT_JSON, got) from None
    except (ValueError, RecursionError) as error:
        # numbers of thousands of digits, objects nested a thousand deep
        raise _FlawError(Kind.NOT_JSON, str(error)) from None
    if not isinstance(found, dict):
        raise _FlawError(Kind.NO_TEXT, f"a JSON {_name(found)}")
    if key not in found:
        raise _FlawError(Kind.NO_TEXT, f"no {key!r}")
    text = found[key]
    if not isinstance(text, str):
        raise _FlawError(Kind.NO_TEXT, f"{key!r} with a JSON {_name(text)}")
    if not text:
        raise _FlawError(Kind.EMPTY, f"an empty {key!r}")
    return text


def _encode(tokenizer: Tokenizer, text: str) -> npt.NDArray[np.int32]:
    try:
        # JSON's escapes can spell half of a pair, which no tokenizer takes.
        text.encode()
        ids = tokenizer.encode(text)
    except UnicodeEncodeError as error:
        got = f"U+{ord(text[error.start]):04X} as character {error.start + 1} of the text"
        raise _FlawError(Kind.SURROGATE, got) from None
    except ValueError as error:
        raise _FlawError(Kind.NOT_TOKENIZED, " ".join(str(error).split())) from None
    if not ids.size:
        raise _FlawError(Kind.EMPTY, f"{len(text)} characters without a token")
    return ids


def _name(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
