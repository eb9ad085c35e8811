"""Tokenize one block of a shard in a worker process: parse its lines, check them, and encode their texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .shards import BadLine, BadLineKind
from .tokenizer import Tokenizer, load_tokenizer

Tokens = npt.NDArray[np.int32]
NO_TOKENS: Tokens = np.empty(0, np.int32)


class TokenizedBlock(NamedTuple):
    """The documents of a block.

    Attributes:
        tokens: all documents concatenated, int32, shape [sum of lengths].
        lengths: tokens of each document, int32, shape [documents].
        lines: number of lines in the block, bad ones included.
        bad_lines: the lines without a document.
    """

    tokens: Tokens
    lengths: Tokens
    lines: int
    bad_lines: tuple[BadLine, ...]


def block_tokenizer(tokenizer: Path, key: str, append_eod: bool) -> Callable[[bytes], TokenizedBlock]:
    """Load the tokenizer and return the function that tokenizes blocks with it.

    Args:
        tokenizer: as for `load_tokenizer`.
        key: key of the text in a line's object.
        append_eod: append the tokenizer's end-of-document token, which must exist, to each document.

    Raises:
        DataError: the tokenizer cannot be loaded.
    """
    loaded = load_tokenizer(tokenizer)
    ending = np.array([loaded.eod_token] if append_eod else [], np.int32)
    return lambda block: _tokenize(block, loaded, key, ending)


class _BadLineError(Exception):
    """A line has no document. The arguments are a `BadLineKind` and what was found."""


def _tokenize(block: bytes, tokenizer: Tokenizer, key: str, ending: Tokens) -> TokenizedBlock:
    documents: list[Tokens] = [NO_TOKENS]
    lengths: list[int] = []
    bad_lines: list[BadLine] = []
    lines = block.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines):
        try:
            ids = _encode(tokenizer, _parse_text(line, key))
        except _BadLineError as error:
            bad_lines.append(BadLine(number, *error.args))
        else:
            documents += (ids, ending)
            lengths.append(ids.size + ending.size)
    return TokenizedBlock(np.concatenate(documents), np.array(lengths, np.int32), len(lines), tuple(bad_lines))


def _parse_text(line: bytes, key: str) -> str:
    try:
        # json.loads takes bytes too, but lets surrogates pass and guesses other encodings.
        parsed = json.loads(line.decode())
    except UnicodeDecodeError as error:
        got = f"byte 0x{line[error.start]:02x} in column {error.start + 1}"
        raise _BadLineError(BadLineKind.NOT_UTF8, got) from None
    except json.JSONDecodeError as error:
        got = f"{error.msg[0].lower()}{error.msg[1:]} in column {error.colno}" if line.strip() else "a blank line"
        raise _BadLineError(BadLineKind.NOT_JSON, got) from None
    except (ValueError, RecursionError) as error:
        # numbers of thousands of digits, objects nested a thousand deep
        raise _BadLineError(BadLineKind.NOT_JSON, str(error)) from None
    if not isinstance(parsed, dict):
        raise _BadLineError(BadLineKind.NO_TEXT, f"a JSON {_json_type(parsed)}")
    if key not in parsed:
        raise _BadLineError(BadLineKind.NO_TEXT, f"no {key!r}")
    text = parsed[key]
    if not isinstance(text, str):
        raise _BadLineError(BadLineKind.NO_TEXT, f"{key!r} with a JSON {_json_type(text)}")
    if not text:
        raise _BadLineError(BadLineKind.EMPTY, f"an empty {key!r}")
    return text


def _encode(tokenizer: Tokenizer, text: str) -> Tokens:
    try:
        # A JSON escape can spell half of a surrogate pair, which no tokenizer accepts.
        text.encode()
        ids = tokenizer.encode(text)
    except UnicodeEncodeError as error:
        got = f"U+{ord(text[error.start]):04X} as character {error.start + 1} of the text"
        raise _BadLineError(BadLineKind.SURROGATE, got) from None
    except ValueError as error:
        raise _BadLineError(BadLineKind.NOT_TOKENIZED, " ".join(str(error).split())) from None
    if not ids.size:
        raise _BadLineError(BadLineKind.EMPTY, f"{len(text)} characters without a token")
    return ids


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
