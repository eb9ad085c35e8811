"""What weights that are split over tensor parallel ranks say of themselves."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding

from gptoss20b.config import resolve
from gptoss20b.model.build import mark_tensor_parallel_weights
from gptoss20b.model.megatron_config import build_transformer_config
from gptoss20b.process_groups import distributed_session, read_rank


def marked(variables: dict[str, str]) -> dict[str, tuple[tuple[int, ...], bool, int, int]]:
    """Shape on this rank, and tensor_model_parallel, partition_dim and partition_stride, of three kinds of weights."""
    config = resolve(variables)
    with distributed_session(config, read_rank(config)):
        options = {"config": build_transformer_config(config, on_gpu=False), "init_method": torch.nn.init.zeros_}
        linear = options | {"bias": False, "skip_bias_add": False}
        modules = torch.nn.ModuleDict(
            {
                "embedding": VocabParallelEmbedding(16, 8, **options),
                "column": ColumnParallelLinear(8, 16, **linear),
                "row": RowParallelLinear(16, 8, input_is_parallel=True, **linear),
                "norm": torch.nn.RMSNorm(8),
            }
        )
        mark_tensor_parallel_weights(modules)
        return {
            name: (
                tuple(module.weight.shape),
                getattr(module.weight, "tensor_model_parallel", False),
                getattr(module.weight, "partition_dim", -1),
                getattr(module.weight, "partition_stride", -1),
            )
            for name, module in modules.items()
        }
