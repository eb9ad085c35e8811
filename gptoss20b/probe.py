"""What the model does in a step whose loss is logged: its routing and its attention scores, measured by hooks.

Everything stays on the device until `Probe.read`. The hooks exist in such steps only, and see the first micro batch.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .model.attention import TorchCoreAttention
from .optimizer import parameter_norm
from .trainer import Trainer

# Queries of each sequence whose scores are computed: those of all would take S x S x heads numbers.
SAMPLED_QUERIES = 8

Measurement = dict[str, float | list[float] | list[int] | None]


class Probe:
    """Hooks on routers and attention of this rank's layers."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        config = trainer.config
        # A compiled layer drops hooks. Context parallelism cuts sequences, so that positions are not the rows' numbers.
        self._sees_attention = config.execution.compile_mode == "kernels" and config.parallel.context == 1
        self._hooks: list[Any] = []
        self._clear()

    def _clear(self) -> None:
        model, device = self._trainer.config.model, self._trainer.device
        # For each layer: rows of each expert, the sum of the tokens' entropies in nats, and the tokens.
        self._routing = torch.zeros(model.num_layers, model.num_experts + 2, device=device)
        self._scores = torch.full((model.num_layers,), -math.inf, device=device)
        self._seen: set[tuple[str, int]] = set()

    def start(self) -> None:
        """Measure the next step."""
        self._clear()
        for layer in self._trainer.gpt.decoder.layers:
            index = layer.layer_number - 1
            self._hooks.append(layer.mlp.router.register_forward_hook(partial(self._see_routing, index)))
            attention = layer.self_attention.core_attention
            if self._sees_attention and isinstance(attention, TorchCoreAttention):
                self._hooks.append(attention.register_forward_pre_hook(partial(self._see_attention, index)))

    def stop(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def read(self) -> Measurement:
        """Return the measurement of the step since `start`, of all ranks. Collective; waits for the device."""
        self.stop()
        norm = parameter_norm(self._trainer.optimizer, self._trainer.device)
        # Ranks of other pipeline stages have zeros for layers that they do not hold.
        dist.all_reduce(self._routing)
        dist.all_reduce(self._scores, op=dist.ReduceOp.MAX)
        topk = self._trainer.config.model.router_topk
        *rows, entropies, tokens = self._routing.T
        counts = torch.stack(rows, dim=1)
        values = [
            entropies / tokens,
            counts.amax(dim=1) * len(rows) / (tokens * topk),
            (counts == 0).sum(dim=1).float(),
            self._scores,
        ]
        norms = torch.stack([self._trainer.latest.grad_norm.double(), norm])
        flat = torch.cat([norms, *values]).tolist()
        grad_norm, param_norm = flat[:2]
        layers = len(tokens)
        entropy, load, dead, scores = (flat[2 + i * layers : 2 + (i + 1) * layers] for i in range(4))
        return {
            "grad_norm": grad_norm,
            "param_norm": param_norm,
            "router_entropy": entropy,
            "expert_load_max_over_mean": load,
            "dead_experts": [round(number) for number in dead],
            "max_attention_score": scores if all(map(math.isfinite, scores)) else None,
        }

    def _is_first(self, kind: str, index: int) -> bool:
        """Return False for later micro batches, and where a layer runs again in the backward pass."""
        first = (kind, index) not in self._seen
        self._seen.add((kind, index))
        return first

    @torch.no_grad()
    def _see_routing(self, index: int, _module: Any, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        if not self._is_first("routing", index):
            return
        probs, routing_map = output
        entropy = torch.special.entr(probs.float()).sum()
        tokens = torch.full_like(entropy, len(probs))
        self._routing[index] = torch.cat([routing_map.sum(0).float(), torch.stack([entropy, tokens])])

    @torch.no_grad()
    def _see_attention(self, index: int, module: TorchCoreAttention, inputs: tuple[Tensor, ...]) -> None:
        if not self._is_first("attention", index):
            return
        query, key = inputs[:2]  # [sequence, batch, heads or groups, head_dim]
        length, batch, groups, _ = key.shape
        # Evenly spaced, with the last one: it sees most keys.
        chosen = torch.arange(length - 1, -1, -max(1, length // SAMPLED_QUERIES), device=query.device)
        sampled = query[chosen].view(len(chosen), batch, groups, -1, query.shape[-1])
        scores = torch.einsum("qbghd,kbgd->bghqk", sampled, key).float() * module.scale
        distance = chosen[:, None] - torch.arange(length, device=query.device)
        reach = length if module.window_left is None else module.window_left
        self._scores[index] = scores.masked_fill((distance < 0) | (distance > reach), -math.inf).amax()
