"""What lies beside the log: where results go, and `config.json`, the whole truth about one run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .config import Config, fixed_hyperparameter_overrides
from .durable import atomic_write

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "megatron-core", "transformer-engine", "mlperf-logging", "numpy", "pydantic", "pydantic-settings")


def create_result_directory(config: Config) -> Path:
    """The folder of this run's result, created; a new one under results/ unless LOGDIR names it."""
    directory = config.logging.directory
    if directory is None:
        stamp = time.strftime("%Y%m%d_%H%M%S")
        directory = Path("results") / f"{config.submission.system}_{stamp}_{os.getpid()}"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def checkpoint_directory(config: Config, directory: Path) -> Path:
    """The folder of the checkpoints of a run whose result is in ``directory``; not created."""
    return config.checkpoints.directory or directory / "checkpoints"


def update_latest_link(directory: Path) -> None:
    """Point `results/latest` at a result under results/, in one step: a reader never finds it missing.

    A convenience: where it cannot be done, a warning says so and the run goes on.
    """
    place = directory.resolve()
    if place.parent != Path("results").resolve():
        return
    temporary = place.with_name(f".latest-{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(place.name)
        temporary.replace(place.parent / "latest")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        print(f"warning: results/latest could not be pointed to {directory}: {error}", file=sys.stderr)


def build_metadata(config: Config) -> dict[str, Any]:
    """The resolved configuration, what it derives, where it leaves the rules, versions and git commit."""
    return {
        "config": config.model_dump(mode="json"),
        "derived": config.derived(),
        "differs_from_the_rules": {
            variable: {"got": got, "rule": rule} for _, variable, got, rule in fixed_hyperparameter_overrides(config)
        },
        "versions": versions(),
        "git_commit": git_commit() or config.submission.git_commit or "unknown",
    }


def write_metadata(directory: Path, record: dict[str, Any]) -> None:
    """Write `config.json`, whole or not at all."""
    atomic_write(directory / "config.json", json.dumps(record, indent=2) + "\n")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a run; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """Commit of the running code, "-dirty" appended if files differ; None where git or its data are missing."""
    try:
        described = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
