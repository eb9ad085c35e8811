"""Fixtures and settings for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.config_cases import without_settings

# A shell's background jobs ignore Ctrl-C, and so would what they start: tests send it, to themselves and to others.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Other tests run beside each, on a machine that may be busy: no example is wrong because it took long.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace PATH by one empty folder, which the test fills. There is no driver of a GPU, either."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for library in ("nvidia.read_nvml", "amd.read_amdsmi"):
        monkeypatch.setattr(f"system_info.{library}", lambda limit_s=None: None)
    return folder


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every setting from the environment."""
    for name in set(os.environ) - set(without_settings(dict(os.environ))):
        monkeypatch.delenv(name)
