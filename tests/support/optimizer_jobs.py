"""Jobs about gradients, clipping, decay and updates. See `jobs` for the shared parts."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss20b.batches import synthetic_batches
from gptoss20b.optimizer import clip_gradients
from tests.support.jobs import Variables, layouts, make_dataloader, make_trainer, token_losses


def compare_clipping(variables: Variables) -> dict[float, dict[str, float]]:
    """Return norms and the difference of clipped gradients from Megatron's own, for a low and a high limit."""
    with layouts([variables]) as configs:
        config = next(configs)
        trainer = make_trainer(config)
        trainer.model.zero_grad_buffer()
        batches = synthetic_batches(config, trainer.device, config.accumulation_steps)
        trainer._run(batches, config.accumulation_steps, False)
        trainer.optimizer.prepare_grads()
        parts = trainer.optimizer.chained_optimizers
        parameters = [p for part in parts for p in part.get_parameters()]
        original = [p.grad.clone() for p in parameters]

        def restore_gradients() -> None:
            for parameter, gradient in zip(parameters, original, strict=True):
                parameter.grad = gradient.clone()

        outcome = {}
        for limit in (1e-3, 1e9):
            restore_gradients()
            megatron_norm = trainer.optimizer.get_grad_norm()
            for part in parts:
                clip_grad_by_total_norm_fp32(part.get_parameters(), max_norm=limit, total_norm=megatron_norm)
            megatron_gradients = [p.grad.clone() for p in parameters]
            restore_gradients()
            norm, _ = clip_gradients(trainer.optimizer, limit, trainer.device)
            difference = max(
                float((p.grad - g).abs().max() / g.abs().max().clamp(min=1e-30))
                for p, g in zip(parameters, megatron_gradients, strict=True)
            )
            outcome[limit] = {"ours": float(norm), "megatron": megatron_norm, "difference": difference}
        return outcome


def decayed_parameters(variables: Variables) -> dict[str, bool]:
    """Return whether AdamW decays each parameter, by name."""
    with layouts([variables]) as configs:
        trainer = make_trainer(next(configs))
        decayed_by_id: dict[int, bool] = {}
        for part in trainer.optimizer.chained_optimizers:
            model_groups = zip(part.model_fp32_groups, part.model_float16_groups, strict=True)
            for group, (fp32, fp16) in zip(part.optimizer.param_groups, model_groups, strict=True):
                decayed_by_id |= {id(parameter): group["weight_decay"] > 0 for parameter in (*fp32, *fp16)}
        return {name: decayed_by_id[id(p)] for name, p in trainer.model.named_parameters()}


def host_reads(variables: Variables) -> dict[str, list[str]]:
    """Return the files in which a second step, and then its loss, reads a value back from the device."""

    class RecordReads(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.files: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                files = [frame.filename for frame in traceback.extract_stack()]
                # torch's own AdamW counts its steps in tensors of the host, on a GPU too.
                if not any("torch/optim/" in name for name in files):
                    self.files.append(next(name for name in reversed(files) if "/torch/" not in name))
            return func(*args, **(kwargs or {}))

    with layouts([variables]) as configs:
        config = next(configs)
        trainer, dataloader = make_trainer(config), make_dataloader(config)
        trainer.step(dataloader.train_batches(0))
        with RecordReads() as step:
            result = trainer.step(dataloader.train_batches(1))
        with RecordReads() as loss:
            result.loss()
        dataloader.close()
        return {"step": step.files, "loss": loss.files}


def _autograd_gradients(trainer: Any, batches: list[Any]) -> list[Tensor]:
    """Return autograd's gradients of the mean loss over all tokens, without Megatron's schedule, DDP and optimizer."""
    total, tokens = torch.zeros(()), 0.0
    for batch in batches:
        total = total + (token_losses(trainer.model.module, batch) * batch.loss_mask).sum()
        tokens += float(batch.loss_mask.sum())
    return list(torch.autograd.grad(total / tokens, list(trainer.model.parameters())))


def compare_updates(variables: Variables, steps: int) -> dict[str, float]:
    """Return the largest relative differences from torch's AdamW: of gradients, and of weights after the steps."""
    with layouts([variables]) as configs:
        config = next(configs)
        trainer, dataloader = make_trainer(config), make_dataloader(config)
        parameters = list(trainer.model.parameters())
        initial = [p.detach().clone() for p in parameters]
        plain = [torch.nn.Parameter(p.clone()) for p in initial]
        groups = [
            {"params": [p for p in plain if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in plain if p.ndim == 1], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=config.free.learning_rate, betas=(0.9, 0.95), eps=1e-5)
        gradient_error = 0.0
        for step in range(steps):
            batches = list(dataloader.train_batches(step))
            gradients = _autograd_gradients(trainer, batches)
            norm = torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt()
            scale = min(1.0, config.fixed.gradient_clip / (float(norm) + 1e-6))
            result = trainer.step(iter(batches))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                # On one rank the optimizer clips DDP's own gradient buffer, in place.
                difference = float((parameter.main_grad / scale - gradient).norm() / gradient.norm().clamp(min=1e-12))
                gradient_error = max(gradient_error, difference)
            assert abs(float(result.grad_norm) / float(norm) - 1) < 1e-5
            for parameter, gradient in zip(plain, gradients, strict=True):
                parameter.grad = gradient * scale
            for group in adamw.param_groups:
                group["lr"] = result.learning_rate
            adamw.step()
        dataloader.close()
        changes = [(p.detach() - s, q.detach() - s) for p, q, s in zip(parameters, plain, initial, strict=True)]
        return {
            "gradients": gradient_error,
            "weights": max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in changes),
            "smallest change": min(float(theirs.abs().max()) for _, theirs in changes),
            "clipped by": scale,
        }
