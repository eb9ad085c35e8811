"""Jobs about the open division's auxiliary loss and expert biases. See `jobs` for the shared parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gptoss20b.batches import synthetic_batches
from gptoss20b.config import Config
from gptoss20b.warmup import preserve_state
from tests.support.jobs import Variables, layouts, make_dataloader, make_trainer, token_losses

RouterCall = tuple[Any, Tensor, Tensor, Tensor]


def routers(trainer: Any) -> list[Any]:
    """Return the routers of this rank's layers."""
    return [module for module in trainer.model.modules() if hasattr(module, "expert_bias")]


def expert_biases(trainer: Any) -> Tensor:
    """Return a copy of the expert biases [layers, experts]."""
    return torch.stack([router.expert_bias for router in routers(trainer)])


@contextmanager
def record_routers(trainer: Any) -> Iterator[list[RouterCall]]:
    """Record each call of a router, in order: (router, input, probabilities, routing map), with their graphs."""
    calls: list[RouterCall] = []
    hooks = [
        router.register_forward_hook(lambda router, inputs, outputs: calls.append((router, inputs[0], *outputs)))
        for router in routers(trainer)
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def router_logits(router: Any, hidden: Tensor) -> Tensor:
    """Return the router's logits [tokens, experts] in fp64, with their graph."""
    logits: Tensor = hidden.double().flatten(0, 1) @ router.weight.double().T
    return logits if router.bias is None else logits + router.bias.double()


def auxiliary_loss(router: Any, hidden: Tensor, counted: Tensor) -> Tensor:
    """Return experts x sum over experts of fraction x mean probability, in fp64, of the counted tokens [S, b]."""
    probs = router_logits(router, hidden)[counted.flatten()].softmax(dim=-1)
    tokens, experts = probs.shape
    chosen = probs.topk(router.topk, dim=-1).indices
    fractions = torch.bincount(chosen.flatten(), minlength=experts).double() / (tokens * router.topk)
    loss: Tensor = experts * (fractions * probs.mean(dim=0)).sum()
    return loss


def _reference_gradients(trainer: Any, batches: list[Any]) -> tuple[list[Tensor], list[Tensor], float]:
    """Return, by definition and autograd alone, gradients of the auxiliary loss and in total, and the main loss."""
    coefficient = trainer.config.fixed.aux_loss_coefficient
    main = auxiliary = torch.zeros((), dtype=torch.float64)
    tokens = sum(float(batch.loss_mask.sum()) for batch in batches)
    trainer.model.eval()  # Megatron adds its own auxiliary loss in training only; nothing else differs
    for batch in batches:
        with record_routers(trainer) as calls:
            losses = token_losses(trainer.model.module, batch)
        main = main + (losses.double() * batch.loss_mask).sum() / tokens
        counted = batch.loss_mask.T > 0
        for router, hidden, _, _ in calls:
            auxiliary = auxiliary + coefficient * auxiliary_loss(router, hidden, counted) * counted.sum() / tokens
    trainer.model.train()
    parameters = list(trainer.model.parameters())
    main_gradients = torch.autograd.grad(main, parameters, retain_graph=True)
    extra = [torch.zeros_like(p) for p in parameters]
    if coefficient:
        gradients = torch.autograd.grad(auxiliary, parameters, allow_unused=True)
        extra = [zero if gradient is None else gradient for zero, gradient in zip(extra, gradients, strict=True)]
    return extra, [m + e for m, e in zip(main_gradients, extra, strict=True)], float(main.detach())


def compare_gradients(config: Config) -> dict[str, Any]:
    """Return relative differences of a step's gradients from the definition's, and its losses. On one rank."""
    trainer, dataloader = make_trainer(config), make_dataloader(config)
    batches = list(dataloader.train_batches(0))
    extra, total, main_loss = _reference_gradients(trainer, batches)
    evaluation = trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches)
    trainer.model.zero_grad_buffer()
    trainer._run(iter(batches), config.accumulation_steps, forward_only=False)
    difference, extra_share = {}, {}
    for (name, parameter), part, expected in zip(trainer.model.module.named_parameters(), extra, total, strict=True):
        difference[name] = float((parameter.main_grad - expected).norm() / expected.norm())
        extra_share[name] = float(part.norm() / expected.norm())
    result = trainer.step(iter(batches))
    dataloader.close()
    return {
        "difference": difference,
        "extra share": extra_share,
        "loss": result.loss(),
        "main loss": main_loss,
        "evaluation": evaluation,
        "micro batches": len(batches),
    }


