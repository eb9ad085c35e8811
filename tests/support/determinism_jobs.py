"""Runs after which torch does or does not reject an operator that may not be deterministic."""

from __future__ import annotations

import os

import torch

from gptoss20b.config import resolve
from gptoss20b.train import run


def train(variables: dict[str, str]) -> tuple[int, bool, str | None]:
    """Return the exit status, whether torch rejects such an operator, and cuBLAS's setting."""
    code, rejected = int(run(resolve(variables))), False
    try:
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    except RuntimeError:
        rejected = True
    return code, rejected, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
