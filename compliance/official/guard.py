"""What keeps a log from choosing the code that judges it.

The official compliance checker executes the code in whatever rule file the log's `submission_division` and
`submission_benchmark` name, `../../evil` included. Both are judged first, on the records as the official parser itself
returns them, so that no spelling of a record can look different to the guard and to the checker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

_DIVISION, _BENCHMARK = "submission_division", "submission_benchmark"
_EXPECTED = {_DIVISION: "closed or open", _BENCHMARK: "gpt_oss_20b"}
# With these characters a name stays in the folder of rule files, where every file is the package's own.
_HARMLESS = re.compile(r"[A-Za-z0-9_ -]*")
_TOKEN = ":::MLLOG "


class RefusedError(Exception):
    """Running the official tool on this would be unsafe; the text says why."""


class OfficialRecord(Protocol):
    """A record as mlperf-logging's parser returns it: `value` holds the record's value and metadata."""

    key: str
    value: dict[str, object]
    lineno: int


def unsafe_name(key: str, value: object) -> str | None:
    """Why the official tools must not see this value under this key; None if they may.

    A name that is wrong but harmless is for the official tools to complain about.

    >>> unsafe_name("submission_benchmark", "gpt-oss-20b") is None
    True
    >>> unsafe_name("submission_division", "../../evil")[:37]
    "submission_division is '../../evil', "
    """
    if key not in _EXPECTED:
        return None
    if not isinstance(value, str) or not _HARMLESS.fullmatch(value):
        danger = "and the official checker would execute whatever rule file that names"
    elif key == _BENCHMARK and value == "common":
        # {division}_common.yaml is the very file that sends the checker on to {division}_{benchmark}.yaml.
        danger = "whose rule file sends the official checker back to itself for ever"
    else:
        return None
    return f"{key} is {value!r:.100}, {danger}; expected {_EXPECTED[key]}"


def refuse_unsafe(records: Iterable[OfficialRecord]) -> None:
    """Passes the records of a log that the official compliance checker may judge.

    Raises:
        RefusedError: a record names a rule file that may not be the package's own.
    """
    for record in records:
        if reason := unsafe_name(record.key, record.value["value"]):
            raise RefusedError(f"record {record.lineno + 1}: {reason}")


def refuse_unsafe_benchmark(path: Path) -> None:
    """Passes a log that the official RCP checker may judge.

    That one takes the benchmark from any record in which the word occurs and, after finding it in a table of its own,
    makes the name of a data file of it. The log is read as it does that.

    Raises:
        RefusedError: a record's benchmark would be a path.
        ValueError, KeyError, TypeError: a record cannot be decoded, which would end the RCP checker too.
    """
    with path.open(encoding="latin-1") as file:
        for line in file:
            if _BENCHMARK not in line or _TOKEN not in line:
                continue
            record = json.loads(line[line.rindex(_TOKEN) + len(_TOKEN) :].strip())
            if reason := unsafe_name(_BENCHMARK, record["value"]):
                raise RefusedError(reason)
