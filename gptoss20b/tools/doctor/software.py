"""Versions of packages against the pins, the layer back end, the commit of the code, and dropping the page cache."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from system_info.tools import run_tool

from ...config import Config
from ...run_metadata import distrusted_repository, git_commit, versions
from .finding import Finding, failed, judged, passed, skipped, warned

_ROOT = Path(__file__).resolve().parents[3]
_CHECKED = ("torch", "megatron-core", "numpy", "mlperf-logging")
_DROP_CACHES = ("/sbin/sysctl", "--quiet", "--write", "vm.drop_caches=3")  # launch/clear_caches.sh's


def check_packages(config: Config, on_gpu: bool) -> list[Finding]:
    """Check versions against the project's bounds and the pins, where these files lie beside the package.

    container.txt pins what is added to a vendor's image with its torch and NumPy; cpu.txt pins everything but torch.
    """
    have = versions()
    bounds = _read_bounds(_ROOT / "pyproject.toml")
    pins = _read_pins(_ROOT / "requirements" / ("container.txt" if on_gpu else "cpu.txt"))
    findings = []
    for name in ("python", *_CHECKED):
        version, bound, pin = have.get(name), bounds.get(name, SpecifierSet()), pins.get(name, SpecifierSet())
        if version is None or not bound.contains(version, prereleases=True):
            fix = "use the image, or pip install '.[run]' in a new environment"
            findings.append(failed("packages", f"{name} {version or 'is not installed'}, expected {bound}", fix))
        elif not pin.contains(version, prereleases=True):
            fix = f"pip install '{name}{pin}', or make sure that you mean another version"
            findings.append(warned("packages", f"{name} {version}, expected {pin} (requirements/)", fix))
    shown = ", ".join(f"{name} {have[name]}" for name in ("python", *_CHECKED))
    engine = _check_transformer_engine(config.execution.backend, on_gpu, have.get("transformer-engine"))
    return [*(findings or [passed("packages", shown)]), engine]


def check_backend(config: Config) -> Finding:
    """Report the layer back end that the run will choose."""
    import torch

    from ...model.backend import BackendError, choose_backend
    from ...model.kernels import describe_attention

    try:
        backend = choose_backend(config)
    except BackendError as error:
        return failed("back end", str(error), "change what the message names")
    found = f"{backend} (BACKEND={config.execution.backend})"
    if backend == "torch" and torch.cuda.is_available():
        found += f"; attention: {describe_attention(config)}"
    return passed("back end", found)


def check_code(config: Config) -> Finding:
    """Check that the log can name the code that runs."""
    known, fix = check_commit(config), "commit, or git stash: a result must name its code"
    return warned(known.name, known.found, fix) if known.found.endswith("-dirty") else known


def check_commit(config: Config) -> Finding:
    """Check that the commit of the code is known, from git or from GIT_COMMIT."""
    if commit := git_commit() or config.submission.git_commit:
        return passed("code", f"commit {commit}")
    give = "export GIT_COMMIT=... (git rev-parse HEAD prints it)"
    if folder := distrusted_repository():
        fix = f"git config --global --add safe.directory {folder}, or {give}"
        return warned("code", f"its commit is unknown: another user owns {folder}, and git does not trust it", fix)
    return warned("code", "its commit is unknown: no git repository, or no git", f"run from a checkout, or {give}")


def check_page_cache(clear_caches: str, root: Path = Path("/")) -> Finding:
    """Check that the page cache can be dropped if CLEAR_CACHES=1 asks for it. Nothing is dropped."""
    if clear_caches != "1":
        return skipped("page cache", f"CLEAR_CACHES={clear_caches}: the run does not drop it")
    if os.access(root / "proc/sys/vm/drop_caches", os.W_OK):
        return passed("page cache", "this user can drop it")
    # -l asks whether sudo would run the command, and does not run it.
    if run_tool("sudo", "-n", "-l", *_DROP_CACHES).failure is None:
        return passed("page cache", "sudo can drop it without a password")
    fix = f"run as root on the host, or allow it: NOPASSWD: {' '.join(_DROP_CACHES)} in sudoers"
    return warned("page cache", "CLEAR_CACHES=1, but this user cannot: the log would have cache_clear false", fix)


def _read_bounds(path: Path) -> dict[str, SpecifierSet]:
    """Return the versions of pyproject.toml with which the project runs, by package."""
    if not path.exists():
        return {}
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    dependencies = [*project["dependencies"], *project["optional-dependencies"]["run"]]
    requirements = map(Requirement, [f"python{project['requires-python']}", *dependencies])
    return {each.name: each.specifier for each in requirements}


def _read_pins(path: Path) -> dict[str, SpecifierSet]:
    """Return the pinned versions, which tests and results used, of a file with hashes, by package."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = re.sub(r"\\\n|#.*", " ", text).splitlines()
    requirements = [Requirement(line.split("--hash", 1)[0]) for line in lines if line.strip()]
    return {each.name: each.specifier for each in requirements if each.marker is None or each.marker.evaluate()}


def _check_transformer_engine(backend: str, on_gpu: bool, version: str | None) -> Finding:
    if backend == "torch" or not on_gpu:
        return skipped("Transformer Engine", "BACKEND=torch" if backend == "torch" else "it runs on GPUs only")
    found = f"{version or 'not installed'}, BACKEND={backend}"
    fix = "run in the container image that brings it, or set BACKEND=torch"
    required = backend == "transformer_engine"
    return judged("Transformer Engine", found, fix, fails=version is None and required, warns=version is None)
