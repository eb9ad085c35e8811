"""DETERMINISTIC on a GPU: two processes, the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU"),
]
HERE = Path(__file__).parent
# In a process of its own: the switch is for the whole process, and before its first GPU operator.
PRINT_LOSSES = """
from test_step_gpu import losses
print([loss.hex() for loss in losses({"DETERMINISTIC": "1"} | %r)])
"""


@pytest.mark.parametrize("variant", [{}, {"like openai": "yes"}])
def test_two_runs_give_the_same_bits(variant: dict[str, str]) -> None:
    folders = [HERE, HERE.parent / "integration", HERE.parents[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", PRINT_LOSSES % variant]
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True).stdout
        for _ in range(2)
    )
    assert first.count("0x1.") == 5  # four steps and an evaluation
    assert first == second
