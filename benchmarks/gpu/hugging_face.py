"""The peer from transformers: GptOssForCausalLM with grouped_mm experts and flex attention, on the same weights.

It is trained as its users train it on one GPU: weights, gradients and Adam's moments in the weights' type, no fp32
master copy and no gradient buffers, which makes its step lighter than ours.
"""

from __future__ import annotations

import importlib.metadata
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from gptoss20b.config import Config
from gptoss20b.hf.architecture import settings_of
from gptoss20b.hf.names import Weight, shards
from gptoss20b.model.build import params_dtype, scaled_std
from gptoss20b.model.initialise import DRAWING_THREADS, draw, rule
from gptoss20b.tools.bench.norms import norms_by_kind
from gptoss20b.tools.bench.tokens import micro_batches
from gptoss20b.tools.bench.workload import SEED, Outcome, describe_optimizer, gradient_norm


class HuggingFace:
    """A `bench.workload.Workload`.

    Args:
        config: of the `openai` variant.
        device: where it runs; attention is flex attention on a GPU, and plain on a CPU, which trains no other.
        compiled: whether each layer goes through torch.compile. The whole model would be compiled for minutes, to
            fuse what is outside the layers: embedding, final norm and loss.

    Raises:
        ValueError: the configuration is not one of a GptOssForCausalLM.
    """

    has_optimizer = True
    gpt = None

    def __init__(self, config: Config, device: torch.device, compiled: bool) -> None:
        self.model = build(config, device)
        if compiled:
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
        rules = config.fixed
        self._clip = rules.gradient_clip
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.free.learning_rate,
            betas=(rules.adam_beta1, rules.adam_beta2),
            eps=rules.adam_epsilon,
            weight_decay=rules.weight_decay,
            fused=device.type == "cuda",
        )
        self.optimizer_name: str | None = describe_optimizer(self._optimizer)
        self._batches = [batch.tokens for batch in micro_batches(config, device)]

    def first_step(self) -> Outcome:
        """Loss and gradient norm from the initial weights, which stay as they are."""
        loss = self.forward_backward()
        gradients = ((name, each.grad) for name, each in self.model.named_parameters() if each.grad is not None)
        return Outcome(float(loss), float(gradient_norm(self.model)), norms_by_kind(gradients))

    def forward_backward(self) -> Tensor:
        """Forward and backward into new gradients; returns the mean loss."""
        self._optimizer.zero_grad(set_to_none=True)
        losses = []
        for tokens in self._batches:
            # It takes each label from the next position itself.
            loss = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss / len(self._batches)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def full_step(self) -> object:
        """A whole step: gradients, clipping, AdamW."""
        self.forward_backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        return self._optimizer.step()


def build(config: Config, device: torch.device) -> Any:
    """The model with the weights that this project's have at the same seed."""
    problems: list[str] = []
    dtype = params_dtype(config)
    settings = settings_of(config.model, str(dtype).removeprefix("torch."), problems)
    if problems:
        raise ValueError("; ".join(problems))
    for name in ("architectures", "model_type", "dtype"):  # a file's, not the class's
        del settings[name]
    with torch.device(device):
        model: Any = GptOssForCausalLM._from_config(  # type: ignore[no-untyped-call]
            GptOssConfig(**settings),
            attn_implementation="flex_attention" if device.type == "cuda" else "eager",
            experts_implementation="grouped_mm",
            dtype=dtype,
        )
    fill(model, config)
    return model.train()


def fill(model: Any, config: Config) -> None:
    """Give the model the weights that `initialise` gives ours, in its own arrangement."""
    parameters = dict(model.named_parameters())
    weights = [weight for portion in shards(config.model) for weight in portion]
    assert parameters.keys() == {name for weight in weights for name in weight.theirs}

    def place(weight: Weight, expert: int | None) -> None:
        shape = weight.shape if expert is None else weight.shape[1:]
        arranged = weight.to_theirs(_start(weight.ours, expert, torch.Size(shape), config))
        with torch.no_grad():
            for name, part in zip(weight.theirs, arranged, strict=True):
                (parameters[name] if expert is None else parameters[name][expert]).copy_(part)

    # A random stream is drawn by one thread, and there are many streams.
    with ThreadPoolExecutor(DRAWING_THREADS) as threads:
        jobs = [(w, e) for w in weights for e in (range(w.shape[0]) if w.by_expert else [None])]
        for done in [threads.submit(place, *job) for job in jobs]:
            done.result()


def _start(name: str, expert: int | None, shape: torch.Size, config: Config) -> Tensor:
    """Our tensor, or one expert's part of it, as it starts."""
    how = rule(name)
    if how in ("ones", "zeros"):
        return torch.full(shape, 1.0 if how == "ones" else 0.0)
    return draw(SEED, name, expert, shape, scaled_std(config) if how == "scaled" else config.fixed.init_method_std)


def version() -> str:
    """Of transformers."""
    return importlib.metadata.version("transformers")
