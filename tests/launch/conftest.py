"""The launchers and stubs, in a folder of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.launch_stubs import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Sandbox:
    """Return a sandbox whose trials are stubs."""
    return Sandbox(tmp_path, capfd)
