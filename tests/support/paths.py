"""Paths of the repository, of its files, and of the published logs, which a machine may not have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE_LOGS = ROOT.parent / "shared" / "data" / "rcp_logs" / "gbs32"
REAL_SHAPES = ROOT.parent / "shared" / "data" / "real_shapes"


def files_in_git() -> list[str]:
    """Return the files of the checkout that git tracks or would add. Skip the test outside of a git checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
