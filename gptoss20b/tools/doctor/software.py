"""What runs: versions of packages against the pins, the commit of the code, and whether caches can be dropped."""

from __future__ import annotations

import os
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ...config import Config
from ...run_metadata import git_commit, versions
from .finding import Finding, failed, passed, skipped, warned
from .tools import ask

_BESIDE = Path(__file__).resolve().parents[2]
_NAMED = ("torch", "megatron-core", "numpy", "mlperf-logging")
_DROP = ("/sbin/sysctl", "--quiet", "--write", "vm.drop_caches=3")  # launch/clear_caches.sh's


def look_at_packages(
    config: Config, on_gpu: bool, installed: Mapping[str, str | None] | None = None, beside: Path = _BESIDE
) -> list[Finding]:
    """Check versions against the project's bounds and the pins, where these files lie beside the package.

    Args:
        config: of the run.
        on_gpu: container.txt pins what is added to a vendor's image, whose torch and NumPy are its own; without GPUs
            cpu.txt pins everything.
        installed: versions by package, None for missing ones; None: those of this Python.
        beside: folder that holds `pyproject.toml` and `requirements`.
    """
    have = versions() if installed is None else installed
    shown = f"Python {have['python']}, " + ", ".join(f"{name} {have[name] or 'missing'}" for name in _NAMED)
    findings = list(_unfit(have, beside))
    if not findings:
        pins = beside / "requirements" / ("container.txt" if on_gpu else "cpu.txt")
        findings = list(_unpinned(have, pins)) or [passed("packages", shown)]
    return [*findings, _transformer_engine(config, on_gpu, have.get("transformer-engine"))]


def look_at_code(config: Config, commit: str | None = None) -> Finding:
    """Check that the log can name the code that runs.

    Args:
        config: of the run.
        commit: as `run_metadata.git_commit` gives it; None: asked for.
    """
    commit = commit or git_commit() or config.submission.git_commit
    if commit is None:
        return warned("code", "its commit is not known", "run from a git checkout, or set GIT_COMMIT as the image does")
    if commit.endswith("-dirty"):
        return warned(
            "code", f"commit {commit}: files differ from it", "commit, or git stash: a result must name its code"
        )
    return passed("code", f"commit {commit}")


def look_at_caches(clear_caches: str, root: Path = Path("/")) -> Finding:
    """Check that the page cache can be dropped where CLEAR_CACHES=1 asks for it; drops nothing.

    Args:
        clear_caches: the variable's value.
        root: folder that holds `proc`.
    """
    if clear_caches != "1":
        return skipped("page cache", f"CLEAR_CACHES={clear_caches}: the run does not drop it")
    if os.access(root / "proc/sys/vm/drop_caches", os.W_OK):
        return passed("page cache", "this user can drop it")
    if ask("sudo", "-n", "-l", *_DROP).status == 0:
        return passed("page cache", "sudo can drop it without a password")
    fix = f"run as root on the host, or allow it: NOPASSWD: {' '.join(_DROP)} in sudoers"
    return warned(
        "page cache", "CLEAR_CACHES=1, but this user cannot drop it: the log would say cache_clear false", fix
    )


def _unfit(have: Mapping[str, str | None], beside: Path) -> Iterator[Finding]:
    """Packages that are missing or outside what the project says that it runs with."""
    project = beside / "pyproject.toml"
    about = tomllib.loads(project.read_text(encoding="utf-8"))["project"] if project.exists() else {}
    bounds = {each.name: each.specifier for each in map(Requirement, about.get("dependencies", ()))}
    bounds["python"] = SpecifierSet(about.get("requires-python", ""))
    for name in ("python", *_NAMED):
        version, allowed = have.get(name), bounds.get(name, SpecifierSet())
        fix = "use the image, or pip install -r requirements/cpu.txt in a new environment"
        if version is None:
            yield failed("packages", f"{name} is not installed, expected {allowed or 'any version'}", fix)
        elif not allowed.contains(version, prereleases=True):
            yield failed("packages", f"{name} {version}, expected {allowed} (pyproject.toml)", fix)


def _unpinned(have: Mapping[str, str | None], pins: Path) -> Iterator[Finding]:
    """Packages of another version than the pinned one, which tests and published results had."""
    if not pins.exists():
        return
    for pin in _pins(pins.read_text(encoding="utf-8")):
        version = have.get(pin.name)
        if pin.name in _NAMED and version is not None and not pin.specifier.contains(version, prereleases=True):
            fix = f"pip install '{pin.name}{pin.specifier}', or make sure that you mean another version"
            yield warned("packages", f"{pin.name} {version}, expected {pin.specifier} ({pins.name})", fix)


def _pins(text: str) -> list[Requirement]:
    """The requirements of a file, with or without hashes, that are meant for this Python."""
    lines = re.sub(r"\\\n|#.*", " ", text).splitlines()
    found = [Requirement(line.split("--hash", 1)[0]) for line in lines if line.strip()]
    return [each for each in found if each.marker is None or each.marker.evaluate()]


def _transformer_engine(config: Config, on_gpu: bool, version: str | None) -> Finding:
    name, wanted = "Transformer Engine", config.execution.backend
    if wanted == "torch" or not on_gpu:
        return skipped(name, "BACKEND=torch" if wanted == "torch" else "it runs on GPUs only")
    if version is not None:
        return passed(name, f"version {version}, BACKEND={wanted}")
    fix = "run in the container image that brings it, or set BACKEND=torch"
    if wanted == "transformer_engine":
        return failed(name, f"not installed, expected by BACKEND={wanted}", fix)
    return warned(name, f"not installed: BACKEND={wanted} means torch on Python {platform.python_version()}", fix)
