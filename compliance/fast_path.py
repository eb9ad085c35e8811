"""Fast path: build a regex from the first train_loss line and match the others without json.loads.

Almost all lines of a log are `train_loss` records that differ only in their numbers. A template matches only lines
from which a JSON decoder reads the same fields: names are literal and unique, numbers follow the JSON grammar, and
strings hold no escapes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import product
from typing import Any

_STRING = rb'"[^"\\\x00-\x1f]*"'
_NUMBER = rb"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?"
# A launcher may put its rank before the record. Only a line end may follow it.
_BEFORE, _AFTER = rb"(?:\d{1,6}: ?)?:::MLLOG", rb"\r?"
# In the order of the columns. `parse` requires a time above 0 and below 10^13.
_FIELDS: dict[tuple[str, ...], bytes] = {
    ("time_ms",): rb"([1-9]\d{0,12})",
    ("value",): rb"(" + _NUMBER + rb")",
    ("metadata", "samples_count"): rb"(" + _NUMBER + rb")",
    ("metadata", "lr"): rb"(" + _NUMBER + rb")",
}


@dataclass(frozen=True, slots=True)
class LineTemplate:
    """Form of the `train_loss` lines of one log.

    Attributes:
        pattern: matches a whole line, with one group per field.
        groups: index of the group of time, loss, samples and learning rate; None if the line lacks the last two.
    """

    pattern: re.Pattern[bytes]
    groups: tuple[int | None, ...]


def infer(record: bytes) -> LineTemplate | None:
    """Return the template of a line from the text after its `:::MLLOG`; None if only a JSON decoder can read it.

    >>> line = b' {"key": "train_loss", "value": 3.5, "time_ms": 7, "metadata": {"lr": 0.1}}'
    >>> template = infer(line)
    >>> template.pattern.fullmatch(b":::MLLOG" + line.replace(b"3.5", b"4")).groups()
    (b'4', b'7', b'0.1')
    >>> template.groups
    (1, 0, None, 2)
    """
    text = record.lstrip(b" \t").rstrip(b"\r")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("key") != "train_loss":
        return None
    for separators, ensure_ascii in product(((", ", ": "), (",", ":")), (True, False)):
        encoder = json.JSONEncoder(separators=separators, ensure_ascii=ensure_ascii)
        # False for repeated names, too: json.loads keeps the last of them.
        if _encode(encoder, content) == text:
            fields: list[tuple[str, ...]] = []
            indent = record[: len(record) - len(record.lstrip(b" \t"))]
            pattern = re.compile(_BEFORE + re.escape(indent) + _object_pattern(encoder, content, fields) + _AFTER)
            groups = tuple(fields.index(path) if path in fields else None for path in _FIELDS)
            # The line itself does not match if a field is no number or a string has escapes.
            is_usable = None not in groups[:2] and isinstance(content.get("metadata"), dict)
            return LineTemplate(pattern, groups) if is_usable and pattern.fullmatch(b":::MLLOG" + record) else None
    return None


def _object_pattern(
    encoder: json.JSONEncoder, members: dict[str, Any], fields: list[tuple[str, ...]], parent: tuple[str, ...] = ()
) -> bytes:
    """Return the pattern of a JSON object. Append the paths of its `_FIELDS` to ``fields`` in order."""
    patterns = []
    for name, value in members.items():
        path = (*parent, name)
        if path in _FIELDS:
            fields.append(path)
            pattern = _FIELDS[path]
        elif path == ("metadata",) and isinstance(value, dict):
            pattern = _object_pattern(encoder, value, fields, path)
        elif isinstance(value, str) and path != ("key",):
            pattern = _STRING
        elif isinstance(value, int | float) and not isinstance(value, bool):
            pattern = _NUMBER
        else:
            pattern = re.escape(_encode(encoder, value))
        patterns.append(re.escape(_encode(encoder, name) + encoder.key_separator.encode()) + pattern)
    return rb"\{" + re.escape(encoder.item_separator.encode()).join(patterns) + rb"\}"


def _encode(encoder: json.JSONEncoder, value: object) -> bytes:
    return encoder.encode(value).encode("utf-8", "surrogatepass")
