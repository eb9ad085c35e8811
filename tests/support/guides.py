"""Tables and commands of a Markdown guide, for tests that recompute or run them."""

from __future__ import annotations

import re
from pathlib import Path


def table_rows(guide: str, mark: str) -> list[list[str]]:
    """Return the cells of the table below the comment ``<!-- mark -->``, without its header."""
    return table_with_header(guide, mark)[2:]


def table_with_header(guide: str, mark: str) -> list[list[str]]:
    """Return the cells of every line of the table below the comment ``<!-- mark -->``."""
    lines = guide.partition(f"<!-- {mark} -->\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def fenced_blocks(guide: str) -> list[str]:
    """Return the contents of the fenced blocks without a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    return [text for language, text in blocks if not language]


def read_guide(path: Path) -> str:
    """Return the text of a guide, whose relative links must name files that exist."""
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / link).exists(), f"{path.name}: no such file: {link}"
    return text
