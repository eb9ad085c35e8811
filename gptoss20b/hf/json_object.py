"""Read a JSON object of a folder of weights. No torch: the configuration reads one too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path, problems: list[str], if_missing: str = "") -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one with a problem appended. ``if_missing`` ends that message."""
    name = path.name
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{name}: missing{if_missing}")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{name}: cannot be read: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{name}: got a JSON {type(value).__name__}, expected an object")
        return {}
    return value
