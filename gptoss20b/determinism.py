"""The switch DETERMINISTIC: the same bits twice on the same machine.

On a CPU every operator that a run uses gives the same bits anyway, and the switch makes sure of it: torch then refuses
operators that may not. On a GPU some sums are made in the order in which threads arrive (atomic additions in the
backward of fused attention and of indexing, cuBLAS with several workspaces); the switch takes other ways, at a cost.
"""

from __future__ import annotations

import os

import torch

# Read when the libraries start, hence before the first GPU operator and communicator. What a user has set stays.
LIBRARIES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # one of the two values that cuBLAS documents as reproducible
    "NCCL_ALGO": "^NVLS",  # in-switch sums do not promise an order
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",  # Transformer Engine's attention backward
}


def enforce() -> None:
    """From here on, refuse operators whose result may differ from one run to the next, and take those that do not.

    Call it before this process uses a GPU.
    """
    for variable, value in LIBRARIES.items():
        os.environ.setdefault(variable, value)
    torch.use_deterministic_algorithms(True)
    # Or each new tensor would be filled once more, for programs that read memory before they write it.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - declared nowhere
