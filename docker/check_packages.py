"""Checks that the pinned packages and what the base image brings are there and fit together; prints their versions.

usage: check_packages.py REQUIREMENTS, from the folder with pyproject.toml
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

# What only the base may bring: torch was built against them.
BASE = ("torch", "numpy")


def pinned(text: str) -> list[Requirement]:
    """The requirements of a file with hashes that are meant for this Python."""
    lines = re.sub(r"\\\n|#.*", " ", text).splitlines()
    found = [Requirement(line.split("--hash", 1)[0]) for line in lines if line.strip()]
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate()]


def is_ours(package: importlib.metadata.Distribution) -> bool:
    """Whether a package lies in this virtual environment, not in the base image."""
    return Path(str(package.locate_file(""))).is_relative_to(sys.prefix)


def unmet(requirement: Requirement) -> str | None:
    """What is wrong with an installed package, or None."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    # Vendors build torch from between two releases: 2.12.0a0.
    fits = requirement.specifier.contains(version, prereleases=True)
    return None if fits else f"got {version}"


def problems_of_pins(pins: list[Requirement]) -> Iterator[str]:
    """Pinned packages that are missing, of another version, the base's, or do not load."""
    modules: dict[str, list[str]] = {}
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names:
            modules.setdefault(name.lower().replace("_", "-"), []).append(module)
    for pin in pins:
        wrong = unmet(pin)
        if wrong is None and not is_ours(importlib.metadata.distribution(pin.name)):
            wrong = "got the base image's"
        if wrong is not None:
            yield f"{pin.name}: {wrong}, expected {pin.specifier} in {sys.prefix}. Run docker/install_packages.sh"
            continue
        for module in filter(str.isidentifier, modules.get(pin.name.lower().replace("_", "-"), ())):
            yield from problems_of_import(module, pin.name)


def problems_of_import(module: str, package: str) -> Iterator[str]:
    """A module that does not load."""
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a package does while it loads
        yield f"{package}: {module} does not load ({error!r}), expected it to. Take another BASE_IMAGE"


def problems_of_needs(pins: list[Requirement], project: list[str]) -> Iterator[str]:
    """What the pinned packages and the project itself need and the image as a whole does not have."""
    needs = [("pyproject.toml", need) for need in project]
    needs += [(pin.name, need) for pin in pins for need in _requires(pin.name)]
    for owner, text in needs:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        wrong = unmet(need)
        if wrong is not None:
            yield f"{need.name}: {wrong}, {owner} needs {need.specifier or 'any'}. Take another BASE_IMAGE"


def _requires(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []  # reported as a pin


def problems_of_base() -> Iterator[str]:
    """A torch that was replaced or does not load, or one for GPUs without Transformer Engine."""
    for name in BASE:
        if unmet(Requirement(name)) is None and is_ours(importlib.metadata.distribution(name)):
            yield f"{name}: got one in {sys.prefix}, expected the base image's. It must not be in the requirements"
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # whatever a package does while it loads
        yield f"torch: does not load ({error!r}), expected BASE_IMAGE to bring it. Take another one"
        return
    if torch.version.cuda is None and torch.version.hip is None:
        return
    if unmet(Requirement("transformer-engine")) is not None:
        yield "transformer-engine: not installed, expected with a torch for GPUs. Take a BASE_IMAGE that brings it"
    elif torch.cuda.is_available():  # where an image is built there is no GPU, and it may not load without one
        yield from problems_of_import("transformer_engine.pytorch", "transformer-engine")


def main(requirements: Path) -> int:
    """Print versions and problems; the exit status is 0, or 2 if there are any."""
    pins = pinned(requirements.read_text())
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    problems = [*problems_of_base(), *problems_of_pins(pins), *problems_of_needs(pins, project)]
    if unmet(Requirement("megatron-core")) is None:
        problems += problems_of_import("megatron.core", "megatron-core")
    for problem in dict.fromkeys(problems):
        print(f"error: {problem}", file=sys.stderr)
    base = [Requirement(name) for name in (*BASE, "transformer-engine")]
    for requirement in base + pins:
        if unmet(Requirement(requirement.name)) is None:
            package = importlib.metadata.distribution(requirement.name)
            print(f"{requirement.name} {package.version} ({'pinned' if is_ours(package) else 'base'})")
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
