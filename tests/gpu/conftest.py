"""For tests that need a GPU. They use the cases and jobs of `tests/support`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Each test has shapes of its own, and torch compiles one function for eight of them at most."""
    yield
    torch.compiler.reset()
