"""Keeps a log from choosing the code that judges it.

The official compliance checker executes the code in the rule file that the log's `submission_division` and
`submission_benchmark` name, even `../../evil`. The guard checks both names in the records that the official parser
returns. No spelling of a record can therefore differ between the guard and the checker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_DIVISION, _BENCHMARK = "submission_division", "submission_benchmark"
_EXPECTED = {_DIVISION: "closed or open", _BENCHMARK: "gpt_oss_20b"}
# A name of these characters stays in the folder of rule files, which holds files of the package only.
_HARMLESS = re.compile(r"[A-Za-z0-9_ -]*")
_TOKEN = ":::MLLOG "


class RefusedError(Exception):
    """Input on which an official tool would be unsafe to run. The message states the reason."""


def unsafe_reason(key: str, value: object) -> str | None:
    """Return the reason why the official tools must not read this value, None if they may.

    A wrong but harmless name is left to the official tools.

    >>> unsafe_reason("submission_benchmark", "gpt-oss-20b") is None
    True
    >>> unsafe_reason("submission_division", "../../evil")[:37]
    "submission_division is '../../evil', "
    """
    if key not in _EXPECTED:
        return None
    if not isinstance(value, str) or not _HARMLESS.fullmatch(value):
        danger = "and the official checker would execute the rule file of that name"
    elif key == _BENCHMARK and value == "common":
        # {division}_common.yaml enqueues {division}_{benchmark}.yaml, which would be itself.
        danger = "whose rule file makes the official checker load it forever"
    else:
        return None
    return f"{key} is {value!r:.100}, {danger}; expected {_EXPECTED[key]}"


def refuse_unsafe(records: Iterable[Any]) -> None:
    """Check a log for the official compliance checker, in the records of mlperf-logging's parser.

    Raises:
        RefusedError: a record names a rule file that may not be the package's own.
    """
    for record in records:
        # mlperf-logging keeps value and metadata in one dict, and counts lines from 0.
        if reason := unsafe_reason(record.key, record.value["value"]):
            raise RefusedError(f"record {record.lineno + 1}: {reason}")


def refuse_unsafe_benchmark(path: Path) -> None:
    """Check a log for the official RCP checker.

    That checker takes the benchmark from any record that contains the word, and uses the name as part of a path to a
    data file. This function reads the log in the same way.

    Raises:
        RefusedError: a record's benchmark would be a path.
        ValueError, KeyError, TypeError: a record cannot be decoded, which would crash the RCP checker, too.
    """
    with path.open(encoding="latin-1") as file:
        for line in file:
            if _BENCHMARK not in line or _TOKEN not in line:
                continue
            record = json.loads(line[line.rindex(_TOKEN) + len(_TOKEN) :].strip())
            if reason := unsafe_reason(_BENCHMARK, record["value"]):
                raise RefusedError(reason)
