"""Load this project's weights folder into a rank's model shard, in any expert, tensor and pipeline parallel layout."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel

from ..config import Config, ModelConfig
from ..model.initialize import local_parameters
from .architecture import is_hf_config
from .convert import ConversionError, HuggingFaceWeights, check_folder_model, check_hf_folder
from .folder import Shape, WeightsFolder


@torch.no_grad()
def load_weights(model: GPTModel, path: Path, config: Config) -> None:
    """Fill this rank's weights in place from a folder of `convert.from_hugging_face`, or of a GptOssForCausalLM.

    Of each tensor only the part that this rank holds is read, or of a GptOssForCausalLM's one tensor at a time. Values
    are rounded to the parameters' dtype where the folder's is wider. ``config``, from which the model was built, must
    have the folder's `model` section. The layer back end must have norms as separate parameters, as `torch` has:
    Transformer Engine's spec fuses them into the projections.

    Raises:
        ConversionError: lists every reason why the folder does not fit the model; nothing was loaded.
    """
    files = WeightsFolder(path)
    problems = list(files.problems)
    folder: WeightsFolder | HuggingFaceWeights
    if is_hf_config(files.config):
        folder_model = check_hf_folder(files, problems)
        folder = HuggingFaceWeights(files, folder_model or config.model)
    else:
        folder, folder_model = files, check_folder_model(files, problems)
    if folder_model is not None:
        problems += _compare_models(folder_model, config.model)
    parameters = list(local_parameters(model, config))
    problems += [
        f"{name}: missing, and this rank's model has it" for name, _, _ in parameters if name not in folder.shapes
    ]
    if problems:
        raise ConversionError(f"loading {path}", problems)
    for name, experts, parameter in parameters:
        # The folder holds all experts in one tensor; Megatron-Core's local spec has a tensor per expert.
        if isinstance(experts, int):
            part = folder.read(name, experts)
        elif experts is not None:
            part = folder.read(name, slice(experts.start, experts.stop))
        else:
            part = folder.read(name, *_tensor_parallel_slices(folder.shapes[name], parameter.shape))
        assert part.shape == parameter.shape, f"{name}: this rank holds {parameter.shape}, the folder {part.shape}"
        parameter.copy_(part)


def _compare_models(folder_model: ModelConfig, run_model: ModelConfig) -> list[str]:
    """Return a message per field in which two model sections differ, apart from the variant's name."""
    return [
        f"config.json: model.{name}: got {value!r}, expected {getattr(run_model, name)!r}, as the run is configured"
        for name, value in folder_model
        if name != "variant" and value != getattr(run_model, name)
    ]


def _tensor_parallel_slices(whole: Shape, local: torch.Size) -> tuple[slice, ...]:
    """Return this rank's slices of a whole tensor, split along the dimension in which the local shape is smaller.

    Shapes decide, because megatron-core 0.16.1 marks parameters as split only where it initializes them itself.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    return tuple(
        slice(rank * local_size, (rank + 1) * local_size) if local_size < whole_size else slice(None)
        for local_size, whole_size in zip(local, whole, strict=True)
    )