def train_steps(config: Config) -> dict[str, Any]:
    """Return losses and norms of the first steps, the evaluation after them, and the parameters' names and count."""
    trainer, dataloader = make_trainer(config), make_dataloader(config)
    results = [trainer.step(dataloader.train_batches(step)) for step in range(4)]
    evaluation = trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches)
    dataloader.close()
    return {
        "losses": [result.loss() for result in results],
        "norms": [float(result.grad_norm) for result in results],
        "evaluation": evaluation,
        "counts": trainer.parameter_counts(),
        "names": [name for name, _ in trainer.model.named_parameters()],
    }


def tokens_per_expert(calls: list[RouterCall]) -> dict[Any, Tensor]:
    """Return the tokens that each expert got on this rank in these calls, by router, in fp64."""
    totals: dict[Any, Tensor] = {}
    for router, _, _, routing_map in calls:
        totals[router] = totals.get(router, 0) + routing_map.sum(dim=0).double()
    return totals


def track_biases(config: Config) -> dict[str, Any]:
    """Return the expert biases around steps and evaluations, their expected values, and the dtypes of the buffers."""
    trainer, dataloader = make_trainer(config), make_dataloader(config)
    steps: list[dict[str, Any]] = []
    for step in range(2):
        before = expert_biases(trainer)
        with record_routers(trainer) as calls:
            trainer.step(dataloader.train_batches(step))
        after = expert_biases(trainer)
        trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches)
        expected = []
        for bias, counts in zip(before, tokens_per_expert(calls).values(), strict=True):
            dist.all_reduce(counts)
            expected.append(bias + config.fixed.expert_bias_rate * (counts.mean() - counts).sign().float())
        steps.append(
            {
                "before": before.tolist(),
                "after": after.tolist(),
                "expected": torch.stack(expected).tolist(),
                "after evaluation": expert_biases(trainer).tolist(),
                "uncounted tokens": sum(float(router.local_tokens_per_expert.sum()) for router in routers(trainer)),
            }
        )
    dtypes = {str(buffer.dtype) for r in routers(trainer) for buffer in (r.expert_bias, r.local_tokens_per_expert)}
    dataloader.close()
    return {"steps": steps, "dtypes": dtypes}


def compare_choices(config: Config) -> dict[str, Any]:
    """Compare weights and choices of a forward pass with random biases with the definition. On one rank."""
    trainer, dataloader = make_trainer(config), make_dataloader(config)
    generator = torch.Generator().manual_seed(0)
    for router in routers(trainer):
        router.expert_bias.copy_(torch.randn(config.model.num_experts, generator=generator) * 0.1)
    with record_routers(trainer) as calls:
        trainer.evaluate(iter([next(iter(dataloader.train_batches(0)))]), 1)
    dataloader.close()
    largest_difference, equal_choices, changed = 0.0, True, 0.0
    for router, hidden, probs, routing_map in calls:
        scores = router_logits(router, hidden).detach().sigmoid()
        expected_map = _topk_map(scores + router.expert_bias, config.model.router_topk)
        expected_probs = torch.where(expected_map, scores, 0.0)
        expected_probs /= expected_probs.sum(dim=1, keepdim=True)
        equal_choices &= bool((expected_map == routing_map).all())
        largest_difference = max(largest_difference, float((probs - expected_probs).abs().max()))
        differing = (_topk_map(scores, config.model.router_topk) != expected_map).any(dim=1)
        changed += float(differing.double().mean()) / len(calls)
    return {"equal choices": equal_choices, "probs difference": largest_difference, "changed by bias": changed}


def warm_up_biases(config: Config) -> dict[str, Any]:
    """Return the expert biases after a step of the warm-up, and after the warm-up."""
    trainer = make_trainer(config)
    with preserve_state(trainer):
        trainer.step(synthetic_batches(config, trainer.device, config.accumulation_steps))
        during = expert_biases(trainer).tolist()
    return {"during": during, "after": expert_biases(trainer).tolist()}


def _topk_map(scores: Tensor, k: int) -> Tensor:
    """Return the map of each token's k experts with the highest scores."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(k, dim=1).indices, True)


def run_tasks(tasks: list[tuple[str, Variables]]) -> list[Any]:
    """Return the results of these functions, by name, for these configurations, one after the other."""
    functions = (compare_gradients, train_steps, track_biases, compare_choices, warm_up_biases)
    by_name = {each.__name__: each for each in functions}
    with layouts([variables for _, variables in tasks]) as configs:
        return [by_name[name](config) for (name, _), config in zip(tasks, configs, strict=True)]
