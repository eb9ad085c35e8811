"""Translate the configuration into Megatron-Core's TransformerConfig."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import is_te_min_version

from ..config import Config, ModelConfig
from ..config.tree import FixedHyperparameters, Parallel, Yarn
from .backend import Backend
from .experts import SWIGLU_LIMIT

# Megatron-Core's settings for each RECOMPUTE. moe_act frees the activations of the experts, and repeats no matrix
# product. moe also frees the experts' input rows, gates and ups, and repeats the experts' forward pass, 21 % of all
# FLOPs, and its all-to-all. layers keeps the layers' inputs only, and costs 30 %. docs/tuning.md has each one's memory.
_RECOMPUTE_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "moe_act": {"recompute_granularity": "selective", "recompute_modules": ["moe_act"]},
    "moe": {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
    "layers": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
# Transformer Engine's recipe for each 8-bit PRECISION. fp8 has one scale per tensor, from its current maximum, so
# gradients need the wider range of E5M2 ("hybrid"). mxfp8 has one scale per 32 values, so E4M3 is wide enough for all.
_FP8_OPTIONS: dict[str, dict[str, str]] = {
    "fp8": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "mxfp8": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
}


def params_dtype(config: Config) -> torch.dtype:
    """Return the dtype of weights and activations."""
    return torch.bfloat16 if config.execution.bf16_weights else torch.float32


def fusion_flags(config: Config, backend: Backend) -> dict[str, bool]:
    """Return the TransformerConfig fields that select fused kernels for a back end.

    torch.compile fuses the experts' activation; Transformer Engine provides the others. Megatron-Core requires
    Transformer Engine 1.4 for RoPE and 2.1 for permutations when it is configured. It requires 2.7 for the router only
    when that is first called.
    """
    if backend != "transformer_engine":
        return {}
    return {
        "bias_activation_fusion": True,
        "moe_permute_fusion": True,
        # The kernel ignores YaRN's magnitude factor: Megatron-Core would warn and not use it.
        "apply_rope_fusion": config.model.yarn is None,
        # The fused auxiliary loss wants the token count on the host, and reading it there would wait for the device.
        # Releases of Transformer Engine that accept a tensor require an integer one; Megatron-Core's is a quotient.
        "moe_router_fusion": is_te_min_version("2.7.0") and not config.fixed.aux_loss_coefficient,
    }


def build_transformer_config(config: Config, on_gpu: bool, **backend_options: Any) -> TransformerConfig:
    """Return Megatron-Core's configuration of the model; ``backend_options`` are further fields (`fusion_flags`)."""
    model = config.model
    options: dict[str, Any] = {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.head_dim,
        "ffn_hidden_size": model.moe_ffn_hidden_size,
        "num_moe_experts": model.num_experts,
        "moe_ffn_hidden_size": model.moe_ffn_hidden_size,
        "moe_router_topk": model.router_topk,
        "moe_router_pre_softmax": model.router_softmax_before_topk,
        "moe_router_dtype": "fp32",
        **_load_balancing_options(config.fixed),
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": True,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.norm_epsilon,
        "qk_layernorm": model.qk_norm,
        "add_bias_linear": model.biases,
        "add_qkv_bias": model.biases,
        "gated_linear_unit": True,
        "window_size": (model.window_left, 0),
        "window_attn_skip_freq": [int(model.has_sliding_window(number)) for number in range(1, model.num_layers + 1)],
        "softmax_type": "learnable" if model.attention_sinks else "vanilla",
        "rotary_interleaved": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": config.fixed.init_method_std,
        "perform_initialization": False,
        "use_cpu_initialization": not on_gpu,
        "params_dtype": params_dtype(config),
        "bf16": config.execution.bf16_weights,
        **_FP8_OPTIONS.get(config.execution.precision, {}),
        **_RECOMPUTE_OPTIONS[config.execution.recompute],
        "pipeline_dtype": params_dtype(config),
        # Megatron-Core's default stops the device at each exchange between stages, for a bug of early torch releases.
        "batch_p2p_sync": False,
        # DDP must sum gradients: `optimizer.finalize_gradients` divides by the number of counted tokens.
        "calculate_per_token_loss": True,
        # Off for every back end: fused, matrix products add to DDP's buffers and leave .grad empty. `loss` leaves the
        # output layer's gradient in .grad, and training without DDP needs .grad of every parameter.
        "gradient_accumulation_fusion": False,
        "deterministic_mode": config.execution.deterministic,
        "bias_dropout_fusion": False,
        "bias_activation_fusion": False,
        "masked_softmax_fusion": False,
        **_activation_options(model),
        **_parallel_options(config.parallel),
        **backend_options,
    }
    # One code base serves Megatron-Core 0.16 to 0.19: drop options that the installed version does not declare.
    known_fields = {field.name for field in dataclasses.fields(TransformerConfig)}
    transformer = TransformerConfig(**{name: value for name, value in options.items() if name in known_fields})
    # TransformerConfig declares no field for it: `attention.TorchCoreAttention` reads it.
    vars(transformer)["attention_kernel"] = config.execution.attention_kernel
    if model.yarn:
        _set_yarn_fields(transformer, model.yarn)
    return transformer


