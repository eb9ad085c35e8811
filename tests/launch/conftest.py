"""The launchers and stubs, in a folder of the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launch_stubs import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Sandbox]:
    """Return a sandbox, and end what it has started."""
    made = Sandbox(tmp_path, capfd)
    yield made
    made.end()
