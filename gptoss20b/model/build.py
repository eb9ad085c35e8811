"""Build Megatron-Core's GPTModel with the layers of a back end (see `backend.Backend`).

One code base serves Megatron-Core 0.16 to 0.19: keyword arguments only, options filtered by the fields of the installed
version, specs adjusted rather than rewritten.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import (
    _yarn_get_concentration_factor_from_config as yarn_concentration_factor,
)
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

from ..config import Config
from .attention import OutputProjection, TorchCoreAttention, TorchSelfAttention
from .backend import Backend
from .dispatch import SortingDispatcher
from .experts import GroupedExperts
from .loss import FusedLossGPTModel
from .megatron_config import build_transformer_config, fusion_flags
from .rotary import NormWeight, give_rotation_tables


def layer_spec(config: Config, backend: Backend) -> Any:
    """Return the transformer layer as Megatron-Core's ModuleSpec."""
    options = {"num_experts": config.model.num_experts, "moe_grouped_gemm": True, "qk_layernorm": config.model.qk_norm}
    if backend == "transformer_engine":
        return get_gpt_layer_with_transformer_engine_spec(**options)
    # The local spec's grouped GEMM needs an extension. GroupedExperts replaces the experts in any case.
    spec = get_gpt_layer_local_spec(**(options | {"moe_grouped_gemm": False}), normalization="RMSNorm")
    if backend == "megatron_local":
        return spec
    attention = spec.submodules.self_attention
    attention.module = TorchSelfAttention
    attention.submodules.core_attention = TorchCoreAttention
    attention.submodules.linear_proj = OutputProjection
    if config.model.qk_norm:
        attention.submodules.q_layernorm = attention.submodules.k_layernorm = NormWeight
    mlp = spec.submodules.mlp  # a ModuleSpec up to 0.16, a functools.partial with the same submodules from 0.17
    submodules = mlp.keywords["submodules"] if isinstance(mlp, functools.partial) else mlp.submodules
    submodules.experts = GroupedExperts
    return spec


def build_model(config: Config, backend: Backend, on_gpu: bool) -> GPTModel:
    """Return this rank's model shard with uninitialized weights. Needs Megatron-Core's process groups.

    Under ``torch.device("meta")`` and with ``on_gpu=False`` the model takes no memory.
    """
    if not hasattr(moe_utils, "te_general_gemm"):
        # Bug of megatron-core 0.16.1: without Transformer Engine it reads this name but never defines it. Later
        # versions set it to None.
        vars(moe_utils)["te_general_gemm"] = None
    # The untouched spec keeps Megatron-Core's loss too.
    model_class = GPTModel if backend == "megatron_local" else FusedLossGPTModel
    model = model_class(
        config=build_transformer_config(config, on_gpu, **fusion_flags(config, backend)),
        transformer_layer_spec=layer_spec(config, backend),
        vocab_size=config.model.vocab_size,
        max_sequence_length=config.fixed.sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=False,
        position_embedding_type="yarn" if config.model.yarn else "rope",
        rotary_base=config.model.rotary_base,
    )
    mark_tensor_parallel_weights(model)
    if backend == "torch":
        give_rotation_tables(model.rotary_pos_emb, yarn_concentration_factor(model.config))
        for layer in model.decoder.layers:
            # The specs have no slot for a token dispatcher; Megatron-Core chooses among its own by name.
            layer.mlp.token_dispatcher = SortingDispatcher(layer.mlp.config)
            if on_gpu:
                device = torch.device("cuda", torch.cuda.current_device())
                layer.self_attention.core_attention.prepare(config.fixed.sequence_length, device)
    return model


def mark_tensor_parallel_weights(model: torch.nn.Module) -> None:
    """Set the attributes by which Megatron-Core recognizes weights that are split over tensor-parallel ranks.

    The gradient norm counts a weight without them once per rank. Bug of megatron-core 0.16.1: it sets them only where
    it initializes the weights itself. Later releases always set them.
    """
    partition_dims = {VocabParallelEmbedding: 0, ColumnParallelLinear: 0, RowParallelLinear: 1}
    for module in model.modules():
        for module_class, dim in partition_dims.items():
            if isinstance(module, module_class) and not hasattr(module.weight, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(module.weight, True, dim, 1)


def compile_layers(model: GPTModel) -> None:
    """Run each layer's norms and attention through torch.compile. Parameters keep their names.

    The experts are not compiled: their dispatch is collectives and, with expert parallelism, sizes that the host reads.
    CUDA graphs are not offered for the same reason: a graph has fixed sizes, and no token is dropped to reach them.
    """
    for layer in model.decoder.layers:
        for module in (layer.input_layernorm, layer.self_attention, layer.pre_mlp_layernorm):
            module.compile()
