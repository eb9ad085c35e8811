"""Jobs of tests of weights that leave a run and enter another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from gptoss20b.checkpoint.checkpointer import Checkpointer
from gptoss20b.checkpoint.files import TrainState
from gptoss20b.config import Config
from gptoss20b.hf.architecture import read_model
from gptoss20b.hf.convert import from_checkpoint, to_hugging_face
from gptoss20b.trainer import Trainer
from tests.support.hf_folders import read_folder
from tests.support.hf_jobs import BATCH, largest_difference, make_batch, make_hf_model
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
                        to_hugging_face(folder / "checkpoints" / "step_00000002", folder / "hf", is_checkpoint=True)
                dist.barrier()
            for source in sources:
                trainer = Trainer(config.model_copy(update={"init_from": source}), "torch", CPU, 9)
                outcomes.append(describe(trainer))
            dataloader.close()
    return outcomes


def train_beside_transformers(
    variables: list[Variables], place: str, sequence: int, architecture: dict[str, Any]
) -> list[dict[str, Any]]:
    """Train GptOssForCausalLM by plain AdamW, and in each layout from its folder, on the same three batches.

    Returns:
        By layout: the largest relative difference of a weight, of a loss, and the smallest relative change of a weight.
    """
    with layouts(variables) as configs:
        return [
            _train_beside(config, Path(place) / str(number), sequence, architecture)
            for number, config in enumerate(configs)
        ]


def _train_beside(layout: Config, folder: Path, sequence: int, architecture: dict[str, Any]) -> dict[str, Any]:
    hf_model = make_hf_model(architecture)
    before = {name: x.clone() for name, x in hf_model.state_dict().items()}
    if dist.get_rank() == 0:
        hf_model.save_pretrained(folder / "before")
    dist.barrier()
    model, problems = read_model(folder / "before")
    assert model is not None and not problems
    fixed = layout.fixed.model_copy(update={"sequence_length": sequence})
    config = layout.model_copy(update={"model": model, "fixed": fixed, "init_from": folder / "before"})
    trainer = Trainer(config, "torch", CPU, 1)
    is_decayed = {name: not (x.ndim == 1 or name.endswith("bias")) for name, x in hf_model.named_parameters()}
    groups = [
        {
            "params": [x for name, x in hf_model.named_parameters() if is_decayed[name] == decays],
            "weight_decay": fixed.weight_decay * decays,
        }
        for decays in (True, False)
    ]
    adamw = torch.optim.AdamW(groups, betas=(fixed.adam_beta1, fixed.adam_beta2), eps=fixed.adam_epsilon)
    loss_difference = 0.0
    for step in range(3):
        tokens = torch.randint(
            model.vocab_size, (BATCH, sequence), generator=torch.Generator().manual_seed(step), device="cpu"
        )
        local = tokens.chunk(config.parallel.data)[parallel_state.get_data_parallel_rank()]
        result = trainer.step(iter([make_batch(row[None]) for row in local]))
        loss = hf_model(input_ids=tokens, labels=tokens).loss
        loss_difference = max(loss_difference, abs(result.loss() / float(loss) - 1))
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf_model.parameters(), fixed.gradient_clip)
        for group in adamw.param_groups:
            group["lr"] = result.learning_rate
        adamw.step()
    checkpointer = Checkpointer(config, folder / "checkpoints", True, print)
    checkpointer.save(trainer, TrainState(3, 1, 0, ""))
    checkpointer.complete_pending(timeout_s=None)
    if dist.get_rank() == 0:
        to_hugging_face(folder / "checkpoints" / "step_00000003", folder / "after", is_checkpoint=True)
    dist.barrier()
    ours, theirs = read_folder(folder / "after"), hf_model.state_dict()
    assert ours.keys() == theirs.keys()
    return {
        "weights": max(largest_difference(x, theirs[name]) for name, x in ours.items()),
        "loss": loss_difference,
        "smallest change": min(largest_difference(before[name], x) for name, x in theirs.items()),
    }
