"""The pieces of a training step that have kernels of their own, each beside its reference.

Widths are the model's, because kernels depend on them. Rows and tokens are few, and some experts have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ..config import ModelConfig
from ..model import attention
from ..model.experts import SWIGLU_LIMIT, GroupedExperts, weighted_swiglu, weighted_swiglu_backward
from ..model.grouped_gemm import project, sum_by_expert
from ..model.loss import accumulate_product, linear_cross_entropy
from ..model.rotary import rotation_table, split_qkv_rope
from ..model.rows import build_permutation, gather_rows, pack_rows, unpack_rows
from . import reference
from .compare import Comparison, compare, random

# Rows of each expert: none before, between and after others, and no multiples of what kernels align to.
_COUNTS = (0, 77, 0, 51, 0)
_TOKENS = 96
# Positions of a sequence, which windows of 128 cut: blocks of flex_attention that are full, partial and skipped.
_LENGTH = 384
# The loss's kernels reduce over the vocabulary. Hidden states are narrower than the model's, to save memory.
_LOSS_WIDTH = 64


@dataclass(frozen=True)
class Subject:
    """What is checked: kernels for one rank's part of a model, on a device and in a dtype.

    ``heads`` and ``groups`` are those of this rank.
    """

    model: ModelConfig
    heads: int
    groups: int
    device: torch.device
    dtype: torch.dtype

    @property
    def clamped(self) -> bool:
        """True for the released gpt-oss's activation."""
        return self.model.activation == "clamped_swiglu"

    def random(self, *shape: int, seed: int, limit: float = 1.0) -> Tensor:
        """Return random numbers that require gradients."""
        return random(*shape, seed=seed, device=self.device, dtype=self.dtype, limit=limit).requires_grad_()

    def matrices(self, outputs: int, inputs: int, seed: int) -> Tensor:
        """Return a matrix [outputs, inputs] for each expert, with products of order one.

        Each is the one before, rolled by a row: drawing all would take a second at the width of the 20B model.
        """
        first = self.random(outputs, inputs, seed=seed, limit=math.sqrt(3 / inputs)).detach()
        return torch.stack([first.roll(expert, 0) for expert in range(len(_COUNTS))]).requires_grad_()

    def routing(self, seed: int) -> Tensor:
        """Return a routing map [tokens, experts] of twice as many experts as each token has."""
        topk = self.model.router_topk
        scores = random(_TOKENS, 2 * topk, seed=seed, device=self.device, dtype=torch.float32)
        return scores >= scores.topk(topk).values[:, -1:]

    def groups_of_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows per expert, the ends of the groups, and the marks of experts without rows."""
        counts = torch.tensor(_COUNTS, device=self.device)
        return counts, counts.cumsum(0, dtype=torch.int32), counts == 0


def check_grouped_gemm(subject: Subject) -> Iterable[Comparison]:
    """Check the product of each expert's rows with its matrix, and both gradients."""
    model, (_, offsets, unused) = subject.model, subject.groups_of_rows()

    def expected(rows: Tensor, weight: Tensor) -> Sequence[Tensor]:
        return [torch.cat([part @ w.T for part, w in zip(rows.split(_COUNTS), weight, strict=True)])]

    rows = subject.random(sum(_COUNTS), model.hidden_size, seed=1)
    weight = subject.matrices(2 * model.moe_ffn_hidden_size, model.hidden_size, seed=2)
    return compare(
        lambda rows, weight: [project(rows, weight, offsets, unused)], expected, {"rows": rows, "weights": weight}
    )


def check_sum_by_expert(subject: Subject) -> Iterable[Comparison]:
    """Check the sums that are the gradients of the experts' biases."""
    _, offsets, unused = subject.groups_of_rows()
    rows = subject.random(sum(_COUNTS), subject.model.hidden_size, seed=3).detach()
    factors = subject.random(sum(_COUNTS), seed=4).detach()

    def expected(rows: Tensor, factors: Tensor) -> Sequence[Tensor]:
        weighted = rows * factors[:, None]
        return [torch.stack([part.sum(0) for part in weighted.split(_COUNTS)])]

    return compare(
        lambda rows, factors: [sum_by_expert(rows, factors, offsets, unused)],
        expected,
        {"rows": rows, "factors": factors},
    )


