"""Identity of a comparison, which all its trials share: `python -m benchmarks.gpu.identity SCENARIO` prints JSON.

It runs in a process of its own: asking torch for the device's name creates a context that holds device memory.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import cast

_ROOT = Path(__file__).resolve().parents[2]
# In addition to those of `run_metadata.versions`.
_PACKAGES = ("triton", "transformer-engine-torch", "transformers")


class IdentityError(RuntimeError):
    """The identity cannot be read."""


def identity(scenario: str) -> dict[str, str]:
    """Return device, versions, commit and the environment's settings, by name.

    Raises:
        IdentityError: unsuitable settings, or torch does not start.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.identity", scenario],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise IdentityError((error.stderr.strip().splitlines() or ["its process ended without output"])[-1]) from error
    return cast("dict[str, str]", json.loads(done.stdout.splitlines()[-1]))


def why_not_resumable(commit: str) -> str:
    """Return why results of this commit cannot be resumed; empty if they can."""
    if commit == "unknown":
        return "the commit is unknown: set GIT_COMMIT where there is no .git"
    return "the working tree differs from its commit" if commit.endswith("-dirty") else ""


def _read_identity(scenario: str) -> dict[str, str]:
    import torch

    from gptoss20b.run_metadata import git_commit, versions
    from gptoss20b.tools.bench.scenarios import configure

    on_gpu = torch.cuda.is_available()
    execution = configure(scenario, "reference", "torch", on_gpu).execution  # type: ignore[arg-type]
    found = {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()})",
        "commit": git_commit() or os.environ.get("GIT_COMMIT") or "unknown",
        **{name: getattr(execution, name) for name in ("precision", "recompute", "compile_mode")},
        **{name: version or "none" for name, version in versions().items()},
        "torch": torch.__version__,  # with the local build tag, which the package metadata may lack
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


if __name__ == "__main__":
    print(json.dumps(_read_identity(sys.argv[1])))
