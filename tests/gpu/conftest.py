"""For tests that need a GPU. They use the cases of `tests/unit` and the jobs of `tests/integration`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

for folder in ("unit", "integration"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Each test has shapes of its own, and torch compiles one function for eight of them at most."""
    yield
    torch.compiler.reset()
