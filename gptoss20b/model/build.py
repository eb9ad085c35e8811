"""From the configuration to Megatron-Core's GPTModel, with one of two layer back ends.

`transformer_engine` is Megatron-Core's own Transformer Engine spec. `torch` is Megatron-Core's local spec with what
would be slow or impossible without Transformer Engine replaced: self attention, experts and their token dispatcher.
Both have this project's loss. `megatron_local` is that spec untouched: the peer that tests and benchmarks compare with,
not offered for runs.
One code base serves Megatron-Core 0.16 to 0.19: keyword arguments only, options filtered by the fields that the
installed version has, specs adjusted rather than rewritten.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import is_te_min_version

from ..config import Config, ModelConfig
from ..config.checks import check_torch_backend, check_transformer_engine_backend
from ..config.tree import FixedHyperparameters, Parallel
from .attention import TorchCoreAttention, TorchSelfAttention
from .dispatch import SortingDispatcher
from .experts import CLAMP, GroupedExperts
from .loss import LossModel
from .rotary import NormWeight

Backend = Literal["torch", "transformer_engine", "megatron_local"]

# How Megatron-Core names each RECOMPUTE. By arithmetic, of what a sequence of the reference keeps for backward (8,192
# tokens, 24 layers, bf16), moe_act frees 4.2 GiB (top-k x ffn activations) for no matrix product, moe 16.9 GiB (the
# experts' rows, gates and ups too) for their forward pass, 21 % of all FLOPs, and its all-to-all; layers leaves 1.1 GiB
# and what one layer needs, for 30 %.
_RECOMPUTED: dict[str, dict[str, Any]] = {
    "none": {},
    "moe_act": {"recompute_granularity": "selective", "recompute_modules": ["moe_act"]},
    "moe": {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
    "layers": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
# And each 8-bit PRECISION: of the layers' matrix products, by Transformer Engine. fp8 scales each tensor by its present
# largest value and holds gradients in a format of wider range (E5M2), which mxfp8's scale for each 32 numbers does not
# need.
_EIGHT_BITS: dict[str, dict[str, str]] = {
    "fp8": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "mxfp8": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
}


class BackendError(RuntimeError):
    """The chosen layer back end cannot run here."""


def choose_backend(config: Config) -> Backend:
    """The back end that this machine will run.

    Raises:
        BackendError: Transformer Engine was asked for and is missing, or the back end or the GPU cannot do what is
            configured.
    """
    present = torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None
    wanted = config.execution.backend
    if wanted == "transformer_engine" and not present:
        raise BackendError(
            "BACKEND: got transformer_engine, but this machine has no GPU or no Transformer Engine package. "
            "Set BACKEND=torch, or run in the container image that brings it."
        )
    backend: Backend = "transformer_engine" if wanted != "torch" and present else "torch"
    limits = check_torch_backend(config) if backend == "torch" else check_transformer_engine_backend(config)
    if found := "; ".join(map(str, limits)):
        raise BackendError(found)
    if backend == "torch" and torch.cuda.is_available() and config.execution.precision == "fp32":
        raise BackendError(
            "PRECISION: got fp32, but on a GPU torch's grouped GEMM takes bf16 only. Set PRECISION=bf16, or "
            "BACKEND=transformer_engine where that is installed."
        )
    if config.execution.precision == "mxfp8" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability()
        if major < 10:
            raise BackendError(
                f"PRECISION: got mxfp8, but {torch.cuda.get_device_name()} has compute capability {major}.{minor}, "
                "expected 10.0 or more. Set PRECISION=fp8 or bf16."
            )
    return backend


def params_dtype(config: Config) -> torch.dtype:
    """The type of weights and activations."""
    return torch.bfloat16 if config.execution.bf16_weights else torch.float32


def fusions(config: Config, backend: Backend) -> dict[str, bool]:
    """Which of Megatron-Core's layers run as fused kernels, by the TransformerConfig's field; those it can fuse at all.

    The experts' activation is fused by torch.compile, the rest by Transformer Engine, of which Megatron-Core demands
    1.4 for rotations and 2.1 for permutations when it is configured, and 2.7 for the router when that is first called.
    """
    if backend != "transformer_engine":
        return {}
    return {
        "bias_activation_fusion": True,
        "moe_permute_fusion": True,
        # The kernel knows no magnitude, which YaRN multiplies by: Megatron-Core would warn and not use it.
        "apply_rope_fusion": config.model.yarn is None,
        # The fused balancing loss wants the number of counted tokens on the host, where it is not: masked ones are left
        # out. Releases of Transformer Engine that take a tensor want an integer one, and Megatron-Core's is a quotient.
        "moe_router_fusion": is_te_min_version("2.7.0") and not config.fixed.aux_loss_coefficient,
    }


def transformer_config(config: Config, on_gpu: bool, **further: Any) -> TransformerConfig:
    """Megatron-Core's view of the configuration. Initialisation is left to `initialise`.

    ``further`` are fields that depend on the layer back end: `fusions`.
    """
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
        **_balancing(config.fixed),
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
        **_EIGHT_BITS.get(config.execution.precision, {}),
        **_RECOMPUTED[config.execution.recompute],
        "pipeline_dtype": params_dtype(config),
        # The loop divides by the number of counted tokens itself (see `training.finalize_gradients`): DDP must sum.
        "calculate_per_token_loss": True,
        # Off for every back end: matrix products would add to DDP's buffers themselves and leave nothing in .grad, in
        # which this project's loss leaves the output layer's gradient, and where training without DDP finds all others.
        "gradient_accumulation_fusion": False,
        "deterministic_mode": config.execution.deterministic,
        "bias_dropout_fusion": False,
        "bias_activation_fusion": False,
        "masked_softmax_fusion": False,
        **_activation(model),
        **_layout(config.parallel),
        **further,
    }
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    transformer = TransformerConfig(**{name: value for name, value in options.items() if name in known})
    if model.yarn:
        # GPTModel reads these from the config object, where TransformerConfig declares no such fields.
        for name, value in {
            "yarn_rotary_scaling_factor": model.yarn.factor,
            "yarn_original_max_position_embeddings": model.yarn.original_max_position_embeddings,
            "yarn_beta_fast": model.yarn.beta_fast,
            "yarn_beta_slow": model.yarn.beta_slow,
            "yarn_mscale": None,
            "yarn_mscale_all_dim": None,
            "yarn_correction_range_round_to_int": model.yarn.truncate,
        }.items():
            setattr(transformer, name, value)
    return transformer


def _layout(parallel: Parallel) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "context_parallel_size": parallel.context,
        "expert_model_parallel_size": parallel.expert,
        # Tensor parallelism splits attention only; every rank of a tensor-parallel group holds whole experts.
        "expert_tensor_parallel_size": 1,
        "sequence_parallel": parallel.tensor > 1,
    }


def _balancing(rules: FixedHyperparameters) -> dict[str, Any]:
    options: dict[str, Any] = {"moe_router_load_balancing_type": "none"}
    if rules.aux_loss_coefficient:
        # Of each layer and micro batch: coefficient x experts x sum over experts of fraction x mean probability (Switch
        # Transformer, Fedus et al. 2021). Because of calculate_per_token_loss the router multiplies it by its counted
        # tokens, and `finalize_gradients` divides by all of them: a mean over the global batch, however it is split.
        options |= {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": rules.aux_loss_coefficient}
    if rules.expert_bias_rate:
        # Megatron-Core moves the biases itself, and refuses them beside softmax scores; DeepSeek-V3 has sigmoids.
        options |= {
            "moe_router_enable_expert_bias": True,
            "moe_router_bias_update_rate": rules.expert_bias_rate,
            "moe_router_score_function": "sigmoid",
        }
    return options


def _activation(model: ModelConfig) -> dict[str, Any]:
    if model.activation == "swiglu":
        return {"activation_func": F.silu}
    # x * sigmoid(1.702 x). There are two: where the activation is fused, Megatron-Core takes no other than this one.
    from megatron.core.fusions.fused_bias_geglu import quick_gelu

    return {"activation_func": quick_gelu, "activation_func_clamp_value": CLAMP, "glu_linear_offset": 1.0}


def layer_spec(config: Config, backend: Backend) -> Any:
    """The transformer layer as Megatron-Core's ModuleSpec."""
    shape = {"num_experts": config.model.num_experts, "moe_grouped_gemm": True, "qk_layernorm": config.model.qk_norm}
    if backend == "transformer_engine":
        return get_gpt_layer_with_transformer_engine_spec(**shape)
    spec = get_gpt_layer_local_spec(**(shape | {"moe_grouped_gemm": False}), normalization="RMSNorm")
    if backend == "megatron_local":
        return spec
    attention = spec.submodules.self_attention
    attention.module = TorchSelfAttention
    attention.submodules.core_attention = TorchCoreAttention
    if config.model.qk_norm:
        attention.submodules.q_layernorm = attention.submodules.k_layernorm = NormWeight
    mlp = spec.submodules.mlp  # a ModuleSpec up to 0.16, a functools.partial with the same submodules from 0.17
    submodules = mlp.keywords["submodules"] if isinstance(mlp, functools.partial) else mlp.submodules
    submodules.experts = GroupedExperts
    return spec


