"""Workloads that `bench` times: a model on its tokens, stepped with or without its optimizer."""

from __future__ import annotations

from collections.abc import Iterator
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
from .parts import OPTIMIZER, OTHER, range_name
from .result import Outcome

# Seed of the initial weights, the same for every baseline.
SEED = 1


class Workload(Protocol):
    """A model and its step, ready to run.

    Attributes:
        has_optimizer: whether `full_step` works.
        gpt: the Megatron-Core model; None for other models, whose parts cannot be told apart.
        optimizer_name: package and class of the optimizer; None without one.
    """

    has_optimizer: bool
    gpt: Any
    optimizer_name: str | None

    def first_step(self) -> Outcome:
        """Take the first step and return its loss and norms."""

    def forward_backward(self) -> object:
        """Run forward and backward on the step's tokens."""

    def full_step(self) -> object:
        """Run a whole step, optimizer included."""


def micro_batches(config: Config, device: torch.device) -> list[DeviceBatch]:
    """Return the micro batches of a step: uniformly random tokens, the same for every baseline and micro batch size.

    A sequence depends only on its number in the step. The last token has no label, as in Hugging Face's loss.
    """
    shape = (1, config.fixed.sequence_length)
    rows = []
    for number in range(config.free.global_batch_size):
        generator = torch.Generator().manual_seed(number)
        rows.append(torch.randint(config.model.vocab_size, shape, generator=generator))
    batches = []
    for tokens in torch.split(torch.cat(rows).to(device), config.execution.micro_batch_size):
        mask = torch.ones(tokens.shape, device=device)
        mask[:, -1] = 0.0
        batches.append(DeviceBatch(tokens, tokens.roll(-1, dims=1), mask))
    return batches


def gradient_norm(model: torch.nn.Module) -> Tensor:
    """Return the norm of all gradients in `.grad`, a scalar summed in fp32 whatever their dtype."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(each, dtype=torch.float32) for each in gradients])
    total: Tensor = torch.linalg.vector_norm(norms)
    return total


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Return the package and class of an optimizer.

    >>> describe_optimizer(torch.optim.AdamW([torch.zeros(1)]))
    'torch AdamW'
    """
    kind = type(optimizer)
    return f"{kind.__module__.partition('.')[0]} {kind.__name__}"


class TrainStep(Trainer):
    """The real trainer (DDP, distributed optimizer) on the scenario's tokens."""

    has_optimizer = True

    def __init__(self, config: Config, backend: Backend, device: torch.device) -> None:
        super().__init__(config, backend, device, SEED)
        self.optimizer_name: str | None = describe_optimizer(optimizer_parts(self.optimizer)[0].optimizer)
        self._batches = micro_batches(config, device)

    def first_step(self) -> Outcome:
        """Take one trainer step, whose learning rate is 0, and return its loss and unclipped norms."""
        # Norms by kind need a pass of their own: the step clips the gradients.
        self.forward_backward()
        # DDP accumulates gradients in `main_grad`.
        norms = norms_by_kind(to_hf_names(self.gpt, self.config, lambda each: getattr(each, "main_grad", None)))
        result = self.step(iter(self._batches))
        return Outcome(result.loss(), float(result.grad_norm), norms)

    def forward_backward(self) -> object:
        """Run a step up to the reduced gradients."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        return self._run(iter(self._batches), self.config.accumulation_steps, forward_only=False)

    def full_step(self) -> object:
        """Run the trainer's step."""
        with record_function(range_name(OPTIMIZER)):  # everything outside forward and backward
            return self.step(iter(self._batches))

    def _run(self, batches: Iterator[DeviceBatch], count: int, forward_only: bool) -> tuple[Tensor, Tensor]:
        with record_function(range_name(OTHER)):
            return super()._run(batches, count, forward_only)


class ForwardBackward(TrainStep):
    """The model alone, where fp32 gradients and an optimizer do not fit. Gradients have the weights' dtype."""

    has_optimizer = False

    def __init__(self, config: Config, backend: Backend, device: torch.device) -> None:
        # Does not call Trainer.__init__, which allocates gradient buffers and optimizer state.
        self.config, self.device, self.overlap_param_gather = config, device, False
        self.gpt, self.model = build_and_initialize(config, backend, device, SEED)
        self.optimizer_name = None
        self._position_ids = torch.arange(config.fixed.sequence_length, device=device)[None]
        self._batches = micro_batches(config, device)
        self.model.train()

    def first_step(self) -> Outcome:
        """Run forward and backward and return loss and norms."""
        loss_sum, tokens = self.forward_backward()
        norms = norms_by_kind(to_hf_names(self.gpt, self.config, lambda each: each.grad))
        # Gradients are of the sum over tokens. The trainer divides by the token count only after the reduction.
        means = {kind: norm / float(tokens) for kind, norm in norms.items()}
        return Outcome(mean_loss(loss_sum, tokens), float(gradient_norm(self.model) / tokens), means)

    def forward_backward(self) -> tuple[Tensor, Tensor]:
        """Run forward and backward into new gradients. Return the sum of losses and the counted tokens."""
        for parameter in self.model.parameters():
            parameter.grad = None
        return self._run(iter(self._batches), self.config.accumulation_steps, forward_only=False)
