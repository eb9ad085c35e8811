"""Check that the pinned packages and those of the base image are installed and fit together. Print their versions.

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
from packaging.utils import canonicalize_name

# Must come from the base image: its torch was built against its NumPy.
BASE_PACKAGES = ("torch", "numpy")


def read_pins(text: str) -> list[Requirement]:
    """Return the requirements of a file with hashes that apply to this Python."""
    lines = re.sub(r"\\\n|#.*", " ", text).splitlines()
    pins = [Requirement(line.split("--hash", 1)[0]) for line in lines if line.strip()]
    return [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]


def is_in_venv(name: str) -> bool:
    """Return True if a package is installed in this virtual environment, and not in the base image."""
    return Path(str(importlib.metadata.distribution(name).locate_file(""))).is_relative_to(sys.prefix)


def find_mismatch(requirement: Requirement) -> str | None:
    """Return "not installed" or "got <version>", or None if the installed package meets the requirement."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    # Vendors build torch from commits between two releases, e.g. 2.12.0a0.
    return None if requirement.specifier.contains(version, prereleases=True) else f"got {version}"


def is_installed(name: str) -> bool:
    """Return True if any version of a package is installed."""
    return find_mismatch(Requirement(name)) is None


def check_pins(pins: list[Requirement]) -> Iterator[str]:
    """Yield a message for each pinned package that is missing, has another version, or cannot be imported."""
    modules: dict[str, list[str]] = {}
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names:
            modules.setdefault(canonicalize_name(name), []).append(module)
    for pin in pins:
        mismatch = find_mismatch(pin)
        if mismatch is None and not is_in_venv(pin.name):
            mismatch = "got the base image's"
        if mismatch is not None:
            yield f"{pin.name}: {mismatch}, expected {pin.specifier} in {sys.prefix}. Run docker/install_packages.sh"
            continue
        for module in filter(str.isidentifier, modules.get(canonicalize_name(pin.name), ())):
            yield from check_import(module, pin.name)


def check_import(module: str, package: str) -> Iterator[str]:
    """Yield a message if a module cannot be imported."""
    try:
        importlib.import_module(module)
    except Exception as error:  # packages may raise anything on import
        yield f"{package}: cannot import {module} ({error!r}). Use another BASE_IMAGE"


def check_dependencies(pins: list[Requirement], project: list[str]) -> Iterator[str]:
    """Yield a message for each dependency of the project or of a pinned package that the image does not meet."""
    dependencies = [("pyproject.toml", text) for text in project]
    for pin in filter(lambda pin: is_installed(pin.name), pins):
        dependencies += [(pin.name, text) for text in importlib.metadata.requires(pin.name) or []]
    for owner, text in dependencies:
        dependency = Requirement(text)
        if dependency.marker is not None and not dependency.marker.evaluate({"extra": ""}):
            continue
        mismatch = find_mismatch(dependency)
        if mismatch is not None:
            required = dependency.specifier or "any version"
            yield f"{dependency.name}: {mismatch}, {owner} needs {required}. Use another BASE_IMAGE"


def check_base() -> Iterator[str]:
    """Yield a message if torch or NumPy was replaced, torch cannot be imported, or Transformer Engine is missing."""
    for name in BASE_PACKAGES:
        if is_installed(name) and is_in_venv(name):
            yield f"{name}: got one in {sys.prefix}, expected the base image's. Remove it from the requirements"
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # packages may raise anything on import
        yield f"torch: cannot import it ({error!r}). Use a BASE_IMAGE with PyTorch"
        return
    if torch.version.cuda is None and torch.version.hip is None:
        return
    if not is_installed("transformer-engine"):
        yield "transformer-engine: not installed, expected beside a torch for GPUs. Use a BASE_IMAGE that has it"
    elif torch.cuda.is_available():  # builds have no GPU, and without one the import may fail
        yield from check_import("transformer_engine.pytorch", "transformer-engine")


def main(requirements: Path) -> int:
    """Print problems to stderr and versions to stdout. Return 0, or 2 if there are problems."""
    pins = read_pins(requirements.read_text())
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = [text for extra in ("run", "data", "compliance") for text in project["optional-dependencies"][extra]]
    problems = [*check_base(), *check_pins(pins), *check_dependencies(pins, [*project["dependencies"], *extras])]
    if is_installed("megatron-core"):
        # `megatron` is a namespace package: importing it loads nothing of megatron-core.
        problems += check_import("megatron.core", "megatron-core")
    for problem in dict.fromkeys(problems):
        print(f"error: {problem}", file=sys.stderr)
    for name in filter(is_installed, [*BASE_PACKAGES, "transformer-engine", *(pin.name for pin in pins)]):
        print(f"{name} {importlib.metadata.version(name)} ({'pinned' if is_in_venv(name) else 'base'})")
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