def _set_yarn_fields(transformer: TransformerConfig, yarn: Yarn) -> None:
    """Set YaRN's parameters. GPTModel reads them from the config object, but TransformerConfig declares no fields."""
    for name, value in {
        "yarn_rotary_scaling_factor": yarn.factor,
        "yarn_original_max_position_embeddings": yarn.original_max_position_embeddings,
        "yarn_beta_fast": yarn.beta_fast,
        "yarn_beta_slow": yarn.beta_slow,
        # None selects the magnitude of the YaRN paper, 0.1 ln(factor) + 1 (Peng et al. 2023).
        "yarn_mscale": None,
        "yarn_mscale_all_dim": None,
        "yarn_correction_range_round_to_int": yarn.truncate,
    }.items():
        setattr(transformer, name, value)


def _parallel_options(parallel: Parallel) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "context_parallel_size": parallel.context,
        "expert_model_parallel_size": parallel.expert,
        # Tensor parallelism splits attention only; every rank of a tensor-parallel group holds whole experts.
        "expert_tensor_parallel_size": 1,
        "sequence_parallel": parallel.tensor > 1,
    }


def _load_balancing_options(fixed: FixedHyperparameters) -> dict[str, Any]:
    options: dict[str, Any] = {"moe_router_load_balancing_type": "none"}
    if fixed.aux_loss_coefficient:
        # Per layer and micro batch: coefficient x experts x sum over experts of fraction x mean probability (Switch
        # Transformer, Fedus et al. 2021, equation 4). With calculate_per_token_loss the router multiplies it by its
        # counted tokens and `finalize_gradients` divides by all of them: a mean over the global batch.
        options |= {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": fixed.aux_loss_coefficient}
    if fixed.expert_bias_rate:
        # Megatron-Core updates the biases itself. It rejects them with softmax scores; DeepSeek-V3 has sigmoid scores.
        options |= {
            "moe_router_enable_expert_bias": True,
            "moe_router_bias_update_rate": fixed.expert_bias_rate,
            "moe_router_score_function": "sigmoid",
        }
    return options


def _activation_options(model: ModelConfig) -> dict[str, Any]:
    if model.activation == "swiglu":
        return {"activation_func": F.silu}
    # x * sigmoid(1.702 x). Megatron-Core defines quick_gelu twice; its fused activation accepts only this one.
    from megatron.core.fusions.fused_bias_geglu import quick_gelu

    return {"activation_func": quick_gelu, "activation_func_clamp_value": SWIGLU_LIMIT, "glu_linear_offset": 1.0}
