"""What ranks do in tests of numbers: weights, gradients, clipping, decay, updates. See `jobs` for the rest."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss20b.batches import synthetic_batches
from tests.support.jobs import Variables, layouts, make_dataloader, make_trainer


def initial_statistics(variables: Variables) -> dict[str, Any]:
    """Mean, deviation and count of every weight, and the loss on uniformly random tokens before any step."""
    with layouts([variables]) as configs:
        config = next(configs)
        trainer = make_trainer(config)
        weights = {
            name: (float(p.double().mean()), float(p.double().std()) if p.numel() > 1 else 0.0, p.numel())
            for name, p in trainer.model.module.named_parameters()
        }
        return {"weights": weights, "loss": trainer.evaluate(synthetic_batches(config, trainer.device)(4), 4)}


def clipped(variables: Variables) -> dict[str, Any]:
    """Our norm and clipped gradients beside Megatron's own, on the same gradients, with and without clipping."""
    from gptoss20b.optimizer import clip_gradients

    with layouts([variables]) as configs:
        config = next(configs)
        trainer = make_trainer(config)
        trainer.model.zero_grad_buffer()
        trainer._run(
            synthetic_batches(config, trainer.device)(config.accumulation_steps), config.accumulation_steps, False
        )
        trainer.optimizer.prepare_grads()
        parts = trainer.optimizer.chained_optimizers
        parameters = [p for part in parts for p in part.get_parameters()]
        original = [p.grad.clone() for p in parameters]
        outcome = {}
        for limit in (1e-3, 1e9):
            for parameter, gradient in zip(parameters, original, strict=True):
                parameter.grad = gradient.clone()
            theirs = trainer.optimizer.get_grad_norm()
            from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

            for part in parts:
                clip_grad_by_total_norm_fp32(part.get_parameters(), max_norm=limit, total_norm=theirs)
            their_gradients = [p.grad.clone() for p in parameters]
            for parameter, gradient in zip(parameters, original, strict=True):
                parameter.grad = gradient.clone()
            ours = clip_gradients(trainer.optimizer, limit, trainer.device)
            difference = max(
                float((p.grad - g).abs().max() / g.abs().max().clamp(min=1e-30))
                for p, g in zip(parameters, their_gradients, strict=True)
            )
            outcome[limit] = {"ours": float(ours), "theirs": theirs, "difference": difference}
        return outcome


def decayed(variables: Variables) -> dict[str, bool]:
    """Which parameters AdamW decays, by name."""
    with layouts([variables]) as configs:
        trainer = make_trainer(next(configs))
        decayed_by_id = {}
        for part in trainer.optimizer.chained_optimizers:
            for group, models in zip(part.optimizer.param_groups, _model_groups(part), strict=True):
                for parameter in models:
                    decayed_by_id[id(parameter)] = group["weight_decay"] > 0
        return {name: decayed_by_id[id(p)] for name, p in trainer.model.named_parameters()}


def _model_groups(part: Any) -> list[list[torch.Tensor]]:
    fp32, fp16 = part.model_fp32_groups, part.model_float16_groups
    return [[*a, *b] for a, b in zip(fp32, fp16, strict=True)]


