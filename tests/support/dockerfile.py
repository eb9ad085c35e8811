"""Parse the Dockerfile and .dockerignore like a builder: instructions, variables, and the files of the context."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction: keyword, flags (``--mount=...``), and the rest with its continuation lines joined."""

    keyword: str
    flags: tuple[str, ...]
    value: str


def parse_dockerfile(text: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile in order. Here-documents are not supported."""
    # Comments are removed first: they may stand between continuation lines.
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    assert "<<" not in joined
    return [_parse_instruction(line) for line in joined.splitlines()]


def _parse_instruction(line: str) -> Instruction:
    keyword, rest = line.strip().split(None, 1)
    flags = []
    while match := re.match(r"(--\S+)\s+", rest):
        flags.append(match[1])
        rest = rest[match.end() :]
    return Instruction(keyword.upper(), tuple(flags), rest)


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``$NAME`` and ``${NAME}``. As with a builder, an unknown variable is empty."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: variables.get(match[1] or match[2], ""), text)


def parse_assignments(value: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs of an ENV or LABEL instruction of the form NAME=VALUE."""
    for name, quoted, plain in re.findall(r'([\w.]+)=(?:"([^"]*)"|(\S*))', value):
        yield name, quoted or plain


class DockerIgnore:
    """Rules of a .dockerignore. The last rule that matches a path, or a folder above it, decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        patterns = [line for line in lines if line and not line.startswith("#")]
        self._rules = [
            (not line.startswith("!"), _compile_pattern(line.removeprefix("!").strip("/"))) for line in patterns
        ]

    def ignores(self, path: str) -> bool:
        parts = path.split("/")
        prefixes = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        ignored = False
        for excludes, pattern in self._rules:
            if any(pattern.fullmatch(prefix) for prefix in prefixes):
                ignored = excludes
        return ignored

    def context(self, folder: Path) -> list[str]:
        """Return the files under a folder that the builder gets, sorted."""
        paths = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
        relative = [path.relative_to(folder).as_posix() for path in paths]
        return sorted(path for path in relative if not self.ignores(path))


def _compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern in which ``*`` and ``?`` stay within one name, and ``**`` spans any number of folders."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(tokens.get(part, re.escape(part)) for part in parts))
