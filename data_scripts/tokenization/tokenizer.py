"""Load a tokenizer from a local file; nothing is ever downloaded.

There are three kinds: Llama 3's `tokenizer.model` (through tiktoken), a `tokenizer.json` (through Hugging Face's
tokenizers), and the name `bytes` for the UTF-8 bytes of the sample data.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gptoss20b.data.files import DataError, open_binary

BYTES = Path("bytes")
_BYTE_VALUES = 256
# Source of the numbers, the pattern and the two names: Llama 3's published tokenizer in llama-models.
_RANKS, _SPECIAL_TOKENS = 128_000, 256
_BEGIN, _END = "<|begin_of_text|>", "<|end_of_text|>"
_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_FIX = "give Llama 3's tokenizer.model or tokenizer.json, or the name bytes"


class Tokenizer(Protocol):
    """Converts text to token ids and back.

    Text that spells a special token is encoded as plain text. No token is added before or after it.

    Attributes:
        vocab_size: ids are 0 to vocab_size - 1.
        eod_token: the id that may end a document (Llama 3's `<|end_of_text|>`); None if there is none.
    """

    vocab_size: int
    eod_token: int | None

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of a text, int32, shape [tokens].

        Raises:
            ValueError: the tokenizer fails on the text, as tiktoken does on millions of spaces in a row.
        """

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Return the text of some ids. Bytes that are not UTF-8, as of a character cut in two, become U+FFFD.

        Raises:
            ValueError: an id outside the vocabulary.
        """


def load_tokenizer(path: Path) -> Tokenizer:
    """Load `tokenizer.model`, `tokenizer.json`, or the UTF-8 bytes for the name `bytes`.

    Raises:
        DataError: the file is missing, unreadable or no tokenizer.
    """
    if path == BYTES:
        return _ByteTokenizer()
    content = _read_tokenizer_file(path)
    return _HuggingFaceTokenizer(path, content) if path.suffix == ".json" else _Llama3Tokenizer(path, content)


def tokenizer_id(path: Path) -> str:
    """Return what identifies a tokenizer: the SHA-256 (hex) of its file, or the name `bytes`.

    Raises:
        DataError: the file is missing or unreadable.
    """
    return str(path) if path == BYTES else hashlib.sha256(_read_tokenizer_file(path)).hexdigest()


class _ByteTokenizer:
    vocab_size = _BYTE_VALUES
    eod_token: int | None = None

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        return bytes(_check_ids(ids, self.vocab_size)).decode(errors="replace")


class _Llama3Tokenizer:
    vocab_size = _RANKS + _SPECIAL_TOKENS
    eod_token: int | None = _RANKS + 1

    def __init__(self, path: Path, content: bytes) -> None:
        import tiktoken

        special = {f"<|special_token_{number}|>": _RANKS + number for number in range(2, _SPECIAL_TOKENS)}
        special |= {_BEGIN: _RANKS, _END: _RANKS + 1}
        self._encoding = tiktoken.Encoding(
            path.name, pat_str=_PATTERN, mergeable_ranks=_parse_ranks(path, content), special_tokens=special
        )

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        # Special tokens are neither allowed nor searched for, as in encode_ordinary, which builds a Python list of ids.
        return self._encoding.encode_to_numpy(text, disallowed_special=()).view(np.int32)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        return self._encoding.decode(_check_ids(ids, self.vocab_size), errors="replace")


class _HuggingFaceTokenizer:
    def __init__(self, path: Path, content: bytes) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        # tokenizers raises the class Exception itself for any file that it cannot parse.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise DataError.about(path, reason, "a tokenizer.json of Hugging Face's tokenizers", _FIX) from None
        # A file may enable truncation, padding, and special tokens inside texts.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if self.vocab_size == 0:
            raise DataError.about(path, "no tokens", "a vocabulary", _FIX)
        self.eod_token: int | None = self._tokenizer.token_to_id(_END)

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        # Only the batch call skips each token's offsets in the text, which take a fifth of the time.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, np.int32)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        return self._tokenizer.decode(_check_ids(ids, self.vocab_size), skip_special_tokens=False)


def _read_tokenizer_file(path: Path) -> bytes:
    if not path.is_file():
        raise DataError.about(path, "a folder" if path.is_dir() else "no such file", "a tokenizer file", _FIX)
    with open_binary(path) as stream:
        return stream.read()


def _parse_ranks(path: Path, content: bytes) -> dict[bytes, int]:
    """Parse tiktoken's format, a token per line: its bytes in base64, a space, its rank, which is its id."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            expected = f"a token in base64 and its rank, as in Llama 3's tokenizer.model, in line {number}"
            raise DataError.about(path, f"{line[:40]!r}", expected, _FIX) from None
    if len(ranks) != _RANKS:
        raise DataError.about(path, f"{len(ranks)} tokens", f"{_RANKS}, the ranks of Llama 3", _FIX)
    if set(ranks.values()) != set(range(_RANKS)):
        raise DataError.about(path, "ranks with gaps", f"every rank from 0 to {_RANKS - 1}", _FIX)
    if not ranks.keys() >= {bytes([value]) for value in range(_BYTE_VALUES)}:
        raise DataError.about(path, "a byte without a token", f"all {_BYTE_VALUES} single bytes", _FIX)
    return ranks


def _check_ids(ids: Sequence[int] | npt.NDArray[np.integer], vocab_size: int) -> list[int]:
    tokens = [int(token) for token in ids]
    for position, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            raise ValueError(f"ids: got {token} at {position}; expected 0 to {vocab_size - 1}.")
    return tokens
