"""A folder of our weights into this rank's part of the model, in any expert, tensor and pipeline parallel layout."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel

from ..config import Config
from ..config.tree import ModelConfig
from ..model.initialise import held
from .convert import model_here
from .errors import ConversionError
from .folder import Folder, Shape


@torch.no_grad()
def load(model: GPTModel, folder: Path, config: Config) -> None:
    """Fill this rank's weights, in place; of each tensor only the part that this rank holds is read.

    Values are rounded to the parameters' type where the folder's is wider. Serves the layer back ends whose norms are
    parameters of their own, `torch` first of all: Transformer Engine's spec fuses them into the projections.

    Args:
        model: this rank's part, from `build_model`.
        folder: made by `convert.from_hugging_face`.
        config: the configuration that the model was built from. Its `model` section must be the folder's.

    Raises:
        ConversionError: with everything that keeps the folder from filling the model; nothing was loaded.
    """
    source = Folder(folder)
    found = list(source.problems)
    theirs = model_here(source, found)
    if theirs is not None:
        found += _other_model(theirs, config.model)
    wanted = list(held(model, config))
    found += [f"{name}: missing, and this rank's model has it" for name, _, _ in wanted if name not in source.tensors]
    if found:
        raise ConversionError(f"loading {folder}", found)
    for name, experts, parameter in wanted:
        if isinstance(experts, int):
            part = source.read(name, experts)
        elif experts is not None:
            part = source.read(name, slice(experts.start, experts.stop))
        else:
            part = source.read(name, *_tensor_parallel_part(source.tensors[name].shape, parameter.shape))
        assert part.shape == parameter.shape, f"{name}: this rank holds {parameter.shape}, the folder {part.shape}"
        parameter.copy_(part)


def _other_model(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    """How two model sections differ, apart from the variant's name."""
    return [
        f"config.json: model.{name}: got {value!r}, expected {getattr(ours, name)!r}, as the run is configured"
        for name, value in theirs
        if name != "variant" and value != getattr(ours, name)
    ]


def _tensor_parallel_part(whole: Shape, own: torch.Size) -> tuple[slice, ...]:
    """This rank's part of a tensor that is shorter here in the dimension along which it is cut.

    The shapes tell: Megatron-Core marks some parameters as cut only where it initialises them itself.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    return tuple(
        slice(rank * here, (rank + 1) * here) if here < there else slice(None)
        for here, there in zip(own, whole, strict=True)
    )
