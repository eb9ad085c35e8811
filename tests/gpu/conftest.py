"""For tests that need a GPU. They use the cases of `tests/unit` and the jobs of `tests/integration`."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("unit", "integration"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
