"""Operating system, CUDA, ROCm and Python packages. Nothing is imported: versions come from metadata."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from .files import one_line, read_line, read_text


def read_operating_system(root: Path = Path("/")) -> str | None:
    """Return distribution and kernel, such as ``Ubuntu 24.04.2 LTS, Linux 6.8.0``, or None unless both are known.

    In a container the distribution is the container's.
    """
    release = read_text(root / "etc/os-release")
    name = re.search(r"""^PRETTY_NAME=(["']?)([^"'\n]+)\1\s*$""", release, re.MULTILINE)
    kernel = read_line(root / "proc/sys/kernel/osrelease")
    return f"{one_line(name[2])}, Linux {kernel}" if name and kernel else None


def read_package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of the packages that this Python has."""
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def read_cuda_version(root: Path = Path("/")) -> str | None:
    """Return the version of the CUDA toolkit, or None if there is none."""
    try:
        return one_line(json.loads(read_text(root / "usr/local/cuda/version.json"))["cuda"]["version"]) or None
    except (ValueError, LookupError, TypeError):
        return None


def read_rocm_version(root: Path = Path("/")) -> str | None:
    """Return the version of ROCm, or None if there is none."""
    return read_line(root / "opt/rocm/.info/version")
