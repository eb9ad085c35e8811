"""Fixtures of the data commands' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.download_runs import REMOTE_FILES, Runs
from tests.support.faulty_server import serving
from tests.support.small_sets import write_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a small dataset."""
    write_set(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Serve a small set to download."""
    with serving(tmp_path) as server:
        server.publish(REMOTE_FILES)
        yield Runs(server, tmp_path / "data" / "c4 set")