def host_reads(variables: Variables) -> dict[str, list[str]]:
    """Where a step reads a value back from the device, after a first one; and where reading its loss does."""

    class Reads(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.places: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten._local_scalar_dense.default:
                frames = [frame.filename for frame in traceback.extract_stack()]
                # torch's own AdamW counts its steps in tensors of the host, on a GPU too.
                if not any("torch/optim/" in name for name in frames):
                    self.places.append(next(name for name in reversed(frames) if "/torch/" not in name))
            return func(*args, **(kwargs or {}))

    with layouts([variables]) as configs:
        config = next(configs)
        trainer, dataloader = make_trainer(config), make_dataloader(config)
        trainer.step(dataloader.train_batches(0))
        with Reads() as step:
            result = trainer.step(dataloader.train_batches(1))
        with Reads() as loss:
            result.loss()
        dataloader.close()
        return {"step": step.places, "loss": loss.places}


def built(variables: Variables) -> dict[str, Any]:
    """What the modules of the built model are set to, and whether the sinks reach the attention's output."""
    with layouts([variables]) as configs:
        config = next(configs)
        trainer = make_trainer(config)
        gpt = trainer.model.module
        attention = [layer.self_attention.core_attention for layer in gpt.decoder.layers]
        query = torch.randn(40, 1, config.model.num_attention_heads, config.model.head_dim)
        key = torch.randn(40, 1, config.model.num_query_groups, config.model.head_dim)
        sunk = []
        for each in attention:
            if each.softmax_offset is not None:
                before = each(query, key, key)
                with torch.no_grad():
                    each.softmax_offset += 3.0
                sunk.append(not torch.allclose(before, each(query, key, key), rtol=1e-2))
        owners = {name: m for name, m in gpt.named_modules() if any(True for _ in m.parameters(recurse=False))}
        called = set()
        for name, module in owners.items():
            module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        trainer.evaluate(synthetic_batches(config, trainer.device)(2), 2)
        rotary = gpt.rotary_pos_emb(64)
        angles, concentration = rotary if isinstance(rotary, tuple) else (rotary, 1.0)
        router = gpt.decoder.layers[0].mlp.router
        return {
            "past": [each.window_left for each in attention],
            "never called": sorted(set(owners) - called),
            "sunk": sunk,
            "norm epsilons": {m.eps for m in gpt.modules() if isinstance(m, torch.nn.RMSNorm)},
            "angles": angles[:, 0, 0, :].tolist(),
            "concentration": concentration,
            "router": (router.topk, router.config.moe_router_pre_softmax, router.config.moe_router_dtype),
            "norms of queries": [type(layer.self_attention.q_layernorm).__name__ for layer in gpt.decoder.layers],
            "biases": sorted({name.rsplit(".", 2)[-2] for name, _ in gpt.named_parameters() if name.endswith("bias")}),
        }


def _plain_gradients(trainer: Any, batches: list[Any]) -> list[torch.Tensor]:
    """Autograd of the mean loss over all tokens, past Megatron's schedule, DDP and optimizer."""
    total, tokens = torch.zeros(()), 0.0
    positions = torch.arange(batches[0].tokens.shape[1])[None]
    for batch in batches:
        losses = trainer.model.module(
            input_ids=batch.tokens,
            position_ids=positions.expand_as(batch.tokens),
            attention_mask=None,
            labels=batch.labels,
        )
        total = total + (losses * batch.loss_mask).sum()
        tokens += float(batch.loss_mask.sum())
    return list(torch.autograd.grad(total / tokens, list(trainer.model.parameters())))


def updates(variables: Variables, steps: int) -> dict[str, float]:
    """The largest relative difference of gradients, and of weights after some steps, from plain torch's AdamW."""
    with layouts([variables]) as configs:
        config = next(configs)
        trainer, dataloader = make_trainer(config), make_dataloader(config)
        rules, start = config.fixed, [p.detach().clone() for p in trainer.model.parameters()]
        mine = [torch.nn.Parameter(p.clone()) for p in start]
        decayed_ones = [p for p in mine if p.ndim > 1]
        rest = [p for p in mine if p.ndim == 1]
        groups = [{"params": decayed_ones, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        plain = torch.optim.AdamW(groups, lr=config.free.learning_rate, betas=(0.9, 0.95), eps=1e-5)
        worst = 0.0
        for step in range(steps):
            batches = list(dataloader.train_batches(step))
            gradients = _plain_gradients(trainer, batches)
            norm = torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt()
            scale = min(1.0, rules.gradient_clip / (float(norm) + 1e-6))
            result = trainer.step(iter(batches))
            for parameter, gradient in zip(trainer.model.parameters(), gradients, strict=True):
                # On one rank the optimizer clips DDP's own gradient buffer, in place.
                difference = float((parameter.main_grad / scale - gradient).norm() / gradient.norm().clamp(min=1e-12))
                worst = max(worst, difference)
            assert abs(float(result.grad_norm) / float(norm) - 1) < 1e-5
            for parameter, gradient in zip(mine, gradients, strict=True):
                parameter.grad = gradient * scale
            for group in plain.param_groups:
                group["lr"] = result.learning_rate
            plain.step()
        dataloader.close()
        changes = [
            (p.detach() - s, q.detach() - s) for p, q, s in zip(trainer.model.parameters(), mine, start, strict=True)
        ]
        return {
            "gradients": worst,
            "weights": max(float((ours - plain).norm() / plain.norm()) for ours, plain in changes),
            "smallest change": min(float(plain.abs().max()) for _, plain in changes),
            "clipped by": scale,
        }
