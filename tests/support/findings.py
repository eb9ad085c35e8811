"""Assertions on the doctor's findings, and a small file system for its checks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gptoss20b.tools.doctor.finding import Finding, Verdict


def assert_finding(finding: Finding, verdict: Verdict, *texts: str, fix: str = "") -> None:
    """Assert a verdict, texts in what was found, and a text in the fix, which warnings and failures have."""
    assert finding.verdict is verdict, finding
    assert [text for text in texts if text not in finding.found] == [], finding
    assert fix in finding.fix, finding
    assert bool(finding.fix) == (verdict in (Verdict.WARN, Verdict.FAIL)), finding


@contextmanager
def mounted_tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs in a new folder, or skip the test where that is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted, which needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
