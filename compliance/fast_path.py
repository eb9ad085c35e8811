"""The form in which a log writes its losses, learnt from one line, so that the others need no JSON decoder.

Nearly all of a log are `train_loss` records that differ in numbers only. A line that a shape matches means to a JSON
decoder what the shape takes from it: names are literal and unique, numbers are JSON's, and strings have no escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_STRING = rb'"[^"\\\x00-\x1f]*"'
_NUMBER = rb"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?"
_TOKEN = re.compile(rb"[ \t]+|[{}:,]|" + _STRING + rb"|" + _NUMBER + rb"|true|false|null")
# A launcher's rank before the record; nothing but a line end may follow it.
_BEFORE, _AFTER = rb"(?:\d{1,6}: ?)?:::MLLOG", rb"\r?"
# In the order of the columns. A time is a whole number below 10^13 and above 0, as `parse` wants it.
_FIELDS: dict[tuple[bytes, ...], bytes] = {
    (b"time_ms",): rb"([1-9]\d{0,12})",
    (b"value",): rb"(" + _NUMBER + rb")",
    (b"metadata", b"samples_count"): rb"(" + _NUMBER + rb")",
    (b"metadata", b"lr"): rb"(" + _NUMBER + rb")",
}


@dataclass(frozen=True, slots=True)
class LineTemplate:
    """How one log writes a `train_loss`.

    Attributes:
        pattern: matches a whole line; one group for each field that is there.
        places: index of the group of time, loss, samples and rate; None for samples or a rate that it has not.
    """

    pattern: re.Pattern[bytes]
    places: tuple[int | None, ...]


def infer(record: bytes) -> LineTemplate | None:
    """The shape of a line, from the text after its `:::MLLOG`; None for what only a JSON decoder can read.

    >>> line = b' {"key": "train_loss", "value": 3.5, "time_ms": 7, "metadata": {"lr": 0.1}}'
    >>> shape = infer(line)
    >>> shape.pattern.fullmatch(b":::MLLOG" + line.replace(b"3.5", b"4")).groups()
    (b'4', b'7', b'0.1')
    >>> shape.places
    (1, 0, None, 2)
    """
    pattern, found, names = [_BEFORE], [], set()
    for path, token in _tokens(record.rstrip(b"\r")):
        if path is None:
            pattern.append(re.escape(token))
            continue
        if path in names or len(path) > 2:
            return None
        names.add(path)
        if path == (b"key",):
            if token != b'"train_loss"':
                return None
            pattern.append(re.escape(token))
        elif path in _FIELDS:
            pattern.append(_FIELDS[path])
            found.append(path)
        elif token == b"{" and path == (b"metadata",):
            pattern.append(rb"\{")
        elif token.startswith(b'"'):
            pattern.append(_STRING)
        else:
            pattern.append(_NUMBER if re.fullmatch(_NUMBER, token) else re.escape(token))
    if not {(b"key",), (b"time_ms",), (b"value",), (b"metadata",)} <= names:
        return None
    shape = re.compile(b"".join([*pattern, _AFTER]))
    # What is no number in this line, or does not end it, is not the shape's.
    whole = shape.fullmatch(b":::MLLOG" + record)
    places = tuple(found.index(path) if path in found else None for path in _FIELDS)
    return LineTemplate(shape, places) if whole else None


def _tokens(record: bytes) -> Iterator[tuple[tuple[bytes, ...] | None, bytes]]:
    """Tokens, values with the names that lead to them and everything else with None. Stops at what is no token."""
    path: list[bytes] = []
    name: bytes | None = None
    place, after_colon = 0, False
    while (match := _TOKEN.match(record, place)) is not None:
        token, place = match[0], match.end()
        if token[:1] in b" \t":
            yield None, token
        elif after_colon:
            after_colon = False
            yield (*path, name or b""), token
            if token == b"{":
                path.append(name or b"")
        elif token == b":":
            after_colon = True
            yield None, token
        else:
            if token == b"}" and path:
                path.pop()
            name = token[1:-1]
            yield None, token
