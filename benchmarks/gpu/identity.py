"""What has to be the same in all trials of a comparison: `python -m benchmarks.gpu.identity SCENARIO` prints it as JSON.

In a process of its own, because whoever asks torch for the device's name holds memory on the device from then on.
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
# Beside those of `run_metadata.versions`.
_PACKAGES = ("triton", "transformer-engine-torch", "transformers")


class IdentityError(RuntimeError):
    """It cannot be found out."""


def identity(scenario: str) -> dict[str, str]:
    """Device, versions, commit and the settings of the environment, by name.

    Raises:
        IdentityError: with what went wrong: settings that do not fit, or torch that does not start.
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
        raise IdentityError((error.stderr.strip().splitlines() or ["its process ended without a word"])[-1]) from error
    return cast("dict[str, str]", json.loads(done.stdout.splitlines()[-1]))


def doubtful(commit: str) -> str:
    """Why results of this commit cannot be gone on with; empty if they can."""
    if commit == "unknown":
        return "the commit is unknown: set GIT_COMMIT where there is no .git"
    return "the working tree differs from its commit" if commit.endswith("-dirty") else ""


def _find(scenario: str) -> dict[str, str]:
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
        "torch": torch.__version__,  # with the build, which its metadata may leave out
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


if __name__ == "__main__":
    print(json.dumps(_find(sys.argv[1])))