def build_model(config: Config, backend: Backend, on_gpu: bool) -> GPTModel:
    """This rank's part of the model, with uninitialised weights. Needs Megatron-Core's process groups.

    Under ``torch.device("meta")`` and ``on_gpu=False`` it takes no memory.
    """
    if not hasattr(moe_utils, "te_general_gemm"):
        # Without Transformer Engine, 0.16.1 reads this name and never defines it; later versions set it to None.
        vars(moe_utils)["te_general_gemm"] = None
    # The untouched spec keeps Megatron-Core's loss too.
    kind = GPTModel if backend == "megatron_local" else LossModel
    model = kind(
        config=transformer_config(config, on_gpu, **fusions(config, backend)),
        transformer_layer_spec=layer_spec(config, backend),
        vocab_size=config.model.vocab_size,
        max_sequence_length=config.fixed.sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=False,
        position_embedding_type="yarn" if config.model.yarn else "rope",
        rotary_base=config.model.rotary_base,
    )
    mark_split_weights(model)
    if backend == "torch":
        for layer in model.decoder.layers:
            # The specs have no slot for it; Megatron-Core chooses among its own by name.
            layer.mlp.token_dispatcher = SortingDispatcher(layer.mlp.config)
    return model


def mark_split_weights(model: torch.nn.Module) -> None:
    """Let each weight that is split over tensor parallel ranks say so, by which gradients are counted once in the norm.

    Megatron-Core 0.16.1 says it only where it draws the weights itself; later releases always.
    """
    dimensions = {VocabParallelEmbedding: 0, ColumnParallelLinear: 0, RowParallelLinear: 1}
    for module in model.modules():
        for kind, dimension in dimensions.items():
            if isinstance(module, kind) and not hasattr(module.weight, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(module.weight, True, dimension, 1)


def compile_layers(model: GPTModel) -> None:
    """Run each layer's norms and attention through torch.compile from now on; parameters keep their names.

    The experts stay as they are: their dispatch is collectives and, with expert parallelism, sizes that the host reads.
    For the same reason no CUDA graph is offered: a graph's sizes are fixed, and no token is dropped to make them so.
    """
    for layer in model.decoder.layers:
        for module in (layer.input_layernorm, layer.self_attention, layer.pre_mlp_layernorm):
            module.compile()


def scaled_std(config: Config) -> float:
    """Initial standard deviation of the projections that write into the residual stream: std / sqrt(2 x layers)."""
    return config.fixed.init_method_std / math.sqrt(2 * config.model.num_layers)
