"""Baseline: transformers' GptOssForCausalLM with grouped_mm experts and flex attention, on the same weights.

It trains as users of transformers do on one GPU: weights, gradients and Adam's moments have the weights' dtype, without
fp32 master weights or gradient buffers. That makes its step lighter than this project's.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from gptoss20b.config import Config
from gptoss20b.hf.architecture import to_hf_config
from gptoss20b.hf.weight_mapping import WeightMapping, weight_shards
from gptoss20b.model.initialize import INIT_THREADS, initial_tensor
from gptoss20b.model.megatron_config import params_dtype
from gptoss20b.tools.bench.norms import norms_by_kind
from gptoss20b.tools.bench.result import Outcome
from gptoss20b.tools.bench.workload import SEED, describe_optimizer, gradient_norm, micro_batches


class HuggingFace:
    """Training of transformers' GptOssForCausalLM as a `bench.workload.Workload`.

    Attention is flex attention on a GPU, and eager on a CPU, where flex attention has no backward pass. ``compiled``
    runs each layer through torch.compile. Compiling the whole model takes minutes and would only fuse embedding, final
    norm and loss.

    Raises:
        ValueError: the configuration is not a GptOssForCausalLM's.
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
        """Return loss and gradient norms from the initial weights, without changing them."""
        loss = self.forward_backward()
        gradients = ((name, each.grad) for name, each in self.model.named_parameters() if each.grad is not None)
        return Outcome(float(loss), float(gradient_norm(self.model)), norms_by_kind(gradients))

    def forward_backward(self) -> Tensor:
        """Run forward and backward into new gradients. Return the mean loss."""
        self._optimizer.zero_grad(set_to_none=True)
        losses = []
        for tokens in self._batches:
            # GptOssForCausalLM shifts the labels itself.
            loss = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss / len(self._batches)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def full_step(self) -> object:
        """Run a whole step: gradients, clipping, AdamW."""
        self.forward_backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        return self._optimizer.step()


def build(config: Config, device: torch.device) -> Any:
    """Return the model with this project's initial weights of the same seed."""
    problems: list[str] = []
    dtype = params_dtype(config)
    hf_config = to_hf_config(config.model, str(dtype).removeprefix("torch."), problems)
    if problems:
        raise ValueError("; ".join(problems))
    for name in ("architectures", "model_type", "dtype"):  # of the file, not of the class
        del hf_config[name]
    with torch.device(device):
        model: Any = GptOssForCausalLM._from_config(
            GptOssConfig(**hf_config),
            attn_implementation="flex_attention" if device.type == "cuda" else "eager",
            experts_implementation="grouped_mm",
            dtype=dtype,
        )
    fill(model, config)
    return model.train()


def fill(model: Any, config: Config) -> None:
    """Give the model the weights that `initialize_weights` gives this project's, in transformers' layout."""
    parameters = dict(model.named_parameters())
    weights = [weight for shard in weight_shards(config.model) for weight in shard]
    assert parameters.keys() == {name for weight in weights for name in weight.hf_shapes}

    def place(weight: WeightMapping, expert: int | None) -> None:
        shape = torch.Size(weight.shape if expert is None else weight.shape[1:])
        converted = weight.to_hf(initial_tensor(config, SEED, weight.name, expert, shape))
        with torch.no_grad():
            for name, part in zip(weight.hf_shapes, converted, strict=True):
                (parameters[name] if expert is None else parameters[name][expert]).copy_(part)

    # A generator is drawn from by one thread, and there are many generators.
    with ThreadPoolExecutor(INIT_THREADS) as threads:
        jobs = [(w, e) for w in weights for e in (range(w.shape[0]) if w.by_expert else [None])]
        for done in [threads.submit(place, *job) for job in jobs]:
            done.result()
