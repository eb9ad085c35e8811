"""Stands in for `pip install -r FILE...`: links what the files pin from this Python into the virtual environment.

So the environment holds what the files name and nothing else, without a network and in a second. A pin that this Python
does not have in that very version fails, as any other use of pip does.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def pins(file: Path) -> dict[str, str]:
    """Version of each package: `name==version`, one a line, is all that these files hold."""
    lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def with_what_they_need(names: Iterable[str]) -> Iterator[importlib.metadata.Distribution]:
    """The packages and, as pip would, what they ask for: the CUDA libraries of a torch that has them, say."""
    todo, seen = list(names), set[str]()
    while todo:
        name = todo.pop()
        if canonicalize_name(name) in seen:
            continue
        seen.add(canonicalize_name(name))
        yield (package := importlib.metadata.distribution(name))
        needed = [Requirement(line) for line in package.requires or ()]
        todo += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]


def link(package: importlib.metadata.Distribution, site: Path) -> None:
    for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(str(package.locate_file(top)))


def main(words: list[str]) -> None:
    if words[:1] != ["install"] or len(words) < 3 or len(words) % 2 == 0 or set(words[1::2]) != {"-r"}:
        sys.exit(f"pip {' '.join(words)}: expected install -r FILE...")
    if "VIRTUAL_ENV" not in os.environ:
        sys.exit("pip: no virtual environment is active")
    (site,) = Path(os.environ["VIRTUAL_ENV"]).glob("lib/python3*/site-packages")
    wanted = {name: version for file in words[2::2] for name, version in pins(Path(file)).items()}
    for name, version in wanted.items():
        here = importlib.metadata.version(name)
        if here.split("+")[0] != version:  # a build of torch has its kind after a plus
            sys.exit(f"pip: {name} {version} is pinned, this Python has {here}; let `make test` install what is pinned")
    for package in with_what_they_need(wanted):
        link(package, site)


if __name__ == "__main__":
    main(sys.argv[1:])
