"""Warm-up before the clock: steps on synthetic tokens compile kernels, connect communicators and fill the allocator.

The warm-up leaves no trace: weights, expert biases, optimizer, schedule and random states are restored bit for bit.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .batches import synthetic_batches
from .optimizer import optimizer_parts
from .trainer import Trainer


def warm_up(trainer: Trainer, passes: int) -> None:
    """Run ``passes`` optimizer steps and one evaluation micro batch on synthetic tokens, then undo them.

    Each pass reaches the peak memory of later steps: the optimizer's moments, which the first step of a run allocates
    after its peak, exist before. So a model that does not fit fails here, before the clock starts.
    """
    if passes == 0:
        return
    config, device = trainer.config, trainer.device
    with preserve_state(trainer):
        trainer.allocate_moments()
        for _ in range(passes):
            trainer.step(synthetic_batches(config, device, config.accumulation_steps))
        trainer.evaluate(synthetic_batches(config, device, 1), 1)
    gc.collect()  # the compiler leaves cycles that hold tensors


@contextmanager
def preserve_state(trainer: Trainer) -> Iterator[None]:
    """Restore a trainer at the end of the block to its state at the start. It must not have made a step before.

    The weights are kept in host memory.
    """
    weights = [parameter.detach().to("cpu", copy=True) for parameter in trainer.model.parameters()]
    buffers = [buffer.clone() for buffer in trainer.model.module.buffers()]
    optimizers = [part.optimizer for part in optimizer_parts(trainer.optimizer) if part.optimizer is not None]
    assert not any(optimizer.state for optimizer in optimizers), "the trainer has made a step"
    group_settings = [
        [
            {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
            for group in each.param_groups
        ]
        for each in optimizers
    ]
    first_skipped = trainer.first_skipped
    steps_done = trainer.scheduler.num_steps
    random = torch.get_rng_state(), torch.cuda.get_rng_state()
    yield
    with torch.no_grad():
        for parameter, saved in zip(trainer.model.parameters(), weights, strict=True):
            parameter.copy_(saved)
        for buffer, kept in zip(trainer.model.module.buffers(), buffers, strict=True):
            buffer.copy_(kept)
    trainer.model.zero_grad_buffer()
    # The fp32 main weights are copies: make them again from the restored weights.
    trainer.optimizer.reload_model_params()
    for optimizer, groups in zip(optimizers, group_settings, strict=True):
        optimizer.state.clear()
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            for name in set(group) - set(values) - {"params"}:
                del group[name]  # e.g. a step count that the first update added
            group.update(values)
            for parameter in group["params"]:
                parameter.grad = None
    # The scheduler's load_state_dict adds to the step count instead of setting it.
    trainer.scheduler.num_steps = steps_done
    trainer.scheduler.step(0)
    trainer.first_skipped = first_skipped
    torch.set_rng_state(random[0])
    torch.cuda.set_rng_state(random[1])
