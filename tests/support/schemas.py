"""The committed JSON schemas."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.support.paths import ROOT


@cache
def schema(name: str) -> dict[str, Any]:
    """Return the committed schema of a document: report, plan or comparison."""
    content: dict[str, Any] = json.loads((ROOT / "compliance" / f"{name}.schema.json").read_text(encoding="utf-8"))
    return content


def check_document(name: str, document: object) -> None:
    """Raise jsonschema.ValidationError if a document breaks its schema."""
    Draft202012Validator(schema(name)).validate(document)


def is_valid(name: str, document: object) -> bool:
    """Return whether a document keeps its schema."""
    return bool(Draft202012Validator(schema(name)).is_valid(document))
