"""Result folder of a run, and its `config.json` with configuration, versions and commit."""

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
_PACKAGES = ("torch", "megatron-core", "transformer-engine", "mlperf-logging", "numpy", "pydantic")


def create_result_directory(config: Config) -> Path:
    """Create the result folder of this run, and return it: LOGDIR, or a new folder under results/."""
    directory = config.logging.directory
    if directory is None:
        stamp = time.strftime("%Y%m%d_%H%M%S")
        directory = Path("results") / f"{config.submission.system}_{stamp}_{os.getpid()}"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def checkpoint_directory(config: Config, directory: Path) -> Path:
    """Return the checkpoint folder of a run with this result folder: SAVE_DIR, or checkpoints/ in it."""
    return config.checkpoints.directory or directory / "checkpoints"


def update_latest_link(directory: Path) -> None:
    """Link `results/latest` atomically to a folder in results/. Do nothing for a folder elsewhere.

    The link is a convenience: a failure is only a warning.
    """
    target = directory.resolve()
    if target.parent != Path("results").resolve():
        return
    temporary = target.with_name(f".latest-{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        temporary.replace(target.parent / "latest")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        print(f"warning: results/latest could not be linked to {directory}: {error}", file=sys.stderr)


def build_metadata(config: Config) -> dict[str, Any]:
    """Return the configuration, its derived values, its differences from the rules, versions and git commit."""
    return {
        "config": config.model_dump(mode="json"),
        "derived": config.derived(),
        "differs_from_the_rules": {
            variable: {"got": got, "rule": rule} for _, variable, got, rule in fixed_hyperparameter_overrides(config)
        },
        "versions": versions(),
        "git_commit": git_commit() or config.submission.git_commit or "unknown",
    }


def write_metadata(directory: Path, metadata: dict[str, Any]) -> None:
    """Write `config.json` atomically, without waiting for the disk: the second time, the run's clock is on."""
    atomic_write(directory / "config.json", json.dumps(metadata, indent=2) + "\n", flush=False)


def versions(*more: str) -> dict[str, str | None]:
    """Return the versions of Python, of the packages that affect a run, and of ``more``; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in (*_PACKAGES, *more):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """Return the commit of the running code, with "-dirty" if files differ; None without git or a repository."""
    commit, _ = _describe_commit()
    return commit


def distrusted_repository() -> Path | None:
    """Return the repository of the running code if git does not read it because another user owns it, or None."""
    _, error = _describe_commit()
    return _ROOT if "dubious ownership" in error else None


def _describe_commit() -> tuple[str | None, str]:
    """Return the commit, or None and git's error."""
    try:
        # --exclude: otherwise `git describe` names a tag instead of the commit.
        described = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            env=os.environ | {"LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except subprocess.CalledProcessError as error:
        return None, str(error.stderr)
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)
    return described.stdout.strip(), ""
