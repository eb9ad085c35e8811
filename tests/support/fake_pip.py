"""A substitute for `pip install '.[EXTRA,...]'` that links this Python's packages into the active virtual environment.

The environment then has exactly what pyproject.toml asks for, and its dependencies, without a network and in a second.
It fails if this Python lacks a package or has another version, or if an extra that must not bring torch does.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TORCH_FREE = {"data", "compliance"}


def read_requirements(extras: Iterable[str]) -> list[Requirement]:
    """Return the project's requirements with these extras."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    return [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate()]


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
    named = re.fullmatch(r"install \.\[([a-z,]+)\]", " ".join(words))
    if named is None:
        sys.exit(f"pip {' '.join(words)}: expected install .[EXTRA,...]")
    if "VIRTUAL_ENV" not in os.environ:
        sys.exit("pip: no virtual environment is active")
    (site,) = Path(os.environ["VIRTUAL_ENV"]).glob("lib/python3*/site-packages")
    extras = named[1].split(",")
    requirements = read_requirements(extras)
    for each in requirements:
        if not each.specifier.contains(version(each.name), prereleases=True):
            sys.exit(
                f"pip: {each} is required, but this Python has {version(each.name)}. Run `make test` to install it"
            )
    packages = list(with_dependencies(each.name for each in requirements))
    if set(extras) <= TORCH_FREE and any(package.name == "torch" for package in packages):
        sys.exit(f"pip: {named[1]} brings torch")
    link(packages, site)


if __name__ == "__main__":
    main(sys.argv[1:])
