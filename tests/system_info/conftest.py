"""Fixtures for the readers of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tools(tools: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder on PATH, on a machine without the vendors' libraries."""
    for vendor in ("nvidia", "amd"):
        monkeypatch.setattr(f"system_info.{vendor}.read_library", lambda *arguments: None)
    return tools
