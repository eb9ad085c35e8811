"""The report as JSON, shaped by `compliance/report.schema.json`.

Standard library only: every check pays for this module's imports.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

from ..findings import Report, RunSummary, SetResult

SCHEMA_VERSION = 1

# Curves and phases are for the HTML report; in JSON they would bury the rest.
_RUN_KEYS = (
    "file",
    "status",
    "seed",
    "global_batch_size",
    "learning_rate",
    "warmup_steps",
    "samples_to_target",
    "minutes",
    "minutes_to_target",
    "first_eval_loss",
    "final_eval_loss",
    "target",
    "start_ms",
    "division",
    "organisation",
    "platform",
    "system",
    "evaluations",
)


def json_report(report: Report) -> str:
    """The report as one JSON object in plain ASCII, keys in a fixed order, ending in a newline.

    `score`, `variance` and `rcp` at the top are those of the only set, null if there are none or several; `sets` has
    each. A number that JSON or a double cannot hold (NaN, infinity, 10**400) is null.
    """
    only = report.sets[0] if len(report.sets) == 1 else None
    document = {
        "schema_version": SCHEMA_VERSION,
        "command": report.command,
        "verdict": report.verdict,
        "ruleset": report.ruleset,
        "tool": report.tool,
        "options": report.options,
        "findings": report.findings,
        "runs": [_run(run) for result in report.sets for run in result.runs],
        "score": only and only.score,
        "variance": only and only.variance,
        "rcp": only and only.rcp,
        "sets": [_set(result) for result in report.sets],
        "official": report.official
        and {
            "version": report.official.version,
            "verdict": report.official.verdict,
            "results": report.official.results,
            "divergences": report.official.divergences,
        },
    }
    return dumps(document)


def dumps(document: object) -> str:
    """JSON text of dataclasses, mappings, sequences and scalars, whatever strings and numbers a log put into them.

    What is none of these (a path in the options, say) is written as its string.
    """
    return json.dumps(_plain(document), indent=2, allow_nan=False) + "\n"


def _run(run: RunSummary) -> dict[str, object]:
    return {key: getattr(run, key) for key in _RUN_KEYS}


def _set(result: SetResult) -> dict[str, object]:
    return {
        "name": result.name,
        "files": [run.file for run in result.runs],
        "score": result.score,
        "variance": result.variance,
        "rcp": result.rcp,
    }


def _plain(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, (int, float)):
        return value if _fits_a_double(value) else None
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {_text(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _text(str(value))


def _fits_a_double(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _text(text: str) -> str:
    # A name that is not UTF-8 holds lone surrogates, which JSON can spell but strict readers refuse.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
