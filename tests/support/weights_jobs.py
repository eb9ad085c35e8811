"""Jobs of tests of weights that leave a run and enter another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gptoss20b.checkpoint.checkpointer import Checkpointer
from gptoss20b.checkpoint.files import TrainState
from gptoss20b.hf.convert import from_checkpoint, to_hugging_face
from gptoss20b.trainer import Trainer
from tests.support.jobs import Variables, layouts, make_dataloader, weight_digests

CPU = torch.device("cpu")


def export_and_import(variables: list[Variables], place: str, hf: bool) -> list[dict[str, Any]]:
    """Train two steps in the first layout, convert the checkpoint, and start each layout from it.

    Returns:
        For the trained model and each layout: the loss of an evaluation, and digests of this rank's weights.
    """
    folder = Path(place)
    sources = [folder / "ours", *([folder / "hf"] if hf else [])]
    outcomes = []
    with layouts(variables) as configs:
        for number, config in enumerate(configs):
            dataloader = make_dataloader(config)

            def describe(trainer: Trainer) -> dict[str, Any]:
                loss = trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches)  # noqa: B023
                return {"loss": loss, "weights": weight_digests(trainer, config)}  # noqa: B023

            if number == 0:
                trainer = Trainer(config, "torch", CPU, 1)
                for step in range(2):
                    trainer.step(dataloader.train_batches(step))
                checkpointer = Checkpointer(config, folder / "checkpoints", True, print)
                checkpointer.save(trainer, TrainState(2, 1, 0, ""))
                checkpointer.complete_pending(timeout_s=None)
                outcomes.append(describe(trainer))
                if dist.get_rank() == 0:
                    from_checkpoint(folder / "checkpoints" / "step_00000002", folder / "ours")
                    if hf:
                        to_hugging_face(folder / "checkpoints" / "step_00000002", folder / "hf")
                dist.barrier()
            for source in sources:
                trainer = Trainer(config.model_copy(update={"init_from": source}), "torch", CPU, 9)
                outcomes.append(describe(trainer))
            dataloader.close()
    return outcomes
