"""Jobs that inspect the built model and its initial weights. See `jobs` for the shared parts."""

from __future__ import annotations

from typing import Any

import torch

from gptoss20b.batches import synthetic_batches
from gptoss20b.config import Config
from gptoss20b.model import build as build_module
from gptoss20b.model.megatron_config import build_transformer_config
from tests.support.jobs import Variables, layouts, make_trainer


def initial_statistics(variables: Variables) -> dict[str, Any]:
    """Return mean, deviation and count of every weight, and the loss on random tokens before any step."""
    with layouts([variables]) as configs:
        config = next(configs)
        trainer = make_trainer(config)
        weights = {
            name: (float(p.double().mean()), float(p.double().std()) if p.numel() > 1 else 0.0, p.numel())
            for name, p in trainer.model.module.named_parameters()
        }
        return {"weights": weights, "loss": trainer.evaluate(synthetic_batches(config, trainer.device, 4), 4)}


def inspect_model(variables: Variables) -> dict[str, Any]:
    """Return settings of the built model's modules, and whether the sinks change the attention's output."""
    with layouts([variables]) as configs:
        config = next(configs)
        trainer = make_trainer(config)
        gpt = trainer.model.module
        attention = [layer.self_attention.core_attention for layer in gpt.decoder.layers]
        owners = {name: m for name, m in gpt.named_modules() if any(True for _ in m.parameters(recurse=False))}
        called = set()
        for name, module in owners.items():
            module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        trainer.evaluate(synthetic_batches(config, trainer.device, 2), 2)
        rotary = gpt.rotary_pos_emb(64)
        rotation = rotary[0] if isinstance(rotary, tuple) else rotary
        router = gpt.decoder.layers[0].mlp.router
        return {
            "window_left": [each.window_left for each in attention],
            "never called": sorted(set(owners) - called),
            "sinks change outputs": [
                _sinks_change_output(each) for each in attention if each.softmax_offset is not None
            ],
            "norm epsilons": {m.eps for m in gpt.modules() if isinstance(m, torch.nn.RMSNorm)},
            "rotation": rotation[:, 0, 0, :].tolist(),
            "router": (router.topk, router.config.moe_router_pre_softmax, router.config.moe_router_dtype),
            "query norms": {type(layer.self_attention.q_layernorm).__name__ for layer in gpt.decoder.layers},
            "biases": sorted({name.rsplit(".", 2)[-2] for name, _ in gpt.named_parameters() if name.endswith("bias")}),
        }


def _sinks_change_output(attention: Any) -> bool:
    config = attention.config
    query = torch.randn(40, 1, config.num_attention_heads, config.kv_channels)
    key = torch.randn(40, 1, config.num_query_groups, config.kv_channels)
    before = attention(query, key, key)
    with torch.no_grad():
        attention.softmax_offset += 3.0
        after = attention(query, key, key)
        attention.softmax_offset -= 3.0
    return not torch.allclose(before, after, rtol=1e-2)


def build_without_sequence_parallel(config: Config, backend: Any = "torch") -> Any:
    """Build this rank's model shard for tests of its weights under tensor parallelism.

    Sequence parallelism comes with tensor parallelism, and torch's norms refuse it. Weights are split alike without it.
    """

    def without(config: Config, on_gpu: bool) -> Any:
        transformer = build_transformer_config(config, on_gpu)
        transformer.sequence_parallel = False
        return transformer

    vars(build_module)["build_transformer_config"] = without
    return build_module.build_model(config, backend, on_gpu=False)


def tensor_parallel_attributes(variables: Variables) -> dict[str, tuple[tuple[int, ...], bool, int, int]]:
    """Return shape on this rank, tensor_model_parallel, partition_dim and partition_stride of weights, by name."""
    with layouts([variables]) as configs:
        gpt = build_without_sequence_parallel(next(configs))
        return {
            name: (
                tuple(weight.shape),
                getattr(weight, "tensor_model_parallel", False),
                getattr(weight, "partition_dim", -1),
                getattr(weight, "partition_stride", -1),
            )
            for name, weight in gpt.named_parameters()
        }