def check_activation(subject: Subject) -> Iterable[Comparison]:
    """Check the activation, with the experts' biases if the model has them, times the routing probability."""
    ffn, count = subject.model.moe_ffn_hidden_size, sum(_COUNTS)
    # Beyond both limits of the clamped activation.
    gate_up = subject.random(count, 2 * ffn, seed=5, limit=1.5 * SWIGLU_LIMIT).detach()
    probs = random(count, seed=6, device=subject.device, dtype=torch.float32).abs()
    grad = subject.random(count, ffn, seed=7).detach()
    bias = ids = None
    wide, wide_probs = (x.double().requires_grad_() for x in (gate_up, probs))
    biased = wide
    if subject.model.biases:
        bias = subject.random(len(_COUNTS), 2 * ffn, seed=8).detach()
        ids = torch.arange(count, device=subject.device) % len(_COUNTS)
        biased = wide + bias.double()[ids]
    expected = reference.swiglu(biased, subject.clamped) * wide_probs[:, None]
    expected_grads = torch.autograd.grad(expected, (wide, wide_probs), grad.double())
    with torch.no_grad():  # as in training; torch compiles one more version with gradients
        out = weighted_swiglu(gate_up, probs, bias, ids, subject.clamped)
        grads = weighted_swiglu_backward(grad, gate_up, probs, bias, ids, subject.clamped)
    names = ("output", "gradient of gate and up", "gradient of the probabilities")
    return map(Comparison, names, (out, *grads), (expected, *expected_grads))


def check_experts(subject: Subject) -> Iterable[Comparison]:
    """Check the whole feed-forward network of all experts, with its biases if the model has them."""
    model, (counts, _, _) = subject.model, subject.groups_of_rows()
    config: Any = SimpleNamespace(
        hidden_size=model.hidden_size,
        moe_ffn_hidden_size=model.moe_ffn_hidden_size,
        add_bias_linear=model.biases,
        activation_func_clamp_value=SWIGLU_LIMIT if subject.clamped else None,
        params_dtype=subject.dtype,
        use_cpu_initialization=True,
        recompute_granularity=None,
    )
    with torch.device("meta"):
        module = GroupedExperts(len(_COUNTS), config)
    weights = {
        "linear_fc1.weight": subject.matrices(2 * model.moe_ffn_hidden_size, model.hidden_size, seed=8),
        "linear_fc2.weight": subject.matrices(model.hidden_size, model.moe_ffn_hidden_size, seed=9),
    }
    if model.biases:
        weights["linear_fc1.bias"] = subject.random(len(_COUNTS), 2 * model.moe_ffn_hidden_size, seed=10)
        weights["linear_fc2.bias"] = subject.random(len(_COUNTS), model.hidden_size, seed=11)
    rows = subject.random(sum(_COUNTS), model.hidden_size, seed=12)
    probs = random(sum(_COUNTS), seed=13, device=subject.device, dtype=torch.float32).abs().requires_grad_()

    def ours(rows: Tensor, probs: Tensor, *values: Tensor) -> Sequence[Tensor]:
        out, _ = functional_call(module, dict(zip(weights, values, strict=True)), (rows, counts, probs))
        return [out]

    def expected(rows: Tensor, probs: Tensor, *values: Tensor) -> Sequence[Tensor]:
        named = dict(zip(weights, values, strict=True))
        return [reference.experts(named, rows, _COUNTS, probs, subject.clamped, subject.dtype)]

    return compare(ours, expected, {"rows": rows, "probabilities": probs, **weights})


def check_rows(subject: Subject) -> Iterable[Comparison]:
    """Check the copy of each token's row for its experts, and the sum of the rows, each the other's gradient."""
    topk = subject.model.router_topk
    chosen = subject.routing(seed=14)
    order = build_permutation(chosen, topk)
    x = subject.random(_TOKENS, subject.model.hidden_size, seed=15)
    rows = subject.random(_TOKENS * topk, subject.model.hidden_size, seed=16)

    def ours(x: Tensor, rows: Tensor) -> Sequence[Tensor]:
        copied = gather_rows(x, order.row_tokens, order.topk_rows)
        return [copied, gather_rows(rows, order.topk_rows, order.row_tokens)]

    def expected(x: Tensor, rows: Tensor) -> Sequence[Tensor]:
        # Pairs of an expert and a token that chose it, by expert, then by token.
        pairs = chosen.T.flatten().int().argsort(descending=True, stable=True)[: _TOKENS * topk]
        tokens = pairs % _TOKENS
        return [x[tokens], torch.zeros_like(x).index_add(0, tokens, rows)]

    return compare(ours, expected, {"tokens": x, "rows": rows})


def check_packed_rows(subject: Subject) -> Iterable[Comparison]:
    """Check rows that travel between ranks with their probabilities, and both gradients."""
    topk = subject.model.router_topk
    order = build_permutation(subject.routing(seed=31), topk)
    arrival = random(_TOKENS * topk, seed=32, device=subject.device, dtype=torch.float32).argsort()
    x = subject.random(_TOKENS, subject.model.hidden_size, seed=33)
    probs = random(_TOKENS * topk, seed=34, device=subject.device, dtype=torch.float32).requires_grad_()
    return compare(
        lambda x, probs: unpack_rows(pack_rows(x, probs, order), arrival, arrival.argsort()),
        lambda x, probs: (x[order.row_tokens][arrival], probs[order.row_choices][arrival]),
        {"tokens": x, "probabilities": probs},
    )


