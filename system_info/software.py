"""Operating system, CUDA, ROCm and Python packages. Nothing is imported: versions come from metadata."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from .files import one_line, read_line, read_text


def read_operating_system(root: Path = Path("/")) -> str | None:
    """Return distribution and kernel, such as ``Ubuntu 24.04.2 LTS, Linux 6.8.0``, or None unless both are known.

    In a container the distribution is the container's.
    """
    release = read_text(root / "etc/os-release") or read_text(root / "usr/lib/os-release")
    name = re.search(r"""^PRETTY_NAME=(["']?)([^"'\n]+)\1\s*$""", release, re.MULTILINE)
    kernel = read_line(root / "proc/sys/kernel/osrelease")
    return f"{one_line(name[2])}, Linux {kernel}" if name and kernel else None


def read_package_versions(names: Iterable[str], site: Sequence[str] | None = None) -> dict[str, str]:
    """Return the versions of installed packages, each from the first folder that has it, as an import takes it.

    Args:
        names: names of packages.
        site: folders of installed packages; None: those of this Python.
    """
    path = list(sys.path if site is None else site)
    versions: dict[str, str] = {}
    for name in names:
        for distribution in metadata.distributions(name=name, path=path):
            if version := one_line(distribution.metadata["Version"]):
                versions.setdefault(name, version)
    return versions


def read_cuda_version(root: Path = Path("/")) -> str | None:
    """Return the version of the CUDA toolkit, or None if there is none."""
    try:
        version = json.loads(read_text(root / "usr/local/cuda/version.json"))["cuda"]["version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return one_line(version) if isinstance(version, str) else None


def read_rocm_version(root: Path = Path("/")) -> str | None:
    """Return the version of ROCm, or None if there is none."""
    return read_line(root / "opt/rocm/.info/version")
