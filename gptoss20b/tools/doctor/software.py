"""Versions of packages against the pins, the commit of the code, and permission to drop the page cache."""

from __future__ import annotations

import os
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from system_info.tools import run_tool

from ...config import Config
from ...run_metadata import git_commit, versions
from .finding import Finding, failed, passed, skipped, warned

_ROOT = Path(__file__).resolve().parents[3]
_CHECKED = ("torch", "megatron-core", "numpy", "mlperf-logging")
_DROP_CACHES = ("/sbin/sysctl", "--quiet", "--write", "vm.drop_caches=3")  # launch/clear_caches.sh's


def check_packages(
    config: Config, on_gpu: bool, installed: Mapping[str, str | None] | None = None, root: Path = _ROOT
) -> list[Finding]:
    """Check versions against the project's bounds and the pins, where these files lie beside the package.

    Args:
        config: configuration of the run.
        on_gpu: compare with container.txt, which pins what is added to a vendor's image with its torch and NumPy.
            Without GPUs, cpu.txt pins everything.
        installed: versions by package, None for a missing one; None: those of this Python.
        root: folder that holds ``pyproject.toml`` and ``requirements``.
    """
    have = versions() if installed is None else installed
    findings = list(_check_bounds(have, root))
    if not findings:
        pins = root / "requirements" / ("container.txt" if on_gpu else "cpu.txt")
        shown = ", ".join(f"{name} {have[name] or 'missing'}" for name in _CHECKED)
        findings = list(_check_pins(have, pins)) or [passed("packages", f"Python {have['python']}, {shown}")]
    return [*findings, _check_transformer_engine(config, on_gpu, have.get("transformer-engine"))]


def check_code(config: Config, commit: str | None = None) -> Finding:
    """Check that the log can name the code that runs.

    Args:
        config: configuration of the run.
        commit: as `run_metadata.git_commit` returns it; None: looked up.
    """
    commit = commit or git_commit() or config.submission.git_commit
    if commit is None:
        return warned("code", "its commit is not known", "run from a git checkout, or set GIT_COMMIT as the image does")
    if commit.endswith("-dirty"):
        fix = "commit, or git stash: a result must name its code"
        return warned("code", f"commit {commit}: files differ from it", fix)
    return passed("code", f"commit {commit}")


def check_page_cache(clear_caches: str, root: Path = Path("/")) -> Finding:
    """Check that the page cache can be dropped if CLEAR_CACHES=1 asks for it. Nothing is dropped.

    Args:
        clear_caches: the variable's value.
        root: folder that holds ``proc``.
    """
    name = "page cache"
    if clear_caches != "1":
        return skipped(name, f"CLEAR_CACHES={clear_caches}: the run does not drop it")
    if os.access(root / "proc/sys/vm/drop_caches", os.W_OK):
        return passed(name, "this user can drop it")
    # -l asks whether sudo would run the command, and does not run it.
    if run_tool("sudo", "-n", "-l", *_DROP_CACHES).status == 0:
        return passed(name, "sudo can drop it without a password")
    fix = f"run as root on the host, or allow it: NOPASSWD: {' '.join(_DROP_CACHES)} in sudoers"
    return warned(name, "CLEAR_CACHES=1, but this user cannot drop it: the log would say cache_clear false", fix)


def _check_bounds(have: Mapping[str, str | None], root: Path) -> Iterator[Finding]:
    """Yield a failure for each package that is missing or outside the bounds of pyproject.toml."""
    path = root / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"] if path.exists() else {}
    bounds = {each.name: each.specifier for each in map(Requirement, project.get("dependencies", ()))}
    bounds["python"] = SpecifierSet(project.get("requires-python", ""))
    fix = "use the image, or pip install -r requirements/cpu.txt in a new environment"
    for name in ("python", *_CHECKED):
        version, allowed = have.get(name), bounds.get(name, SpecifierSet())
        if version is None:
            yield failed("packages", f"{name} is not installed, expected {allowed or 'any version'}", fix)
        elif not allowed.contains(version, prereleases=True):
            yield failed("packages", f"{name} {version}, expected {allowed} (pyproject.toml)", fix)


def _check_pins(have: Mapping[str, str | None], pins: Path) -> Iterator[Finding]:
    """Yield a warning for each package of another version than the pinned one, which tests and results used."""
    if not pins.exists():
        return
    for pin in _parse_requirements(pins.read_text(encoding="utf-8")):
        version = have.get(pin.name)
        if pin.name in _CHECKED and version is not None and not pin.specifier.contains(version, prereleases=True):
            fix = f"pip install '{pin.name}{pin.specifier}', or make sure that you mean another version"
            yield warned("packages", f"{pin.name} {version}, expected {pin.specifier} ({pins.name})", fix)


def _parse_requirements(text: str) -> list[Requirement]:
    """Return the requirements of a file, with or without hashes, that apply to this Python."""
    lines = re.sub(r"\\\n|#.*", " ", text).splitlines()
    requirements = [Requirement(line.split("--hash", 1)[0]) for line in lines if line.strip()]
    return [each for each in requirements if each.marker is None or each.marker.evaluate()]


def _check_transformer_engine(config: Config, on_gpu: bool, version: str | None) -> Finding:
    name, backend = "Transformer Engine", config.execution.backend
    if backend == "torch" or not on_gpu:
        return skipped(name, "BACKEND=torch" if backend == "torch" else "it runs on GPUs only")
    if version is not None:
        return passed(name, f"version {version}, BACKEND={backend}")
    fix = "run in the container image that brings it, or set BACKEND=torch"
    if backend == "transformer_engine":
        return failed(name, f"not installed, expected by BACKEND={backend}", fix)
    return warned(name, f"not installed: BACKEND={backend} means torch on Python {platform.python_version()}", fix)
