"""What ranks do in tests of a step: overlap, fused AdamW, recomputation, compiled layers. See `jobs` for the rest."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from gptoss20b import trainer as trainer_module
from gptoss20b.batches import synthetic_batches
from gptoss20b.config import Config
from gptoss20b.model.backend import Backend
from gptoss20b.optimizer import clip_gradients, fuse_adam, optimizer_parts
from gptoss20b.trainer import Trainer
from tests.support.jobs import Variables, digests, in_whole_model, layouts, make_dataloader

CPU = torch.device("cpu")


def steps(variables: Variables, count: int, overlap: bool, bucket: int) -> dict[str, Any]:
    """Losses and norms of some steps with buckets of so few parameters, an evaluation, and this rank's weights after.

    The weights are those that `Trainer.synchronize` leaves, as a checkpoint finds them after one more step.
    """
    vars(trainer_module)["DistributedDataParallelConfig"] = functools.partial(
        trainer_module.DistributedDataParallelConfig, bucket_size=bucket
    )
    with layouts([variables]) as configs:
        config = next(configs)
        trainer, dataloader = Trainer(config, "torch", CPU, 1, overlap=overlap), make_dataloader(config)
        results = [trainer.step(dataloader.train_batches(step)) for step in range(count)]
        outcome = {
            "losses": [result.loss() for result in results],
            "norms": [float(result.grad_norm) for result in results],
            "evaluation": trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches),
            "buckets": len(trainer.model.bucket_groups),
        }
        trainer.step(dataloader.train_batches(count))
        outcome["behind"] = digests(trainer, config)
        trainer.synchronize()
        outcome["whole"] = digests(trainer, config)
        dataloader.close()
        return outcome


def fused(variables: Variables, place: str) -> dict[str, Any]:
    """Losses of the same steps with torch's usual and its fused AdamW, and of going on from the latter's checkpoint."""
    from pathlib import Path

    from gptoss20b.checkpoint.checkpointer import Checkpointer
    from gptoss20b.checkpoint.files import TrainState

    outcome: dict[str, Any] = {}
    with layouts([variables]) as configs:
        config = next(configs)
        dataloader = make_dataloader(config)
        for name in ("usual", "fused"):
            trainer = Trainer(config, "torch", CPU, 1)
            for part in optimizer_parts(trainer.optimizer):
                assert part.optimizer.param_groups[0]["fused"] is None
                if name == "fused":
                    fuse_adam(part.optimizer, True)
            losses = [trainer.step(dataloader.train_batches(step)).loss() for step in range(3)]
            checkpointer = Checkpointer(config, Path(place) / name, True, print)
            checkpointer.save(trainer, TrainState(3, 1, 0, ""))
            checkpointer.complete_pending(timeout_s=None)
            outcome[name] = losses + [trainer.step(dataloader.train_batches(3)).loss() for _ in range(2)]
            again = Trainer(config, "torch", CPU, 2)
            if name == "fused":
                for part in optimizer_parts(again.optimizer):
                    fuse_adam(part.optimizer, True)
            saved = checkpointer.find_newest()
            assert saved is not None
            checkpointer.load(again, saved)
            outcome[f"{name} again"] = [again.step(dataloader.train_batches(3)).loss() for _ in range(2)]
            groups = [g for part in optimizer_parts(again.optimizer) for g in part.optimizer.param_groups]
            outcome[f"{name} groups"] = {group["fused"] for group in groups}
            other = Trainer(config, "torch", CPU, 2)  # a machine without the kernel
            checkpointer.load(other, saved)
            groups = [g for part in optimizer_parts(other.optimizer) for g in part.optimizer.param_groups]
            outcome[f"{name} elsewhere"] = {group["fused"] for group in groups}
        dataloader.close()
    return outcome


def recomputed(variables: Variables, levels: list[str]) -> dict[str, dict[str, Any]]:
    """For each level: losses, all gradients of the third step, and the bytes that autograd kept for its backward.

    Weights are gathered during forward passes, of a few parameters a bucket: what is computed again waits once more.
    """
    vars(trainer_module)["DistributedDataParallelConfig"] = functools.partial(
        trainer_module.DistributedDataParallelConfig, bucket_size=1000
    )
    outcomes = {}
    with layouts([variables | {"RECOMPUTE": level} for level in levels]) as configs:
        for config in configs:
            trainer, dataloader = Trainer(config, "torch", CPU, 1, overlap=True), make_dataloader(config)
            # The first step's rate is 0: only after the second is there anything new to gather.
            losses = [trainer.step(dataloader.train_batches(step)).loss() for step in range(2)]
            behind = digests(trainer, config)
            kept: dict[int, int] = {}
            parameters = {each.untyped_storage().data_ptr() for each in trainer.model.parameters()}

            def keep(
                tensor: torch.Tensor, kept: dict[int, int] = kept, parameters: set[int] = parameters
            ) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in parameters:
                    kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            trainer.model.zero_grad_buffer()
            loss_sum, tokens = trainer._run(dataloader.train_batches(2), config.accumulation_steps, forward_only=False)
            gradients = {name: p.main_grad.numpy().copy() for name, p in trainer.model.named_parameters()}
            losses.append(trainer_module.mean_loss(loss_sum, tokens))
            gathered = digests(trainer, config) != behind
            trainer.model.zero_grad_buffer()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                batch = next(iter(dataloader.train_batches(2)))
                trainer._forward(iter([batch]), trainer.model)
            outcomes[config.execution.recompute] = {
                "losses": losses,
                "gradients": gradients,
                "gathered": gathered,
                "bytes": sum(kept.values()),
            }
            dataloader.close()
    return outcomes


def differentiated(config: Config, backend: Backend, device: torch.device) -> dict[str, Any]:
    """Of one step's synthetic tokens: loss, gradient norm, and gradients by name in the whole model; on one rank."""
    trainer, count = Trainer(config, backend, device, 1), config.accumulation_steps
    trainer.model.zero_grad_buffer()
    trainer.optimizer.zero_grad()
    loss_sum, tokens = trainer._run(synthetic_batches(config, device)(count), count, forward_only=False)
    held = ((name, parameter.main_grad.double().cpu()) for name, parameter in trainer.gpt.named_parameters())
    # Transformer Engine's norm before attention is part of the projection after it.
    gradients = {
        name.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"): gradient
        for name, gradient in in_whole_model(trainer.gpt, config, held)
    }
    trainer.optimizer.prepare_grads()
    norm = clip_gradients(trainer.optimizer, math.inf, device)
    return {"loss": trainer_module.mean_loss(loss_sum, tokens), "norm": float(norm), "gradients": gradients}


