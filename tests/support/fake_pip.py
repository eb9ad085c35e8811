"""A substitute for `pip install -r FILE...` that links this Python's packages into the active virtual environment.

The environment then has exactly what the files pin, and its dependencies, without a network and in a second. It fails
if this Python does not have a pinned version.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def read_pins(file: Path) -> dict[str, str]:
    """Return the version of each package in a file with one `name==version` per line."""
    lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def with_dependencies(names: Iterable[str]) -> Iterator[Distribution]:
    """Yield the packages and all their dependencies that apply to this Python."""
    todo, seen = list(names), set[str]()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        yield (package := distribution(name))
        dependencies = [Requirement(line) for line in package.requires or ()]
        todo += [each.name for each in dependencies if each.marker is None or each.marker.evaluate({"extra": ""})]


def top_level_paths(package: Distribution) -> set[Path]:
    """Return the files and folders of a package directly in site-packages."""
    names = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
    return {Path(str(package.locate_file(name))) for name in names}


def link(packages: Iterable[Distribution], site: Path) -> None:
    """Link packages into a site-packages folder. Packages may share a folder, e.g. of a namespace."""
    for path in {path for package in packages for path in top_level_paths(package)}:
        if not (site / path.name).exists():
            (site / path.name).symlink_to(path)


def main(words: list[str]) -> None:
    """Install as pip does, or exit with a message."""
    if words[:1] != ["install"] or len(words) < 3 or len(words) % 2 == 0 or set(words[1::2]) != {"-r"}:
        sys.exit(f"pip {' '.join(words)}: expected install -r FILE...")
    if "VIRTUAL_ENV" not in os.environ:
        sys.exit("pip: no virtual environment is active")
    (site,) = Path(os.environ["VIRTUAL_ENV"]).glob("lib/python3*/site-packages")
    pins = {name: pin for file in words[2::2] for name, pin in read_pins(Path(file)).items()}
    for name, pinned in pins.items():
        installed = version(name)
        if installed.split("+")[0] != pinned:  # torch's build follows a plus
            sys.exit(f"pip: {name} {pinned} is pinned, but this Python has {installed}. Run `make test` to install it")
    link(with_dependencies(pins), site)


if __name__ == "__main__":
    main(sys.argv[1:])