def check_rotation(subject: Subject) -> Iterable[Comparison]:
    """Check the split of the QKV projection's output, QK norm and rotation."""
    model, magnitude = subject.model, 1.25
    pairs = model.head_dim // 2
    angles = torch.arange(_TOKENS, device=subject.device)[:, None] * torch.linspace(
        0.1, 2, pairs, device=subject.device
    )
    rotation = rotation_table(torch.cat([angles, angles], dim=-1)[:, None, None], magnitude)
    width = (subject.heads + 2 * subject.groups) * model.head_dim
    inputs = {"projection's output": subject.random(_TOKENS, 2, width, seed=17)}
    if model.qk_norm:
        for number, name in enumerate(("queries' norm", "keys' norm")):
            inputs[name] = subject.random(model.head_dim, seed=18 + number)

    def ours(qkv: Tensor, *weights: Tensor) -> Sequence[Tensor]:
        return split_qkv_rope(qkv, subject.groups, weights or (None, None), rotation, model.norm_epsilon)  # type: ignore[arg-type]

    def expected(qkv: Tensor, *weights: Tensor) -> Sequence[Tensor]:
        return reference.split_norm_rope(qkv, subject.groups, weights, angles.double(), magnitude, model.norm_epsilon)

    return compare(ours, expected, inputs)


def check_attention(
    subject: Subject, kernels: Sequence[str], window_left: int | None, with_sink: bool
) -> Iterable[Comparison]:
    """Check attention on two sequences, by the kernels that are allowed for full causal layers without sinks."""
    model = subject.model
    heads = {"queries": subject.heads, "keys": subject.groups, "values": subject.groups}
    # In the order of the projection's output, as in training.
    inputs = {
        name: subject.random(_LENGTH, 2, count, model.head_dim, seed=20 + number)
        for number, (name, count) in enumerate(heads.items())
    }
    if with_sink:
        inputs["sinks"] = subject.random(subject.heads, seed=23)
    scale = 1 / math.sqrt(model.head_dim)

    def permuted(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
        def run(*tensors: Tensor) -> Sequence[Tensor]:
            query, key, value = (x.permute(1, 2, 0, 3) for x in tensors[:3])
            return [function(query, key, value, tensors[3] if with_sink else None)]

        return run

    return compare(
        permuted(lambda q, k, v, sink: attention.dot_product_attention(q, k, v, scale, window_left, sink, kernels)),
        permuted(lambda q, k, v, sink: reference.attention(q, k, v, window_left, sink)),
        inputs,
    )


def check_loss(subject: Subject) -> Iterator[Comparison]:
    """Check the loss with its gradients, in two chunks, and the loss of an evaluation."""
    width, vocabulary = min(_LOSS_WIDTH, subject.model.hidden_size), subject.model.vocab_size
    hidden = subject.random(_TOKENS, width, seed=24)
    weight = subject.random(vocabulary, width, seed=25, limit=3 / math.sqrt(width))
    generator = torch.Generator().manual_seed(26)
    labels = torch.randint(vocabulary, (_TOKENS,), generator=generator, device="cpu").to(subject.device)
    mask = (random(_TOKENS, seed=27, device=subject.device, dtype=torch.float32) > -0.5).float()

    def ours(hidden: Tensor, weight: Tensor) -> Sequence[Tensor]:
        return [linear_cross_entropy(hidden, weight, labels, mask, chunk=_TOKENS // 2)]

    def expected(hidden: Tensor, weight: Tensor) -> Sequence[Tensor]:
        return [reference.cross_entropy(hidden, weight, labels, mask)]

    inputs = {"hidden states": hidden, "weight": weight}
    yield from compare(ours, expected, inputs)
    for comparison in compare(ours, expected, {name: x.detach() for name, x in inputs.items()}):
        yield Comparison("evaluation", comparison.got, comparison.expected)


def check_accumulation(subject: Subject) -> Iterable[Comparison]:
    """Check that products of bf16 matrices are added to an fp32 sum: addmm's out_dtype, where torch has it."""
    left = subject.random(_TOKENS, 192, seed=28).detach()
    right = subject.random(_TOKENS, subject.model.hidden_size, seed=29).detach()
    total = random(192, subject.model.hidden_size, seed=30, device=subject.device, dtype=torch.float32)

    def ours(left: Tensor, right: Tensor) -> Sequence[Tensor]:
        out = total.clone()
        accumulate_product(out, left.T, right)
        return [out]

    return compare(ours, lambda left, right: [total.double() + left.T @ right], {"left": left, "right": right})
