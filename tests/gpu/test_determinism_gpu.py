"""DETERMINISTIC on a GPU: two processes, the same bits."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

# In a process of its own: the switch is for the whole process, and before its first GPU operator.
PRINT_LOSSES = """
from tests.gpu.test_step_gpu import train_losses
print([loss.hex() for loss in train_losses({"DETERMINISTIC": "1"} | %r)])
"""


@pytest.mark.parametrize("variant", [{}, {"like openai": "yes"}])
def test_two_runs_give_the_same_bits(variant: dict[str, str]) -> None:
    command = [sys.executable, "-c", PRINT_LOSSES % variant]
    first, second = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True).stdout
        for _ in range(2)
    )
    assert first.count("0x1.") == 5  # four steps and an evaluation
    assert first == second
