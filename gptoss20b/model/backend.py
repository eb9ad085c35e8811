"""Choose the layer back end of a run from the configuration and this machine."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch

from ..config import Config
from ..config.checks import check_torch_backend, check_transformer_engine_backend

Backend = Literal["torch", "transformer_engine", "megatron_local"]
"""Implementations of a transformer layer.

`transformer_engine` is Megatron-Core's Transformer Engine spec. `torch` is Megatron-Core's local spec with attention,
experts and token dispatcher replaced by this project's. `megatron_local` is the untouched local spec: tests and
benchmarks compare with it, runs cannot choose it.
"""


class BackendError(RuntimeError):
    """The chosen layer back end cannot run here."""


def choose_backend(config: Config) -> Backend:
    """Return the back end that this machine runs.

    Raises:
        BackendError: Transformer Engine was requested and is missing, or the back end or the GPU does not support the
            configuration.
    """
    available = torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None
    requested = config.execution.backend
    if requested == "transformer_engine" and not available:
        raise BackendError(
            "BACKEND: got transformer_engine, but this machine has no GPU or no Transformer Engine package. "
            "Set BACKEND=torch, or run in the container image that brings it."
        )
    backend: Backend = "transformer_engine" if requested != "torch" and available else "torch"
    # `resolve` checks these limits only for an explicit BACKEND; BACKEND=auto is known here first.
    problems = check_torch_backend(config) if backend == "torch" else check_transformer_engine_backend(config)
    if message := "; ".join(map(str, problems)):
        raise BackendError(message)
    if backend == "torch" and torch.cuda.is_available() and config.execution.precision == "fp32":
        raise BackendError(
            "PRECISION: got fp32, but on a GPU torch's grouped GEMM takes bf16 only. Set PRECISION=bf16, or "
            "BACKEND=transformer_engine where that is installed."
        )
    if config.execution.attention_kernel == "cudnn" and torch.cuda.is_available() and torch.version.hip is not None:
        raise BackendError(
            "ATTENTION_KERNEL: got cudnn, which NVIDIA GPUs have only. Set ATTENTION_KERNEL=auto or flash."
        )
    # MXFP8 needs block-scaled tensor cores, from Blackwell (compute capability 10) on. AMD numbers its GPUs otherwise.
    if config.execution.precision == "mxfp8" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability()
        if major < 10:
            raise BackendError(
                f"PRECISION: got mxfp8, but {torch.cuda.get_device_name()} has compute capability {major}.{minor}, "
                "expected 10.0 or more. Set PRECISION=fp8 or bf16."
            )
    return backend
