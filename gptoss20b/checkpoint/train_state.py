"""Training state as Megatron-Core's sharded state dict: weights, optimizer, random states."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import dist_checkpointing

from ..optimizer import optimizer_parts
from ..trainer import Trainer
from .coordination import on_all_ranks
from .files import CheckpointMetadata

# Store each parameter with its optimizer state, so that any layout can read its part. One replica gathers the state of
# all, in host memory. By default every replica would gather it, in GPU memory.
_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
    "chained_optim_avoid_prefix": True,
}


def sharded_state_dict(trainer: Trainer, *, is_loading: bool) -> dict[str, Any]:
    """Return everything that a step changes, as `dist_checkpointing` saves and loads it. Communicates."""
    metadata = dict(_METADATA)
    model = trainer.gpt.sharded_state_dict(metadata=metadata)
    # Rank 0's state is saved for all ranks: no rank draws random numbers during training.
    random = {"cpu": torch.get_rng_state()}
    if trainer.device.type == "cuda":
        random["device"] = torch.cuda.get_rng_state()
    return {
        "model": model,
        "optimizer": trainer.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata),
        "random": random,
    }


def load_state(trainer: Trainer, checkpoint: CheckpointMetadata) -> None:
    """Load weights, optimizer, schedule and random states into a new trainer. Communicates.

    Raises:
        CheckpointError: Megatron-Core cannot read the checkpoint.
    """
    _initialize_optimizer_state(trainer.optimizer)
    state = sharded_state_dict(trainer, is_loading=True)
    loaded = on_all_ranks(lambda: dist_checkpointing.load(state, str(checkpoint.folder)))
    trainer.gpt.load_state_dict(loaded["model"])
    parts = optimizer_parts(trainer.optimizer)
    states = [loaded["optimizer"]] if len(parts) == 1 else [loaded["optimizer"][i] for i in range(len(parts))]
    for part, part_state in zip(parts, states, strict=True):
        _load_optimizer_state(part, part_state)
    # The scheduler's load_state_dict adds to the step count instead of setting it.
    trainer.scheduler.num_steps = checkpoint.train_state.step
    trainer.scheduler.step(0)
    torch.set_rng_state(loaded["random"]["cpu"])
    # A checkpoint of a CPU run has no state of a GPU.
    if trainer.device.type == "cuda" and "device" in loaded["random"]:
        torch.cuda.set_rng_state(loaded["random"]["device"])


def _initialize_optimizer_state(optimizer: Any) -> None:
    """Allocate the moments of an optimizer that has made no step, as targets of a load."""
    for part in optimizer_parts(optimizer):
        part.init_state_fn(part.optimizer, part.config)
        # Megatron-Core 0.16 to 0.19 leave out torch's step count. Other optimizers count steps elsewhere.
        if isinstance(part.optimizer, torch.optim.Adam):
            for state in part.optimizer.state.values():
                state["step"] = torch.zeros(())


def _load_optimizer_state(part: Any, state: dict[str, Any]) -> None:
    """Load one part of the optimizer around two bugs of Megatron-Core 0.16 that occur with torch's Adam.

    Its loader takes torch's step counts for moments. It also gives all parameters the same step tensor, which the
    update of every parameter would then increment.
    """
    param_state = state.pop("param_state")
    part.load_state_dict(state)
    steps = {parameter: kept.pop("step") for parameter, kept in part.optimizer.state.items() if "step" in kept}
    part.load_parameter_state_from_fully_reshardable(param_state)
    for parameter, step in steps.items():
        part.optimizer.state[parameter]["step"] = step.clone()
