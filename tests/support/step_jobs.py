"""Jobs of tests of a step: overlap, fused AdamW, recomputation, compiled layers."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallelConfig

from gptoss20b import trainer as trainer_module
from gptoss20b.batches import synthetic_batches
from gptoss20b.config import Config
from gptoss20b.model.backend import Backend
from gptoss20b.optimizer import adams, clip_gradients
from gptoss20b.stopping import NonFiniteGradientError
from gptoss20b.trainer import Trainer, mean_loss
from tests.support.jobs import Variables, layouts, make_dataloader, weight_digests, with_global_names

CPU = torch.device("cpu")


def steps(variables: Variables, count: int, overlap: bool, bucket: int) -> dict[str, Any]:
    """Train some steps. Return losses, norms, an evaluation, and this rank's weights after one more step.

    "behind" are the weights before `Trainer.synchronize`, "whole" those after it, which a checkpoint saves.
    """
    _set_bucket_size(bucket)
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
        outcome["behind"] = weight_digests(trainer, config)
        trainer.synchronize()
        outcome["whole"] = weight_digests(trainer, config)
        dataloader.close()
        return outcome


def _set_bucket_size(parameters: int) -> None:
    """Give each bucket of Megatron-Core's gradient buffer at least this many parameters."""
    vars(trainer_module)["DistributedDataParallelConfig"] = functools.partial(
        DistributedDataParallelConfig, bucket_size=parameters
    )


def resumed_adamw(variables: Variables, place: str) -> dict[str, Any]:
    """Save with the option of an AdamW that is not fused, resume, and save an infinite moment. Return what is seen."""
    from pathlib import Path

    from gptoss20b.checkpoint.checkpointer import Checkpointer
    from gptoss20b.checkpoint.files import TrainState, list_checkpoints
    from gptoss20b.checkpoint.train_state import load_state

    with layouts([variables]) as configs:
        config = next(configs)
        dataloader = make_dataloader(config)
        trainer = Trainer(config, "torch", CPU, 1)
        for step in range(3):
            trainer.step(dataloader.train_batches(step))
        warnings: list[str] = []
        checkpointer = Checkpointer(config, Path(place), True, warnings.append)
        for adam in adams(trainer.optimizer):
            adam.param_groups[0]["fused"] = None
        checkpointer.save(trainer, TrainState(3, 1, 0, ""))
        checkpointer.complete_pending(timeout_s=None)
        for adam in adams(trainer.optimizer):
            adam.param_groups[0]["fused"] = True
        outcome: dict[str, Any] = {"trained": [trainer.step(dataloader.train_batches(step)).loss() for step in (3, 4)]}
        again = Trainer(config, "torch", CPU, 2)
        saved = checkpointer.find_newest()
        assert saved is not None
        load_state(again, saved)
        outcome["resumed"] = [again.step(dataloader.train_batches(step)).loss() for step in (3, 4)]
        outcome["fused"] = {group["fused"] for adam in adams(again.optimizer) for group in adam.param_groups}
        next(iter(adams(again.optimizer)[0].state.values()))["exp_avg_sq"].view(-1)[0] = math.inf
        checkpointer.save(again, TrainState(5, 1, 0, ""))
        checkpointer.complete_pending(timeout_s=None)
        outcome["warnings"], outcome["saved"] = warnings, [path.name for path in list_checkpoints(Path(place))]
        dataloader.close()
    return outcome


