"""What ranks do in tests of the open division's extras: the load-balancing loss and expert biases. See `jobs`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from gptoss20b.config import Config
from tests.support.jobs import Variables, layouts, make_dataloader, make_trainer

Call = tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]


def routers(trainer: Any) -> list[Any]:
    """The routers of this rank's layers, whatever wraps the model."""
    return [module for module in trainer.model.modules() if hasattr(module, "expert_bias")]


@contextmanager
def watched(trainer: Any) -> Iterator[list[Call]]:
    """What each call of a router got and gave, in order: (router, input, probabilities, map), with their graphs."""
    calls: list[Call] = []
    hooks = [
        router.register_forward_hook(lambda router, given, gave: calls.append((router, given[0], *gave)))
        for router in routers(trainer)
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def logits_of(router: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The router's logits [tokens, experts] in fp64, with their graph."""
    logits = hidden.double().flatten(0, 1) @ router.weight.double().T
    return logits if router.bias is None else logits + router.bias.double()


def balancing_loss(router: Any, hidden: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Experts x sum over experts of fraction x mean probability, in fp64, over the tokens counted [sequence, batch]."""
    probabilities = logits_of(router, hidden)[counted.flatten()].softmax(dim=-1)
    tokens, experts = probabilities.shape
    chosen = probabilities.topk(router.topk, dim=-1).indices
    fractions = torch.bincount(chosen.flatten(), minlength=experts).double() / (tokens * router.topk)
    return experts * (fractions * probabilities.mean(dim=0)).sum()


def _defined(trainer: Any, batches: list[Any]) -> tuple[list[torch.Tensor], list[torch.Tensor], float]:
    """By definition, with autograd alone: gradients of the load-balancing part, of everything, and the main loss."""
    coefficient = trainer.config.fixed.aux_loss_coefficient
    main = balance = torch.zeros((), dtype=torch.float64)
    tokens = sum(float(batch.loss_mask.sum()) for batch in batches)
    positions = torch.arange(batches[0].tokens.shape[1])[None]
    trainer.model.eval()  # Megatron adds its own load-balancing loss in training only; nothing else differs
    for batch in batches:
        with watched(trainer) as calls:
            losses = trainer.model.module(
                input_ids=batch.tokens,
                position_ids=positions.expand_as(batch.tokens),
                attention_mask=None,
                labels=batch.labels,
            )
        main = main + (losses.double() * batch.loss_mask).sum() / tokens
        counted = batch.loss_mask.T > 0
        for router, hidden, _, _ in calls:
            balance = balance + coefficient * balancing_loss(router, hidden, counted) * counted.sum() / tokens
    trainer.model.train()
    parameters = list(trainer.model.parameters())
    main_gradients = torch.autograd.grad(main, parameters, retain_graph=True)
    extra = [torch.zeros_like(p) for p in parameters]
    if coefficient:
        found = torch.autograd.grad(balance, parameters, allow_unused=True)
        extra = [zero if gradient is None else gradient for zero, gradient in zip(extra, found, strict=True)]
    return extra, [m + e for m, e in zip(main_gradients, extra, strict=True)], float(main.detach())


def gradients(config: Config) -> dict[str, Any]:
    """A step's gradients beside those of the definition, and its losses. On one rank."""
    trainer, dataloader = make_trainer(config), make_dataloader(config)
    batches = list(dataloader.train_batches(0))
    extra, everything, main = _defined(trainer, batches)
    evaluation = trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches)
    trainer.model.zero_grad_buffer()
    trainer._run(iter(batches), config.accumulation_steps, forward_only=False)
    difference, share = {}, {}
    for (name, parameter), part, defined in zip(
        trainer.model.module.named_parameters(), extra, everything, strict=True
    ):
        difference[name] = float((parameter.main_grad - defined).norm() / defined.norm())
        share[name] = float(part.norm() / defined.norm())
    result = trainer.step(iter(batches))
    dataloader.close()
    return {
        "difference": difference,
        "share": share,
        "loss": result.loss(),
        "main loss": main,
        "evaluation": evaluation,
        "micro batches": len(batches),
    }


def steps(config: Config) -> dict[str, Any]:
    """Losses and norms of the first steps, the evaluation after them, and how many parameters there are."""
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


def counted(calls: list[Call]) -> dict[Any, torch.Tensor]:
    """Tokens that each expert got on this rank in these calls, by router, in fp64."""
    totals: dict[Any, torch.Tensor] = {}
    for router, _, _, chosen in calls:
        totals[router] = totals.get(router, 0) + chosen.sum(dim=0).double()
    return totals


def biases(config: Config) -> dict[str, Any]:
    """The expert biases around steps and evaluations, beside what they should become; and the types of what is kept."""
    trainer, dataloader = make_trainer(config), make_dataloader(config)
    seen: list[dict[str, Any]] = []
    for step in range(2):
        before = [router.expert_bias.clone() for router in routers(trainer)]
        with watched(trainer) as calls:
            trainer.step(dataloader.train_batches(step))
        after = [router.expert_bias.clone() for router in routers(trainer)]
        trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches)
        expected = []
        for bias, counts in zip(before, counted(calls).values(), strict=True):
            dist.all_reduce(counts)
            expected.append(bias + config.fixed.expert_bias_rate * (counts.mean() - counts).sign().float())
        seen.append(
            {
                "before": torch.stack(before).tolist(),
                "after": torch.stack(after).tolist(),
                "expected": torch.stack(expected).tolist(),
                "after evaluation": [router.expert_bias.tolist() for router in routers(trainer)],
                "left to count": sum(float(router.local_tokens_per_expert.sum()) for router in routers(trainer)),
            }
        )
    kept = {str(buffer.dtype) for r in routers(trainer) for buffer in (r.expert_bias, r.local_tokens_per_expert)}
    dataloader.close()
    return {"steps": seen, "types": kept}


def choices(config: Config) -> dict[str, Any]:
    """One forward pass with biases set by hand: weights and choices beside the definition. On one rank."""
    trainer, dataloader = make_trainer(config), make_dataloader(config)
    generator = torch.Generator().manual_seed(0)
    for router in routers(trainer):
        router.expert_bias.copy_(torch.randn(config.model.num_experts, generator=generator) * 0.1)
    with watched(trainer) as calls:
        trainer.evaluate(iter([next(iter(dataloader.train_batches(0)))]), 1)
    dataloader.close()
    worst, agreeing, moved = 0.0, True, 0.0
    for router, hidden, weights, chosen in calls:
        scores = logits_of(router, hidden).detach().sigmoid()
        expected = _top(scores + router.expert_bias, config.model.router_topk)
        defined = torch.where(expected, scores, 0.0)
        defined /= defined.sum(dim=1, keepdim=True)
        agreeing &= bool((expected == chosen).all())
        worst = max(worst, float((weights - defined).abs().max()))
        differing = (_top(scores, config.model.router_topk) != expected).any(dim=1)
        moved += float(differing.double().mean()) / len(calls)
    return {"agree": agreeing, "largest difference of weights": worst, "tokens that choose otherwise": moved}


def warmed_up(config: Config) -> dict[str, Any]:
    """The expert biases after a step of the warm-up, and after the warm-up."""
    from gptoss20b.batches import synthetic_batches
    from gptoss20b.warmup import preserve_state

    trainer = make_trainer(config)
    with preserve_state(trainer):
        trainer.step(synthetic_batches(config, trainer.device)(config.accumulation_steps))
        during = [router.expert_bias.tolist() for router in routers(trainer)]
    return {"during": during, "after": [router.expert_bias.tolist() for router in routers(trainer)]}


def _top(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Which k experts of each token [tokens, experts] have the highest scores."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(k, dim=1).indices, True)


def measured(tasks: list[tuple[str, Variables]]) -> list[Any]:
    """What the functions named here say of these configurations, one after the other on the same ranks."""
    measures = {each.__name__: each for each in (gradients, steps, biases, choices, warmed_up)}
    with layouts([variables for _, variables in tasks]) as configs:
        return [measures[name](config) for (name, _), config in zip(tasks, configs, strict=True)]
