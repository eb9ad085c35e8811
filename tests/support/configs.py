"""What configurations export, and what a dry run makes of it, each in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

CONFIGS = sorted(path.name for path in ROOT.glob("config_*.sh") if path.name != "config_common.sh")
BARE = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


def load_config(*names: str, folder: Path = ROOT, cwd: Path | None = None, **given: str) -> dict[str, str]:
    """What sourcing configurations, one after the other, adds to an empty environment."""
    sources = "".join(f"source {folder}/{name}\n" for name in names)
    bash = ["bash", "--norc", "--noprofile", "-euo", "pipefail", "-c"]
    both = [
        subprocess.run(
            [*bash, f"{script}env -0"], env={**BARE, **given}, cwd=cwd or folder, capture_output=True, check=True
        ).stdout.decode()
        for script in ("", sources)
    ]
    bare, loaded = (dict(line.split("=", 1) for line in text.split("\0") if line) for text in both)
    return {name: value for name, value in loaded.items() if bare.get(name) != value and name != "_"}


def dry_run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Ask the real command, with nothing else in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "gptoss20b", "train", "--dry-run"],
        cwd=ROOT,
        env={**BARE, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
