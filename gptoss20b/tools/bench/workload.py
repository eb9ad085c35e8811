"""What is timed: a model on its tokens whose step can be taken with or without its optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from ...batches import DeviceBatch
from ...config import Config
from ...model.backend import Backend
from ...optimizer import optimizer_parts
from ...trainer import Trainer, build_and_initialize, mean_loss
from .norms import norms_by_kind, to_hf_names
from .parts import OPTIMIZER, OTHER, range_of
from .tokens import micro_batches

SEED = 1
"""Of the initial weights, for every baseline."""


@dataclass(frozen=True)
class Outcome:
    """What the first step gives: mean loss over the counted tokens in nats, and the norm of its gradient.

    `norms` are those of the gradients by kind of tensor, `norms.norms_by_kind`.
    """

    loss: float
    grad_norm: float
    norms: dict[str, float]


class Workload(Protocol):
    """A baseline, ready to run.

    Attributes:
        has_optimizer: whether it has an optimizer.
        gpt: the Megatron-Core model whose parts have names; None for others.
        optimizer_name: package and class of what updates the weights; None without an optimizer.
    """

    has_optimizer: bool
    gpt: Any
    optimizer_name: str | None

    def first_step(self) -> Outcome:
        """Take the first step and read what came of it."""

    def forward_backward(self) -> object:
        """Forward and backward on the step's tokens."""

    def full_step(self) -> object:
        """A whole step; only where there is an optimizer."""


def gradient_norm(model: torch.nn.Module) -> Tensor:
    """Norm of all gradients in `.grad`, a scalar summed in fp32 whatever their type."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(each, dtype=torch.float32) for each in gradients])
    total: Tensor = torch.linalg.vector_norm(norms)
    return total


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Package and class.

    >>> describe_optimizer(torch.optim.AdamW([torch.zeros(1)]))
    'torch AdamW'
    """
    kind = type(optimizer)
    return f"{kind.__module__.partition('.')[0]} {kind.__name__}"


def _reduced(parameter: torch.nn.Parameter) -> Tensor | None:
    """Where DDP gathers a parameter's gradient."""
    return getattr(parameter, "main_grad", None)


def _own(parameter: torch.nn.Parameter) -> Tensor | None:
    return parameter.grad


class TrainStep(Trainer):
    """The real trainer (DDP, distributed optimizer) on the scenario's tokens."""

    has_optimizer = True

    def __init__(self, config: Config, backend: Backend, device: torch.device) -> None:
        super().__init__(config, backend, device, SEED)
        self.optimizer_name: str | None = describe_optimizer(optimizer_parts(self.optimizer)[0].optimizer)
        self._batches = micro_batches(config, device)

    def first_step(self) -> Outcome:
        """One step of the trainer, whose rate is 0 then; the norm is before clipping."""
        self.forward_backward()  # by themselves first: the step clips them
        norms = norms_by_kind(to_hf_names(self.gpt, self.config, _reduced))
        result = self.step(iter(self._batches))
        return Outcome(result.loss(), float(result.grad_norm), norms)

    def forward_backward(self) -> object:
        """All of a step up to the reduced gradients."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self._run(iter(self._batches), self.config.accumulation_steps, forward_only=False)

    def full_step(self) -> object:
        """The trainer's step."""
        with record_function(range_of(OPTIMIZER)):  # all of a step that is not forward and backward
            return self.step(iter(self._batches))

    def _run(self, batches: Iterator[DeviceBatch], count: int, forward_only: bool) -> tuple[Tensor, Tensor]:
        with record_function(range_of(OTHER)):
            return super()._run(batches, count, forward_only)


class ForwardBackward(TrainStep):
    """The model alone, for when fp32 gradients and an optimizer do not fit: gradients stay in the weights' type."""

    has_optimizer = False

    def __init__(self, config: Config, backend: Backend, device: torch.device) -> None:
        # Not the trainer's: it would make what does not fit.
        self.config, self.device, self.overlap_param_gather = config, device, False
        self.gpt, self.model = build_and_initialize(config, backend, device, SEED)
        self.optimizer_name = None
        self._position_ids = torch.arange(config.fixed.sequence_length, device=device)[None]
        self._batches = micro_batches(config, device)
        self.model.train()

    def first_step(self) -> Outcome:
        """Forward and backward; the norm is of gradients in the weights' type."""
        loss_sum, tokens = self.forward_backward()
        # Of the sum over tokens: the trainer divides by their number after the reduction.
        norms = norms_by_kind(to_hf_names(self.gpt, self.config, _own))
        means = {kind: norm / float(tokens) for kind, norm in norms.items()}
        return Outcome(mean_loss(loss_sum, tokens), float(gradient_norm(self.model) / tokens), means)

    def forward_backward(self) -> tuple[Tensor, Tensor]:
        """Forward and backward into new gradients; returns the sum of the losses and the counted tokens."""
        for parameter in self.model.parameters():
            parameter.grad = None
        return self._run(iter(self._batches), self.config.accumulation_steps, forward_only=False)