def skipped_update(variables: Variables, value: float) -> dict[str, Any]:
    """Take three steps; at the second, one gradient of the last rank gets this value. Return the state in between."""
    with layouts([variables]) as configs:
        config = next(configs)
        trainer, dataloader = Trainer(config, "torch", CPU, 1), make_dataloader(config)
        states, results = [], []
        for step in range(3):
            handle = None
            if step == 1 and dist.get_rank() == dist.get_world_size() - 1:
                handle = _spoil_one_gradient(trainer, value)
            results.append(trainer.step(dataloader.train_batches(step)))
            if handle:
                handle.remove()
            moments = [
                (float(each["step"]), each["exp_avg"].clone(), each["exp_avg_sq"].clone())
                for adam in adams(trainer.optimizer)
                for each in adam.state.values()
            ]
            states.append(
                (weight_digests(trainer, config), str([[m[0], *(x.tolist() for x in m[1:])] for m in moments]))
            )
        message = ""
        try:
            trainer.check_finite()
        except NonFiniteGradientError as error:
            message = str(error)
        dataloader.close()
        return {
            "unchanged": [after == before for before, after in itertools.pairwise(states)],
            "nonfinite": [float(result.nonfinite_gradients) for result in results],
            "finite norms": [math.isfinite(float(result.grad_norm)) for result in results],
            "message": message,
        }


def _spoil_one_gradient(trainer: Trainer, value: float) -> Any:
    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        spoiled = gradient.clone()
        spoiled.flatten()[0] = value
        return spoiled

    return list(trainer.model.parameters())[-1].register_hook(spoil)


def recomputed(variables: Variables, levels: list[str]) -> dict[str, dict[str, Any]]:
    """Train three steps at each level of RECOMPUTE. Return losses, the third step's gradients and autograd's bytes.

    Small buckets are gathered during forward passes, so the recomputation has to wait for them again.
    """
    _set_bucket_size(1000)
    outcomes: dict[str, dict[str, Any]] = {}
    with layouts([variables | {"RECOMPUTE": level} for level in levels]) as configs:
        for config in configs:
            trainer, dataloader = Trainer(config, "torch", CPU, 1, overlap=True), make_dataloader(config)
            # The first step's learning rate is 0, so the second is the first that changes weights.
            losses = [trainer.step(dataloader.train_batches(step)).loss() for step in range(2)]
            behind = weight_digests(trainer, config)
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
            losses.append(mean_loss(loss_sum, tokens))
            gathered = weight_digests(trainer, config) != behind
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
    """Run a step on synthetic tokens on one rank. Return loss, norm, and gradients by name in the whole model."""
    trainer, count = Trainer(config, backend, device, 1), config.accumulation_steps
    trainer.model.zero_grad_buffer()
    trainer.optimizer.zero_grad()
    loss_sum, tokens = trainer._run(synthetic_batches(config, device, count), count, forward_only=False)
    held = ((name, parameter.main_grad.double().cpu()) for name, parameter in trainer.gpt.named_parameters())
    # Transformer Engine fuses the norm before attention into the projection after it.
    gradients = {
        name.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"): gradient
        for name, gradient in with_global_names(trainer.gpt, config, held)
    }
    trainer.optimizer.prepare_grads()
    norm, _ = clip_gradients(trainer.optimizer, math.inf, device)
    return {"loss": mean_loss(loss_sum, tokens), "norm": float(norm), "gradients": gradients}


def outputs(variables: Variables) -> dict[str, Any]:
    """Return the model's output without labels, with labels, and with a mask too, and its parameter names."""
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
        plain_losses = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
        local = build_model(config, "megatron_local", on_gpu=False)
        of_experts = ".experts."
        return {
            "logits": tuple(logits.shape),
            "losses": losses.flatten().tolist(),
            "plain": plain_losses.flatten().tolist(),
            "sum": float(total),
            "masked plain": float((plain_losses.double() * mask).sum()),
            "dtype": str(total.dtype),
            "names": [name for name, _ in gpt.named_parameters() if of_experts not in name],
            "names of Megatron-Core's": [name for name, _ in local.named_parameters() if of_experts not in name],
        }


def compiled(variables: Variables) -> dict[str, Any]:
    """Train three steps and evaluate, with compiled layers and without.

    Returns:
        Losses by mode; "graphs", compiled so far by mode; and "breaks", the reasons for which graphs were split.
    """
    from torch._dynamo.utils import counters

    outcomes: dict[str, Any] = {}
    with layouts([variables | {"COMPILE": what} for what in ("kernels", "layers")]) as configs:
        for config in configs:
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
            dataloader.close()
    return outcomes | {"breaks": list(counters["graph_break"])}
