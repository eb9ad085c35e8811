"""JSON documents of the commands (report, plan, comparison, review, diff), and their schemas.

A document is a tree of dataclasses. pydantic serializes it and derives its schema, whose descriptions are the
``Attributes:`` of each class. The committed ``compliance/*.schema.json`` are written by
``python -m compliance schema NAME``.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from .benchmark import Ruleset
from .compare import Comparison
from .diff import TreeDiff
from .findings import (
    Energy,
    Finding,
    Official,
    Rcp,
    Report,
    RunOutcome,
    Score,
    SetResult,
    Variance,
    Verdict,
)
from .plan import Plan
from .render.explanation import explain
from .review import Review


@dataclass(frozen=True, slots=True)
class SetFigures:
    """Figures of one set of runs.

    Attributes:
        name: name of the set; empty outside a submission tree.
        score: None with fewer than three runs.
        variance: None without runs.
        rcp: None in the open division, and without a batch size.
        eval_interval_samples: training samples between evaluations; None if the runs do not share one.
        energy: None without power logs, which only a submission tree has.
        system: name and accelerator of the system description; None without one.
        accelerators: accelerators of a run; without a description its ranks, as logged sizes imply; None if unknown.
    """

    name: str
    files: tuple[str, ...]
    score: Score | None
    variance: Variance | None
    rcp: Rcp | None
    eval_interval_samples: int | None
    energy: Energy | None
    system: str | None
    accelerators: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDocument:
    """Report of a check, as printed by ``--format json``.

    Attributes:
        verdict: pass, fail, or error if the input could not be judged.
        explanation: why the verdict is what it is.
        tool: versions of the packages that judged, by name.
        options: options of the command, by name.
        score, variance, rcp: figures of the only set; None if there are none or several sets.
        official: None if the official tools were not asked.
    """

    schema_version: Literal[3] = 3
    command: str
    verdict: Verdict
    explanation: str
    ruleset: Ruleset
    tool: dict[str, str]
    options: dict[str, str | int | float | bool | None]
    findings: tuple[Finding, ...]
    runs: tuple[RunOutcome, ...]
    score: Score | None
    variance: Variance | None
    rcp: Rcp | None
    sets: tuple[SetFigures, ...]
    official: Official | None


Document = ReportDocument | Plan | Comparison | Review | TreeDiff
DOCUMENTS: dict[str, type[Document]] = {
    "report": ReportDocument,
    "plan": Plan,
    "comparison": Comparison,
    "review": Review,
    "diff": TreeDiff,
}


def report_document(report: Report) -> ReportDocument:
    """Return the JSON document of a report."""
    sets = tuple(map(_set_figures, report.sets))
    only_set = sets[0] if len(sets) == 1 else SetFigures("", (), *[None] * 7)
    return ReportDocument(
        command=report.command,
        verdict=report.verdict,
        explanation=explain(report),
        ruleset=Ruleset(report.ruleset),
        tool=report.tool,
        options=report.options,
        findings=report.findings,
        runs=tuple(run for result in report.sets for run in result.runs),
        score=only_set.score,
        variance=only_set.variance,
        rcp=only_set.rcp,
        sets=sets,
        official=report.official,
    )


def _set_figures(result: SetResult) -> SetFigures:
    files = tuple(run.file for run in result.runs)
    shared = {field.name: getattr(result, field.name) for field in fields(SetFigures) if field.name != "files"}
    return SetFigures(files=files, **shared)


def to_json(document: Document) -> str:
    """Return the document as JSON in plain ASCII, with keys in a fixed order, ending in a newline.

    NaN, infinities and integers beyond a double become null. Lone surrogates of a file name that is not UTF-8 become
    escapes.
    """
    content = TypeAdapter(type(document)).dump_python(document)
    return json.dumps(_valid_json(content), indent=2, allow_nan=False) + "\n"


def json_schema(document_class: type[Any]) -> dict[str, Any]:
    """Return the JSON schema of a document class."""
    return TypeAdapter(document_class).json_schema(mode="serialization", schema_generator=_SchemaGenerator)


class _SchemaGenerator(GenerateJsonSchema):
    """Generator of strict schemas: every key is required, and no other key is allowed."""

    def generate(
        self, schema: core_schema.CoreSchema, mode: Literal["validation", "serialization"] = "serialization"
    ) -> JsonSchemaValue:
        """Return the schema with its dialect as the first key."""
        return {"$schema": self.schema_dialect} | super().generate(schema, mode)

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        """Return the schema of a dataclass, with descriptions from its docstring."""
        generated = super().dataclass_schema(schema)
        summary, _, attributes = (inspect.getdoc(schema["cls"]) or "").partition("\n\nAttributes:\n")
        properties = generated["properties"]
        for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {6,}.*)*)", attributes, re.MULTILINE):
            for name in names.split(", "):
                properties[name]["description"] = _null_for_none(text)
        generated |= {
            "description": _null_for_none(summary),
            "required": list(properties),
            "additionalProperties": False,
        }
        return generated

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """Return the schema of a float: `to_json` writes null for NaN and infinities."""
        return super().float_schema(schema) | {"type": ["number", "null"]}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """Return the schema of an optional value, without a second null for a float."""
        content = self.generate_inner(schema["schema"])
        return content if "null" in content.get("type", ()) else super().nullable_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Omit the titles, which repeat the names of the keys."""
        return False


def _null_for_none(text: str) -> str:
    return re.sub(r"\bNone\b", "null", " ".join(text.split()))


def _valid_json(value: Any) -> Any:
    """Replace what strict readers of JSON refuse: numbers that no double holds, and lone surrogates."""
    if isinstance(value, dict):
        return {_valid_json(key): _valid_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid_json(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    # Comparing an integer with a float is exact, and NaN is below nothing.
    return value if value is None or abs(value) <= sys.float_info.max else None
