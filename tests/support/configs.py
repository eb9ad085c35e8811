"""Source configurations, and check them with a dry run, in an otherwise empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

CONFIGS = sorted(path.name for path in ROOT.glob("config_*.sh") if path.name != "config_common.sh")
BARE = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


def read_environment(text: str) -> dict[str, str]:
    """Parse the output of `env -0`."""
    return dict(line.split("=", 1) for line in text.split("\0") if line)


def load_config(*names: str, folder: Path = ROOT, cwd: Path | None = None, **given: str) -> dict[str, str]:
    """Return the variables that change when configurations are sourced, one after the other."""

    def environment_after(script: str) -> dict[str, str]:
        done = subprocess.run(
            ["bash", "--norc", "--noprofile", "-euo", "pipefail", "-c", f"{script}env -0"],
            env={**BARE, **given},
            cwd=cwd or folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return read_environment(done.stdout)

    before = environment_after("")
    after = environment_after("".join(f"source {folder}/{name}\n" for name in names))
    return {name: value for name, value in after.items() if before.get(name) != value and name != "_"}


def dry_run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python -m gptoss20b train --dry-run`."""
    return subprocess.run(
        [sys.executable, "-m", "gptoss20b", "train", "--dry-run"],
        cwd=ROOT,
        env={**BARE, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
