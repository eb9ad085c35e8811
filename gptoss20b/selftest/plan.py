"""The pieces of a configuration's self-test, how exact each must be, and what to do about one that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from ..config import Config
from ..model.backend import Backend
from ..model.kernels import attention_kernels
from ..model.megatron_config import params_dtype
from . import pieces
from .compare import TOLERANCE, Comparison
from .pieces import Subject

FULL_ATTENTION = "attention of full layers"
# A product that is added in fp32 is off by 1e-6, one that is rounded to bf16 before by 1e-3.
_UNROUNDED_SUM = 3e-4


@dataclass(frozen=True)
class Piece:
    """A check, the largest relative error with which it passes, and what a person can do if it does not."""

    name: str
    check: Callable[[], Iterable[Comparison]]
    tolerance: float
    fix: str


def make_subject(config: Config, device: torch.device) -> Subject:
    """Return what is checked for a configuration: this rank's heads, and the dtype of its activations."""
    model, ranks = config.model, config.parallel.tensor
    return Subject(
        model, model.num_attention_heads // ranks, model.num_query_groups // ranks, device, params_dtype(config)
    )


def attention_settings(config: Config, subject: Subject) -> list[str]:
    """Return the values of ATTENTION_KERNEL to try in this order: a user's own choice is not replaced."""
    setting = config.execution.attention_kernel
    if setting != "auto":
        return [setting]
    if subject.device.type == "cuda" and attention_kernels("auto", subject.groups) == ("flash",):
        return ["auto", "flex"]
    return ["auto", "flash", "flex"]


def list_pieces(config: Config, backend: Backend, subject: Subject, setting: str) -> list[Piece]:
    """Return all pieces of a run, with ATTENTION_KERNEL as ``setting``. Transformer Engine has its own kernels."""
    tolerance, other = TOLERANCE[subject.dtype], _other_backend()
    on_nvidia = subject.device.type == "cuda" and torch.version.hip is None
    accumulation = min(tolerance, _UNROUNDED_SUM) if on_nvidia else tolerance
    no_other = "there is no other kernel; try another torch, or SELF_TEST=0 to train regardless"
    found = [
        Piece("loss", partial(pieces.check_loss, subject), tolerance, no_other),
        Piece("fp32 sum of products", partial(pieces.check_accumulation, subject), accumulation, no_other),
    ]
    if backend != "torch":
        return found
    grouped = "set ROCM_ALLOW_GROUP_GEMM_CK=0" if torch.version.hip is not None else other
    sinks = config.model.attention_sinks
    windowed = partial(pieces.check_attention, subject, (), config.model.window_left, sinks)
    return [
        Piece("grouped GEMM", partial(pieces.check_grouped_gemm, subject), tolerance, grouped),
        Piece("sums of rows by expert", partial(pieces.check_sum_by_expert, subject), tolerance, grouped),
        Piece("weighted activation", partial(pieces.check_activation, subject), tolerance, other),
        Piece("experts", partial(pieces.check_experts, subject), tolerance, grouped),
        Piece("copies and sums of tokens' rows", partial(pieces.check_rows, subject), tolerance, other),
        Piece("rows between ranks", partial(pieces.check_packed_rows, subject), tolerance, other),
        Piece("norm and rotation", partial(pieces.check_rotation, subject), tolerance, other),
        full_attention(config, subject, setting),
        Piece("attention of windowed layers", windowed, tolerance, other),
        *found,
    ]


def full_attention(config: Config, subject: Subject, setting: str) -> Piece:
    """Return the check of layers without a window, with ATTENTION_KERNEL as ``setting``."""
    on_gpu = subject.device.type == "cuda"
    kernels = attention_kernels(setting, subject.groups) if on_gpu else (setting,)
    check = partial(pieces.check_attention, subject, kernels, None, config.model.attention_sinks)
    chosen = config.execution.attention_kernel != "auto"
    return Piece(
        FULL_ATTENTION,
        check,
        TOLERANCE[subject.dtype],
        "set ATTENTION_KERNEL=auto" if chosen else _other_backend(),
    )


def _other_backend() -> str:
    if torch.version.hip is not None:
        return "try another torch, or SELF_TEST=0 to train regardless"
    return "set BACKEND=transformer_engine, or SELF_TEST=0 to train regardless"
