"""A run, and whether torch would now refuse an operator that may give other bits the next time."""

from __future__ import annotations

import os

import torch

from gptoss20b.config import resolve
from gptoss20b.train import run


def train(variables: dict[str, str]) -> tuple[int, bool, str | None]:
    """Exit status, whether such an operator was refused, and cuBLAS's setting."""
    code = int(run(resolve(variables)))
    try:
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    except RuntimeError:
        return code, True, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    return code, False, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
