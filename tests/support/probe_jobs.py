"""Jobs of `test_probe`."""

from __future__ import annotations

from typing import Any

import torch

from gptoss20b.probe import Probe
from tests.support.jobs import Variables, layouts, make_dataloader, make_trainer


def measure(variables: Variables) -> dict[str, Any]:
    """Measure the second step. Return it, the norm of the whole model, the loss, and the hooks that are left."""
    with layouts([variables]) as configs:
        config = next(configs)
        trainer, dataloader = make_trainer(config), make_dataloader(config)
        trainer.step(dataloader.train_batches(0))
        hooks = _count_hooks(trainer)
        probe = Probe(trainer)
        probe.start()
        loss = trainer.step(dataloader.train_batches(1)).loss()
        measured = probe.read()
        dataloader.close()
        squares = [float(p.detach().double().square().sum()) for p in trainer.model.parameters()]
        return {
            "measured": measured,
            "norm": sum(squares) ** 0.5,
            "loss": loss,
            "hooks": _count_hooks(trainer) - hooks,
        }


def _count_hooks(trainer: Any) -> int:
    modules: list[torch.nn.Module] = list(trainer.model.modules())
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules)