def outputs(variables: Variables) -> dict[str, Any]:
    """What the model returns without labels, with them, and with a mask too; and what it calls its parameters."""
    from gptoss20b.model.build import build_model

    with layouts([variables]) as configs:
        config = next(configs)
        gpt = Trainer(config, "torch", CPU, 1).gpt
        tokens = torch.randint(config.model.vocab_size, (2, config.fixed.sequence_length))
        labels, mask = tokens.flip(1), (torch.rand(tokens.shape) < 0.5).float()
        inputs = {"input_ids": tokens, "position_ids": torch.arange(tokens.shape[1])[None].expand_as(tokens)}
        logits = gpt(**inputs, attention_mask=None)
        losses = gpt(**inputs, attention_mask=None, labels=labels)
        total = gpt(**inputs, attention_mask=None, labels=labels, loss_mask=mask)
        by_hand = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
        local = build_model(config, "megatron_local", on_gpu=False)
        of_experts = ".experts."
        return {
            "logits": tuple(logits.shape),
            "losses": losses.flatten().tolist(),
            "by hand": by_hand.flatten().tolist(),
            "sum": float(total),
            "masked by hand": float((by_hand.double() * mask).sum()),
            "dtype": str(total.dtype),
            "names": [name for name, _ in gpt.named_parameters() if of_experts not in name],
            "names of Megatron-Core's": [name for name, _ in local.named_parameters() if of_experts not in name],
        }


def compiled(variables: Variables) -> dict[str, Any]:
    """Losses of three steps and an evaluation, with compiled layers and without, and how many graphs that made.

    Also how often the table of rotations was asked for and how often it was made.
    """
    from torch._dynamo.utils import counters

    from gptoss20b.model.rotary import rotary_cos_sin

    outcomes: dict[str, Any] = {}
    with layouts([variables | {"COMPILE": what} for what in ("kernels", "layers")]) as configs:
        for config in configs:
            rotary_cos_sin.__wrapped__.cache_clear()
            trainer, dataloader = Trainer(config, "torch", CPU, 1), make_dataloader(config)
            losses = [trainer.step(dataloader.train_batches(step)).loss() for step in range(3)]
            names = [name for name, _ in trainer.model.named_parameters()]
            outcomes[config.execution.compile_mode] = [
                *losses,
                trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches),
            ]
            outcomes.setdefault("names", names)
            assert outcomes["names"] == names
            outcomes[f"{config.execution.compile_mode} graphs"] = counters["stats"]["unique_graphs"]
            cache = rotary_cos_sin.__wrapped__.cache_info()
            outcomes[f"{config.execution.compile_mode} tables"] = (cache.hits + cache.misses, cache.misses)
            dataloader.close()
    return outcomes
