"""The Dockerfile and .dockerignore as a builder reads them: instructions, variables, and which files are sent."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword, its flags (``--mount=...``) and the rest, continuation lines joined."""

    keyword: str
    flags: tuple[str, ...]
    value: str


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, in order. Comments go, also between continuation lines."""
    kept = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(kept))
    assert "<<" not in joined, "here-documents are not read"
    return [_instruction(line) for line in joined.splitlines()]


def _instruction(line: str) -> Instruction:
    keyword, rest = line.strip().split(None, 1)
    flags = []
    while match := re.match(r"(--\S+)\s+", rest):
        flags.append(match[1])
        rest = rest[match.end() :]
    return Instruction(keyword.upper(), tuple(flags), rest)


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``$NAME`` and ``${NAME}``; a name that is not known becomes nothing, as with a builder."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: variables.get(found[1] or found[2], ""), text)


def assignments(value: str) -> Iterator[tuple[str, str]]:
    """The pairs of an ENV or LABEL instruction in the form NAME=VALUE."""
    for name, quoted, plain in re.findall(r'([\w.]+)=(?:"([^"]*)"|(\S*))', value):
        yield name, quoted or plain


class Ignored:
    """The rules of a .dockerignore: the last line that matches a path, or a folder above it, decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        patterns = [line for line in lines if line and not line.startswith("#")]
        self._rules = [(not line.startswith("!"), _expression(line.removeprefix("!").strip("/"))) for line in patterns]

    def __call__(self, path: str) -> bool:
        parts = path.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        ignored = False
        for leaves_out, expression in self._rules:
            if any(expression.fullmatch(prefix) for prefix in above):
                ignored = leaves_out
        return ignored


def _expression(pattern: str) -> re.Pattern[str]:
    """A pattern with ``*`` and ``?`` within one name and ``**`` across folders, none or many."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(tokens.get(part, re.escape(part)) for part in parts))


def sent(folder: Path, ignored: Ignored) -> list[str]:
    """The files under a folder that reach the builder, sorted."""
    return sorted(path for path in _files(folder) if not ignored(path))


def _files(folder: Path) -> Iterable[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            yield (Path(place) / name).relative_to(folder).as_posix()
