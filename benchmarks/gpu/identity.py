"""Identity of a comparison, which all its trials share: device, versions, commit and settings."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor

from gptoss20b.tools.bench.scenarios import ScenarioName

# In addition to those of `run_metadata.versions`.
_PACKAGES = ("triton", "transformer-engine-torch", "transformers")


class IdentityError(RuntimeError):
    """The identity cannot be read."""


def identity(scenario: ScenarioName) -> dict[str, str]:
    """Return device, versions, commit and the environment's settings, by name.

    A child process reads them: asking torch for the device's name creates a context that holds device memory.

    Raises:
        IdentityError: unsuitable settings, or torch does not start.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_read_identity, scenario).result()
        except Exception as error:
            raise IdentityError(str(error)) from error


def why_not_resumable(commit: str) -> str:
    """Return why results of this commit cannot be resumed; empty if they can."""
    if commit == "unknown":
        return "the commit is unknown: set GIT_COMMIT where there is no .git"
    return "the working tree differs from its commit" if commit.endswith("-dirty") else ""


def _read_identity(scenario: ScenarioName) -> dict[str, str]:
    import torch

    from gptoss20b.config import ConfigError
    from gptoss20b.run_metadata import git_commit, versions
    from gptoss20b.tools.bench.scenarios import configure

    on_gpu = torch.cuda.is_available()
    try:
        execution = configure(scenario, "reference", "torch", on_gpu).execution
    except ConfigError as error:
        raise IdentityError(str(error)) from None  # ConfigError cannot be pickled
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
