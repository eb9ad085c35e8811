"""Setting DETERMINISTIC: bit-identical reruns on the same machine.

On a CPU every operator of a run is deterministic anyway; torch then rejects any other. On a GPU some operators add in
the order in which threads arrive: atomic additions in the backward pass of fused attention and of indexing, and cuBLAS
with several workspaces. The setting selects slower alternatives.
"""

from __future__ import annotations

import os

import torch

# The libraries read these when they start. A value that the user has set stays.
LIBRARY_VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # one of the two values that cuBLAS documents as deterministic
    "NCCL_ALGO": "^NVLS",  # NVLink SHARP adds in the switch, in no fixed order
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",  # Transformer Engine's attention backward
}


def enforce() -> None:
    """Use deterministic operators from now on, and raise an error for those without a deterministic version.

    Call this before the process uses a GPU: the first GPU operator and communicator read the variables.
    """
    for variable, value in LIBRARY_VARIABLES.items():
        os.environ.setdefault(variable, value)
    torch.use_deterministic_algorithms(True)
    # Otherwise torch fills every new tensor, which helps only programs that read uninitialized memory.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - declared nowhere
